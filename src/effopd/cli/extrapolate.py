"""What `effopd extrapolate` does: the search's step on checkpoints of any trainer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from effopd.analysis.modules import check_finite, endpoints, point
from effopd.errors import ConfigError
from effopd.models.saving import write_model
from effopd.models.updates import PairUpdate, open_update, say_left_out
from effopd.search.selection import selected_names


def extrapolate(
    anchor: Path, tip: Path, scales: Sequence[float], out: Path, *, select: str
) -> None:
    """Writes `anchor + scale * (tip - anchor)` of the selected tensors; others are the tip's.

    Config, tokenizer and dtype are the tip's, or the anchor's where the tip is an adapter. At scale
    1 the tip is written, bit for bit.
    """
    for scale in scales:
        check_finite("--scale", scale)
    names = [f"{scale:g}" for scale in scales]
    if len(set(names)) < len(names):
        raise ConfigError(f"--scale must be given once for each point, got {', '.join(names)}")
    update = open_update(anchor, tip)
    shapes = update.shapes.items()  # integers never move
    axes = {n: len(shape) for n, shape in shapes if update.base_dtype(n).is_floating_point}
    moving = frozenset(selected_names(axes, select))
    source = tip if isinstance(update, PairUpdate) else anchor
    say_left_out(update, print)
    print(f"{len(moving)} of {len(update.shapes)} tensors move ({select}); others are the tip's")

    def changed(scale: float, stored_name: str, stored: Tensor) -> Tensor:
        name = stored_name
        if isinstance(update, PairUpdate):  # the tip's names
            if stored_name not in update.base_names:
                return stored
            name = update.base_names[stored_name]
        if name in moving:
            return point(*endpoints(update, name), scale)
        return update.read_tuned(name) if stored.is_floating_point() else stored

    for scale, text in zip(scales, names, strict=True):
        directory = out / f"scale-{text}" if len(scales) > 1 else out
        write_model(directory, source, partial(changed, scale))
        print(f"scale {text}: {directory}")
