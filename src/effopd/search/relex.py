"""RELEX: the rank-1 part of a trajectory, and how fast it goes.

Everything follows from the Gram matrix of the stacked displacements, one row and column for each
recorded step: the stack itself is only read, in pieces, and never decomposed.

Source: arXiv 2605.21468.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from effopd.errors import NonFiniteError
from effopd.search.direction import Relex
from effopd.search.history import History
from effopd.search.memory import Displacement, wide
from effopd.search.past import PastSearch
from effopd.search.ray import Ray, check_fits

PIECE = 2**20
"""Elements of each row that are widened to float64 at a time."""


def gram(rows: Sequence[Tensor]) -> Float64[Tensor, "T T"]:
    """Inner products of the rows with each other, accumulated in float64.

    Args:
        rows: T tensors of one shape.
    """
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for piece in _pieces(rows):
        total += piece @ piece.T
    return total


def weighted_sum(rows: Sequence[Tensor], weights: Float64[Tensor, "T"]) -> Tensor:
    """`sum_t weights[t] * rows[t]`, accumulated in float64, in shape and dtype of a row."""
    out = torch.empty_like(rows[0])
    flat, start = out.view(-1), 0
    for piece in _pieces(rows):
        stop = start + piece.shape[1]
        flat[start:stop] = weights @ piece
        start = stop
    return out


def _pieces(rows: Sequence[Tensor]) -> Iterator[Float64[Tensor, "T n"]]:
    """The stack of the rows, some columns at a time."""
    flat = [row.reshape(-1) for row in rows]
    for start in range(0, flat[0].numel(), PIECE):
        yield torch.stack([row[start : start + PIECE] for row in flat]).double()


def speed_weights(products: Float64[Tensor, "T T"], steps: Sequence[int]) -> Float64[Tensor, "T"]:
    """Weights of the rows in the displacement that rank 1 and a line in the step predict a step.

    With `w` the leading unit eigenvector of the Gram matrix, `u = sum_t w_t row_t / sigma` is the
    leading right singular vector of the stack and `sigma w_t` the coefficient of row t. The slope
    of these over the steps times `u` is `slope(w) * sum_t w_t row_t`: the unknown sign of w, and
    sigma, cancel.

    Args:
        products: Gram matrix of the rows.
        steps: Step of each row; the base, zero at step 0, is not among them.
    """
    leading: Tensor = torch.linalg.eigh(products)[1][:, -1]
    zero = leading.new_zeros(1)
    times = torch.cat([zero, leading.new_tensor(steps)])
    times = times - times.mean()
    slope = (times @ torch.cat([zero, leading])) / (times @ times)
    return slope * leading


class RelexMemory:
    """Displacements from the base at recorded steps, and a base that takes part in jumps.

    A jump breaks the trajectory. The base is moved along by the same jump, so that displacements
    go on as if training had led there without one; the base of the next search is therefore the
    initial weights plus all accepted jumps.

    Sharded tensors: each process keeps its shards, and the Gram matrices, small and additive, are
    summed over processes, so that the displacement is that of the whole tensors.

    Args:
        settings: Interval and bound.
        ray: Names, shapes and memory of the parameters, at the base.
    """

    def __init__(self, settings: Relex, ray: Ray) -> None:
        self._base = {n: t.to(wide(t), copy=True) for n, t in ray.anchor.items()}
        self._history = History(settings.every, settings.keep)

    def displacement(
        self, ray: Ray, step: int, progress: float | None, past: Sequence[PastSearch]
    ) -> Displacement:
        """Speed of each tensor times the steps since the last search."""
        since = step - (past[-1].step if past else 0)
        return {name: self._speed(ray, name, step).mul_(since) for name in self._base}

    def _speed(self, ray: Ray, name: str, step: int) -> Tensor:
        """Predicted displacement of one tensor in one step.

        Raises:
            NonFiniteError: The tensor, now or at a recorded step, is not finite.
        """
        rows = [entry[name] for entry in self._history.entries.values()]
        rows.append(self._from_base(ray.tip, name))
        products = ray.summed_over_shards(name, gram(rows)).cpu()
        if not products.isfinite().all():
            raise NonFiniteError(
                f"{name} is or was not finite (step {step}), so its trajectory cannot be continued;"
                " check the optimizer's step"
            )
        weights = speed_weights(products, [*self._history.entries, step])
        return weighted_sum(rows, weights.to(rows[0].device))

    def record_(self, ray: Ray, step: int, progress: float | None, *, searched: bool) -> None:
        """Keeps the displacement if the step is due; moves the base by an accepted jump."""
        live, before = ray.live, ray.tip if searched else ray.live
        if self._history.is_due(step):
            self._history.append_(step, {n: self._from_base(before, n) for n in self._base})
        if searched:
            for name, base in self._base.items():
                base += live[name].to(base) - ray.tip[name].to(base)

    def _from_base(self, point: Mapping[str, Tensor], name: str) -> Tensor:
        base = self._base[name]
        return point[name].to(base) - base

    def tensors(self) -> dict[str, Tensor]:
        """The base, jumps included, and the displacements."""
        return {f"base/{n}": t for n, t in self._base.items()} | self._history.tensors()

    def notes(self) -> dict[str, Any]:
        """Interval and recorded steps."""
        return self._history.notes()

    def load_(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Restores base and displacements.

        Raises:
            ParameterMismatchError: They do not fit.
        """
        entries = {name: t for name, t in tensors.items() if not name.startswith("base/")}
        base = {f"base/{name}": tensor for name, tensor in self._base.items()}
        check_fits({n: t for n, t in tensors.items() if n not in entries}, base)
        self._history.load_(entries, notes, self._base)
        for name, tensor in base.items():
            tensor.copy_(tensors[name])
