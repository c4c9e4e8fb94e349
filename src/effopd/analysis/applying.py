"""Putting changed weights into a live model for a while, or into a new checkpoint."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from effopd.analysis.modules import Changed, norm, part, tensor_modules
from effopd.errors import ParameterMismatchError
from effopd.models.layout import ModuleTensor
from effopd.models.names import counterparts, extra
from effopd.models.saving import write_model
from effopd.models.updates import Update


@dataclass(kw_only=True)
class Footprint:
    """What an intervention did to a model; complete once it has been applied.

    The norm of changed minus base as stored, how many tensors differ from the base or equal it, and
    the modules in which the tuned model equals the base, whatever the intervention.
    """

    update_norm: float = 0.0
    changed: int = 0
    at_base: int = 0
    never_moved: int = 0

    def add(
        self, update: Update, name: str, found: Tensor, modules: Iterable[ModuleTensor]
    ) -> None:
        """Counts one tensor, and the modules in it."""
        base, tuned = update.read_base(name), update.read_tuned(name)
        self.never_moved += sum(torch.equal(part(base, p), part(tuned, p)) for p in modules)
        if torch.equal(found, base):
            self.at_base += 1
        else:
            self.changed += 1
            self.update_norm = math.hypot(self.update_norm, norm(found.double() - base.double()))


@contextmanager
def intervened(model: nn.Module, changed: Changed) -> Iterator[Footprint]:
    """The model has the changed weights inside, and its own afterwards, bit for bit.

    Memory: a copy of the tensors that change. The base may be the live model itself
    (`MemoryWeights(model.state_dict())`). Engines with weights of their own have to be told
    (`Engine.sync_weights`) inside and afterwards.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    footprint, modules = Footprint(), tensor_modules(changed.update)
    try:
        for live, names in _live_tensors(model, changed.shapes):
            with changed.update.holding():  # of the tensor and of those tied to it
                found, *others = (changed.read(name) for name in names)
                if not all(torch.equal(found, other) for other in others):
                    raise ParameterMismatchError(
                        f"{' and '.join(names)} are one tensor of the live model, but this "
                        "intervention gives them different values: untie them, or change both alike"
                    )
                footprint.add(changed.update, names[0], found, modules.get(names[0], []))
            saved.append((live, live.detach().clone()))
            with torch.no_grad():
                live.copy_(found)
        yield footprint
    finally:
        with torch.no_grad():
            for live, original in saved:
                live.copy_(original)


def write_intervened(directory: Path, source: Path, changed: Changed) -> Footprint:
    """Writes the changed weights as a model directory; a few tensors are in memory at a time."""
    footprint, modules = Footprint(), tensor_modules(changed.update)

    def write(name: str, base: Tensor) -> Tensor:
        if name not in changed.shapes:
            return base
        with changed.update.holding({name: base}):
            found = changed.read(name)
            footprint.add(changed.update, name, found, modules.get(name, []))
        return found

    write_model(directory, source, write)
    return footprint


def _live_tensors(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[Tensor, list[str]]]:
    """Every live tensor with its names among `shapes`; tied ones have several.

    Tensors that the logits of text do not need (`extra`) may be on one side only.
    """
    live = model.state_dict(keep_vars=True)
    own = counterparts(shapes, live)
    for name, shape in shapes.items():
        if name not in own and extra(name) is not None:
            continue  # such as a value head, which no loaded model has
        if name not in own or tuple(live[own[name]].shape) != shape:
            found = tuple(live[own[name]].shape) if name in own else "not there"
            raise ParameterMismatchError(
                f"{name} of shape {shape} is {found} in {type(model).__name__}: the live model "
                "and the checkpoint must have the same architecture and names"
            )
    names: dict[int, list[str]] = {}
    for name, there in own.items():
        names.setdefault(id(live[there]), []).append(name)
    for name, tensor in live.items():
        if id(tensor) not in names and extra(name) is None:
            raise ParameterMismatchError(
                f"{name} of {type(model).__name__} is not among the changed weights: it would "
                "keep whatever value it has"
            )
    return [(live[own[found[0]]], found) for found in names.values()]
