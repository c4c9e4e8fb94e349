"""What `AlphaPLS` remembers: components of past updates and the progress they were at."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.precision import float32_products
from effopd.search.alpha import Components, leading_components, predicted_components
from effopd.search.direction import AlphaPLS
from effopd.search.history import History
from effopd.search.memory import Displacement, wide
from effopd.search.past import PastSearch
from effopd.search.ray import Ray, check_fits


class AlphaMemory:
    """The base, the leading components at recorded steps, and progress.

    The components of a recorded step are those of the weights the next update starts from, after
    the search, because that is what progress is measured of. So a jump needs no care: the accepted
    point is one more observation, and the regression knows nothing of steps.

    Args:
        settings: What to record and how to predict.
        ray: Names, shapes and memory of the parameters, at the base.

    Raises:
        ConfigError: The parameters are sharded, or there is no matrix among them.
    """

    def __init__(self, settings: AlphaPLS, ray: Ray) -> None:
        if ray.is_sharded:
            raise ConfigError(
                "alpha_pls takes singular vectors of whole matrices and the parameters are sharded "
                "over processes: use another direction, or train on one process"
            )
        self._base = {name: t.clone() for name, t in ray.anchor.items() if t.ndim == 2}
        if not self._base:
            raise ConfigError(
                f"alpha_pls predicts matrices and there is none among {list(ray.anchor)[:3]} "
                f"({len(ray.anchor)} tensors in all): select parameters with two axes"
            )
        self._settings = settings
        self._history = History(settings.every, settings.keep)
        self._progress: dict[int, float] = {}  # of the base and of recorded steps, where known

    def displacement(
        self, ray: Ray, step: int, progress: float | None, past: Sequence[PastSearch]
    ) -> Displacement:
        """To the predicted weights; zero where nothing is predicted."""
        known = self._known_progress(step, progress)
        observed = {s: known[s] for s in self._history.entries if s in known}
        found = {name: torch.zeros_like(tip, dtype=wide(tip)) for name, tip in ray.tip.items()}
        if len(observed) >= self._settings.min_snapshots:
            for name in self._base:
                self._predict_(found[name], ray.tip[name], name, observed)
        return found

    @float32_products()
    def _predict_(self, out: Tensor, tip: Tensor, name: str, observed: Mapping[int, float]) -> None:
        """Writes `base + sum_i a*_i v_i^T - tip` of one matrix, if the regression holds up."""
        entries = self._history.entries
        x = torch.stack([entries[step][name].flatten() for step in observed])
        y = x.new_tensor(list(observed.values()))
        target, min_r2 = self._settings.target, self._settings.min_r2
        predicted = predicted_components(x, y, target=target, min_r2=min_r2)
        if predicted is None:
            return
        now = self._components(tip, name)
        if not now.scaled.any():  # back at the base, where nothing has a direction
            return
        out.copy_(self._base[name]).sub_(tip)
        out.addmm_(predicted.view_as(now.scaled).to(out.dtype), now.right.T.to(out.dtype))

    def _components(self, point: Tensor, name: str) -> Components:
        """Of the displacement from the base, signs as at the last recorded step.

        Raises:
            NonFiniteError: The tensor is not finite.
        """
        base = self._base[name]
        update = point.to(base.device, wide(base), copy=True).sub_(base)
        if not update.isfinite().all():
            raise NonFiniteError(f"{name} is not finite, so it has no singular components")
        found = leading_components(update, self._rank(base))
        entries = list(self._history.entries.values())
        return found.aligned(entries[-1][name]) if entries else found

    def _rank(self, matrix: Tensor) -> int:
        rows, columns = matrix.shape
        return min(self._settings.rank, rows, columns)

    def _known_progress(self, step: int, progress: float | None) -> dict[int, float]:
        """Progress by step, with that of the weights update `step` started from.

        Raises:
            ConfigError: None was ever given.
            NonFiniteError: It is no finite number.
        """
        if progress is None:
            if not self._progress:
                raise ConfigError(
                    "alpha_pls regresses on progress and got none: call step(step, progress=p) "
                    "with the progress of the weights the update started from, 0 at the base and 1 "
                    "at the teacher"
                )
            return self._progress
        if not math.isfinite(progress):
            raise NonFiniteError(f"progress must be a finite number, got {progress} at {step}")
        is_kept = step - 1 == 0 or step - 1 in self._history.entries
        return {**self._progress, step - 1: progress} if is_kept else self._progress

    def record_(self, ray: Ray, step: int, progress: float | None, *, searched: bool) -> None:
        """Notes the progress of the step before and, if due, the components now."""
        known = self._known_progress(step, progress)
        if self._history.is_due(step):
            live = ray.live
            entry = {name: self._components(live[name], name).scaled for name in self._base}
            self._history.append_(step, entry)
        kept = {0, *self._history.entries}
        self._progress = {s: value for s, value in known.items() if s in kept}

    def tensors(self) -> dict[str, Tensor]:
        """The base and the components."""
        return {f"base/{n}": t for n, t in self._base.items()} | self._history.tensors()

    def notes(self) -> dict[str, Any]:
        """Interval, recorded steps, and progress by step."""
        return {
            **self._history.notes(),
            "progress": [list(pair) for pair in self._progress.items()],
        }

    def load_(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Restores base, components and progress.

        Raises:
            ParameterMismatchError: The tensors do not fit.
        """
        like = {
            name: base.new_empty(base.shape[0], self._rank(base), dtype=torch.float64)
            for name, base in self._base.items()
        }
        entries = {name: t for name, t in tensors.items() if not name.startswith("base/")}
        base = {f"base/{name}": tensor for name, tensor in self._base.items()}
        check_fits({n: t for n, t in tensors.items() if n not in entries}, base)
        self._history.load_(entries, notes, like)
        for name, tensor in base.items():
            tensor.copy_(tensors[name])
        self._progress = {int(step): float(value) for step, value in notes["progress"]}
