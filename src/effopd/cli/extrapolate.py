"""What `effopd extrapolate` does: the search's step on checkpoints of any trainer."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from effopd.analysis.modules import check_finite, endpoints, point
from effopd.core.selection import select_parameters
from effopd.errors import ConfigError
from effopd.models.streaming import write_model
from effopd.models.updates import AdapterUpdate, Update, open_update


def extrapolate(
    anchor: Path, tip: Path, scales: Sequence[float], out: Path, *, select: str
) -> list[Path]:
    """Writes `anchor + scale * (tip - anchor)` of the selected tensors; others are the tip's.

    Config, tokenizer and dtype are the tip's, or the anchor's where the tip is an adapter. At scale
    1 the tip is written, bit for bit.

    Args:
        anchor: Model directory.
        tip: A model directory of a later step, or a LoRA adapter of `anchor`.
        scales: At least one.
        out: Directory of the point; of several, the parent of `scale-3`, `scale-5`, ...
        select: What moves, see `select_parameters`.

    Returns:
        The directories written.

    Raises:
        ConfigError: A scale is given twice.
    """
    for scale in scales:
        check_finite("--scale", scale)
    names = [f"{scale:g}" for scale in scales]
    if len(set(names)) < len(names):
        raise ConfigError(f"--scale must be given once for each point, got {', '.join(names)}")
    update = open_update(anchor, tip)
    moving = selected_names(update, select)
    source = anchor if isinstance(update, AdapterUpdate) else tip
    print(f"{len(moving)} of {len(update.shapes)} tensors move ({select}); others are the tip's")
    found = []
    for scale, name in zip(scales, names, strict=True):
        directory = out / f"scale-{name}" if len(scales) > 1 else out
        _write_point(directory, source, update, moving, scale)
        print(f"scale {name}: {directory}")
        found.append(directory)
    return found


def _write_point(
    directory: Path, source: Path, update: Update, moving: Collection[str], scale: float
) -> None:
    def at_scale(name: str, stored: Tensor) -> Tensor:
        if name in moving:
            return point(*endpoints(update, name), scale)
        return update.read_tuned(name) if stored.is_floating_point() else stored

    write_model(directory, source, at_scale)


def selected_names(update: Update, select: str) -> frozenset[str]:
    """The tensors that the search's selection rule takes.

    Args:
        update: Base and tuned model; integer tensors never move.
        select: See `select_parameters`.

    Returns:
        Their names.
    """
    model = nn.Module()
    for name, shape in update.shapes.items():
        if update.read_base(name).is_floating_point():
            *parents, last = name.split(".")
            _module_at(model, parents).register_parameter(
                last, nn.Parameter(torch.empty(shape, device="meta"))
            )
    return frozenset(select_parameters(model, select))


def _module_at(model: nn.Module, path: Sequence[str]) -> nn.Module:
    """The module under a dotted path, made where it is missing."""
    for part in path:
        children = dict(model.named_children())
        if part not in children:
            model.add_module(part, nn.Module())
        model = model.get_submodule(part)
    return model
