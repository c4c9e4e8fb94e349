"""AlphaRL's prediction: leading singular components of an update, regressed on progress.

All numbers of the regression are float64; matrices are read in pieces of rows.

Source: arXiv 2510.00553. Departures are named at `AlphaPLS`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.linalg.singular_values import PIECE, above_rounding, gram_eigenvectors
from effopd.precision import float32_products
from effopd.search.direction import AlphaPLS
from effopd.search.ray import Ray, check_fits, wide


@dataclass(frozen=True, kw_only=True)
class Components:
    """Leading singular components of a matrix `sum_i s_i u_i v_i^T`, largest first.

    Column i of `scaled` is `alpha s_i u_i`, with alpha the Frobenius norm of the matrix over that
    of its leading components (zero for a matrix of zeros); column i of `right` is `v_i`.
    """

    scaled: Float64[Tensor, "m k"]
    right: Float64[Tensor, "n k"]

    def aligned(self, before: Float64[Tensor, "m k"]) -> "Components":
        """The same components, each with the sign that points along the one of `before`."""
        agreement = (self.scaled * before).sum(dim=0)
        signs = torch.where(agreement < 0, -1.0, 1.0).to(self.scaled)
        return Components(scaled=self.scaled * signs, right=self.right * signs)


def leading_components(matrix: Float[Tensor, "m n"], rank: int) -> Components:
    """The `rank` leading singular components, from the Gram matrix of the shorter side."""
    is_tall = matrix.shape[0] >= matrix.shape[1]
    flat = matrix.T if is_tall else matrix
    squares, vectors = gram_eigenvectors(flat)
    kept, short = squares[:rank], vectors[:, :rank]
    kept = torch.where(above_rounding(kept, flat.shape[1]), kept, 0.0)
    height = max(1, PIECE // flat.shape[0])
    starts = range(0, flat.shape[1], height)
    long = torch.cat([flat.T[start : start + height].double() @ short for start in starts])
    if is_tall:
        left, right = long, short
    else:
        sizes = torch.where(kept > 0, long.norm(dim=0), 0.0)
        left, right = short * sizes, long / _nonzero(sizes)
    share = kept.sum() / _nonzero(squares.sum())
    return Components(scaled=left / _nonzero(share.sqrt()), right=right)


def _nonzero(value: Tensor) -> Tensor:
    """The divisor itself, or 1 where the dividend is zero as well."""
    return torch.where(value > 0, value, torch.ones_like(value))


# Partial least squares ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProgressFit:
    """One component of partial least squares: `x = centre + t loading`, `y = mean + t slope`.

    With centred X and y: `w = X^T y / ||X^T y||`, `t = X w`, `loading = X^T t / t^T t` and
    `slope = y^T t / t^T t`, which is least squares of y on the projection t.
    """

    centre: Float64[Tensor, "d"]
    weight: Float64[Tensor, "d"]
    loading: Float64[Tensor, "d"]
    mean: float
    slope: float

    def progress_at(self, x: Float64[Tensor, "d"]) -> float:
        """Progress the fit sees at `x`."""
        return self.mean + self.slope * float((x - self.centre) @ self.weight)

    def point_at(self, progress: float) -> Float64[Tensor, "d"]:
        """The point on the component where the fit sees `progress`; the slope must not be 0."""
        return self.centre + (progress - self.mean) / self.slope * self.loading


def fit_progress(x: Float64[Tensor, "T d"], y: Float64[Tensor, "T"]) -> ProgressFit:
    """The fit to T observations; slope 0 where X and y have nothing in common."""
    centre, mean = x.mean(dim=0), y.mean()
    x, y = x - centre, y - mean
    covariance = y @ x
    weight = covariance / _nonzero(covariance.norm())
    projection = x @ weight
    energy = _nonzero(projection @ projection)
    return ProgressFit(
        centre=centre,
        weight=weight,
        loading=(projection @ x) / energy,
        mean=float(mean),
        slope=float(y @ projection / energy),
    )


def leave_one_out_r2(x: Float64[Tensor, "T d"], y: Float64[Tensor, "T"]) -> float:
    """`1 - sum (y_j - prediction without j)^2 / sum (y_j - mean)^2`; -inf for a constant y."""
    spread = float((y - y.mean()).square().sum())
    if spread == 0.0:
        return -math.inf
    missed = 0.0
    for j in range(len(y)):
        rest = [i for i in range(len(y)) if i != j]
        missed += (float(y[j]) - fit_progress(x[rest], y[rest]).progress_at(x[j])) ** 2
    return 1 - missed / spread


# What is remembered of a run ----------------------------------------------------------------------


class AlphaMemory:
    """The base, the leading components at recorded steps, and progress.

    The components of a recorded step are those of the weights the next update starts from, after
    the search, because that is what progress is measured of. So a jump needs no care: the accepted
    point is one more observation, and the regression knows nothing of steps.
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
        self._interval = settings.every  # doubles when there are more than `keep` entries
        self._entries: dict[int, dict[str, Tensor]] = {}  # step -> scaled components by name
        self._progress: dict[int, float] = {}  # of the base and of recorded steps, where known

    @float32_products()
    def displacement(self, ray: Ray, step: int, progress: float | None) -> dict[str, Tensor]:
        """`base + sum_i a*_i v_i^T - tip` by name; zero where nothing is predicted."""
        known = self._known_progress(step, progress)
        observed = {s: known[s] for s in self._entries if s in known}
        found = {name: torch.zeros_like(tip, dtype=wide(tip)) for name, tip in ray.tip.items()}
        if len(observed) < self._settings.min_snapshots:
            return found
        for name, base in self._base.items():
            # Where the regression of past components on progress sees the target.
            x = torch.stack([self._entries[s][name].flatten() for s in observed])
            y = x.new_tensor(list(observed.values()))
            fit = fit_progress(x, y)
            holds = fit.slope != 0.0 and leave_one_out_r2(x, y) >= self._settings.min_r2
            now = self._components(ray.tip[name], name)
            if not holds or not now.scaled.any():  # at the base nothing has a direction
                continue
            predicted = fit.point_at(self._settings.target)
            # Those components in the place of the present ones, right singular vectors as now.
            out = found[name].copy_(base).sub_(ray.tip[name])
            out.addmm_(predicted.view_as(now.scaled).to(out.dtype), now.right.T.to(out.dtype))
        return found

    def _components(self, point: Tensor, name: str) -> Components:
        """Of the displacement from the base, signs as at the last recorded step."""
        base = self._base[name]
        update = point.to(base.device, wide(base), copy=True).sub_(base)
        if not update.isfinite().all():
            raise NonFiniteError(f"{name} is not finite, so it has no singular components")
        found = leading_components(update, min(self._settings.rank, *base.shape))
        entries = list(self._entries.values())
        return found.aligned(entries[-1][name]) if entries else found

    def _known_progress(self, step: int, progress: float | None) -> dict[int, float]:
        """Progress by step, with that of the weights update `step` started from."""
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
        is_kept = step - 1 == 0 or step - 1 in self._entries
        return {**self._progress, step - 1: progress} if is_kept else self._progress

    def record_(self, ray: Ray, step: int, progress: float | None) -> None:
        """Notes the progress of the step before and, if due, the components now."""
        known = self._known_progress(step, progress)
        if step % self._interval == 0:
            live = ray.live
            self._entries[step] = {n: self._components(live[n], n).scaled for n in self._base}
            if len(self._entries) > self._settings.keep:  # still spans the run, half as densely
                self._interval *= 2
                kept = self._entries.items()
                self._entries = {s: entry for s, entry in kept if s % self._interval == 0}
        self._progress = {s: value for s, value in known.items() if s in {0, *self._entries}}

    def tensors(self) -> dict[str, Tensor]:
        """The base and the components by flat names, `base/NAME` and `step-8/NAME`."""
        return {f"base/{name}": tensor for name, tensor in self._base.items()} | {
            f"step-{step}/{name}": tensor
            for step, entry in self._entries.items()
            for name, tensor in entry.items()
        }

    def notes(self) -> dict[str, Any]:
        """Interval, recorded steps, and progress by step; JSON-able."""
        return {
            "interval": self._interval,
            "steps": list(self._entries),
            "progress": [list(pair) for pair in self._progress.items()],
        }

    def load_(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Restores `tensors()` and `notes()`, or changes nothing and raises."""
        steps = [int(step) for step in notes["steps"]]
        rank = self._settings.rank
        like = {
            f"step-{step}/{n}": t.new_empty(len(t), min(rank, *t.shape), dtype=torch.float64)
            for step in steps
            for n, t in self._base.items()
        }
        check_fits(tensors, {f"base/{name}": t for name, t in self._base.items()} | like)
        for name, base in self._base.items():
            base.copy_(tensors[f"base/{name}"])
        self._entries = {
            step: {
                name: tensors[f"step-{step}/{name}"].to(base.device, copy=True)
                for name, base in self._base.items()
            }
            for step in steps
        }
        self._interval = int(notes["interval"])
        self._progress = {int(step): float(value) for step, value in notes["progress"]}
