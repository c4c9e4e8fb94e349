"""How far training moved weights: per module, summed over parts of the model, and along a path.

Read module by module; squares and products are summed in float64, in pieces. Norms of disjoint
parts add in squares, so that every sum over layers, blocks or projections follows from the modules.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Literal, TypeVar

import torch
from torch import Tensor

from effopd.errors import NonFiniteError
from effopd.models.layout import ModuleTensor
from effopd.models.updates import Update, read_at, read_module

PIECE = 2**20
"""Elements that are widened to float64 at a time."""

Part = TypeVar("Part")
Grouping = Literal["layer", "block", "layer and block", "projection", "whole"]
Group = tuple[str | int | None, ...]
_GROUPS: dict[Grouping, Callable[[ModuleTensor], Group]] = {
    "layer": lambda module: (module.layer,),
    "block": lambda module: (module.block,),
    "layer and block": lambda module: (module.layer, module.block),
    "projection": lambda module: (module.projection,),
    "whole": lambda module: (),
}


@dataclass(frozen=True, kw_only=True)
class UpdateStatistics:
    """How far one module, or several together, moved.

    `bf16_unchanged_share` is that of the elements whose value rounded to bf16 stays the same.
    """

    elements: int
    frobenius_norm: float
    base_norm: float
    max_abs: float
    bf16_unchanged_share: float

    @property
    def relative_norm(self) -> float | None:
        """Norm of the update over that of the base; None where the base is zero."""
        return self.frobenius_norm / self.base_norm if self.base_norm else None


def update_statistics(update: Tensor, base: Tensor, tuned: Tensor) -> UpdateStatistics:
    """How far one tensor moved."""
    moved = kept = unchanged = largest = 0.0
    for piece, before, after in _pieces(update, base, tuned):
        moved += _square(piece)
        kept += _square(before)
        largest = max(largest, piece.abs().max().item())
        unchanged += (before.bfloat16() == after.bfloat16()).sum().item()
    if not math.isfinite(moved + kept):
        raise NonFiniteError("a weight is NaN or infinite: a checkpoint is damaged or diverged")
    return UpdateStatistics(
        elements=update.numel(),
        frobenius_norm=math.sqrt(moved),
        base_norm=math.sqrt(kept),
        max_abs=largest,
        bf16_unchanged_share=unchanged / update.numel(),
    )


def module_statistics(update: Update, module: ModuleTensor) -> UpdateStatistics:
    """`update_statistics` of one module."""
    base, tuned = read_at(update.read_base, module), read_at(update.read_tuned, module)
    return update_statistics(read_module(update, module), base, tuned)


def summed_statistics(parts: Iterable[UpdateStatistics]) -> UpdateStatistics:
    """Statistics of several disjoint parts together."""
    parts = list(parts)
    elements = sum(part.elements for part in parts)
    unchanged = math.fsum(part.bf16_unchanged_share * part.elements for part in parts)
    return UpdateStatistics(
        elements=elements,
        frobenius_norm=math.hypot(*(part.frobenius_norm for part in parts)),
        base_norm=math.hypot(*(part.base_norm for part in parts)),
        max_abs=max(part.max_abs for part in parts),
        bf16_unchanged_share=min(unchanged / elements, 1.0),
    )


@dataclass(frozen=True, kw_only=True)
class PathGeometry:
    """The path of the weights through T checkpoints W_1, ..., W_T after the base W_0.

    It holds squares and products, which add over disjoint parts of the model; everything else
    follows: `|W_t - W_{t-1}|**2`, `<W_{t+1} - W_t, W_t - W_{t-1}>` (one fewer), `|W_t - W_0|**2`.
    A step is from one checkpoint to the next, however many optimizer steps that is.
    """

    step_squares: tuple[float, ...]
    step_products: tuple[float, ...]
    displacement_squares: tuple[float, ...]

    @property
    def step_norms(self) -> list[float]:
        """Norm of every step."""
        return [math.sqrt(square) for square in self.step_squares]

    @property
    def step_cosines(self) -> list[float | None]:
        """Cosine between each step and the next, T - 1 of them; None where one is zero."""
        sizes = [a * b for a, b in itertools.pairwise(self.step_norms)]
        return [
            max(-1.0, min(product / size, 1.0)) if size else None
            for product, size in zip(self.step_products, sizes, strict=True)
        ]

    @property
    def path_length(self) -> float:
        """Sum of the steps' norms."""
        return math.fsum(self.step_norms)

    @property
    def straightness(self) -> float | None:
        """Last displacement over path length, in [0, 1]; None if nothing ever moved."""
        length = self.path_length
        return min(math.sqrt(self.displacement_squares[-1]) / length, 1.0) if length else None


def path_geometry(displacements: Iterable[Tensor]) -> PathGeometry:
    """Geometry of the path of one tensor; three of the displacements are in memory at a time."""
    before = previous = None
    steps, products, distances = [], [], []
    for current in displacements:
        if before is None or previous is None:
            before = previous = torch.zeros_like(current)
        step = product = distance = 0.0
        for now, last, older in _pieces(current, previous, before):
            moved = now - last
            step += _square(moved)
            product += torch.dot(moved, last - older).item()
            distance += _square(now)
        steps.append(step)
        products.append(product)
        distances.append(distance)
        before, previous = previous, current
    if not all(map(math.isfinite, [*steps, *distances])):
        raise NonFiniteError("a weight is NaN or infinite: a checkpoint is damaged or diverged")
    return PathGeometry(
        step_squares=tuple(steps),
        step_products=tuple(products[1:]),
        displacement_squares=tuple(distances),
    )


def summed_paths(parts: Iterable[PathGeometry]) -> PathGeometry:
    """Path of several disjoint parts together."""
    columns = zip(*(astuple(part) for part in parts), strict=True)
    totals = (tuple(map(math.fsum, zip(*rows, strict=True))) for rows in columns)
    names = (field.name for field in fields(PathGeometry))
    return PathGeometry(**dict(zip(names, totals, strict=True)))


def grouped(
    rows: Iterable[tuple[ModuleTensor, Part]], grouping: Grouping
) -> Mapping[Group, list[Part]]:
    """Rows that belong together, to be summed by `summed_statistics` or `summed_paths`."""
    groups: dict[Group, list[Part]] = {}
    for module, part in rows:
        groups.setdefault(_GROUPS[grouping](module), []).append(part)
    return groups


def _pieces(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Corresponding pieces of tensors of one shape, in float64."""
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), PIECE):
        yield [tensor[start : start + PIECE].double() for tensor in flat]


def _square(piece: Tensor) -> float:
    return torch.dot(piece, piece).item()
