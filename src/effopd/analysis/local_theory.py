"""What gradient descent does on the local quadratic, in closed form.

With eigenpairs `(lambda_i, u_i)` of A and `beta_i = <b, u_i>`, s steps of rate eta from the base
lead to `D_s = sum_i g_i beta_i u_i` with the gain `g_i = (1 - (1 - eta lambda_i)^s) / lambda_i`.
The pairs are either the leading ones of A, or those of A restricted to the Krylov space of b.

Legend: P trained parameters, k pairs.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from effopd.errors import ConfigError
from effopd.linalg.krylov import EigenPairs, Krylov, Product, ritz_pairs
from effopd.linalg.singular_values import above_rounding
from effopd.precision import float32_products

MATTERS = 0.01
"""Share of the remaining loss above which a direction counts for the largest stable factor."""


def descent_gain(values_k: Float[Tensor, " k"], rate: float, steps: int) -> Float[Tensor, " k"]:
    """`(1 - (1 - eta lambda)^s) / lambda = eta sum_j (1 - eta lambda)^j`; `eta s` at lambda = 0.

    Stable for small `eta lambda`, where the difference would cancel. Any rate is allowed; beyond
    `2 / lambda` the gain grows without bound, as gradient descent does.

    Source: arXiv 2605.11739, equations 42 and 44.
    """
    if not (rate > 0 and math.isfinite(rate) and steps >= 0):
        raise ConfigError(f"expected a rate above 0 and steps >= 0, got {rate} and {steps}")
    x_k = rate * values_k
    careful_k = -torch.expm1(steps * torch.log1p(-x_k.clamp(max=0.5)))
    plain_k = 1 - (1 - x_k) ** steps
    nonzero_k = torch.where(values_k == 0, 1.0, values_k)
    gains_k = torch.where(x_k < 0.5, careful_k, plain_k) / nonzero_k
    return torch.where(values_k == 0, rate * steps, gains_k)


def flow_gain(values_k: Float[Tensor, " k"], time: float) -> Float[Tensor, " k"]:
    """`(1 - exp(-t lambda)) / lambda`: the gain for a small rate, at time `t = eta s`."""
    nonzero_k = torch.where(values_k == 0, 1.0, values_k)
    return torch.where(values_k == 0, time, -torch.expm1(-time * values_k) / nonzero_k)


@dataclass(frozen=True, kw_only=True)
class LocalTheory:
    """Prediction of gradient descent on `1/2 D^T A D - b^T D`, within the span of some pairs.

    Eigenvalues descend; `coefficients_k` are beta, components of b, and `perpendicular_norm` is the
    norm of what b has outside the span (equation 45).
    """

    values_k: Float[Tensor, " k"]
    vectors_kP: Float[Tensor, "k P"]
    coefficients_k: Float[Tensor, " k"]
    perpendicular_norm: float

    @cached_property
    def drive_norm(self) -> float:
        """`||b||`."""
        return math.hypot(float(self.coefficients_k.norm()), self.perpendicular_norm)

    @cached_property
    def positive_k(self) -> Bool[Tensor, " k"]:
        """Which eigenvalues are certainly positive: above 0, and `above_rounding` for P numbers."""
        return (self.values_k > 0) & self._above_rounding(self.values_k)

    def _above_rounding(self, values: Tensor) -> Tensor:
        largest = float(self.values_k.abs().max()) if len(self.values_k) else None
        size, dtype = self.vectors_kP.shape[1], self.vectors_kP.dtype
        return above_rounding(values, size, largest=largest, dtype=dtype)

    def displacement(self, rate: float, steps: int) -> Float[Tensor, " P"]:
        """`D_s`, equation 44, without the part of b outside the span."""
        return self._along(descent_gain(self.values_k, rate, steps))

    def flow(self, time: float) -> Float[Tensor, " P"]:
        """The displacement of gradient flow at `time`, the limit of small rates."""
        return self._along(flow_gain(self.values_k, time))

    def optimum(self) -> Float[Tensor, " P"]:
        """`sum_(lambda_i > 0) (beta_i / lambda_i) u_i`, equation 43: where descent ends.

        The pseudo-inverse of A leaves out values that are zero up to rounding, see `positive_k`.
        """
        return self._along(torch.where(self.positive_k, 1 / self.values_k, 0.0))

    def change(self, rate: float, steps: int) -> float:
        """`1/2 D_s^T A D_s - b^T D_s` (nats): what the loss changes by."""
        d_k = descent_gain(self.values_k, rate, steps) * self.coefficients_k
        return float((d_k * (self.values_k * d_k / 2 - self.coefficients_k)).sum())

    def error_bound(self, rate: float, steps: int, tail_values: Tensor | None = None) -> float:
        """Largest distance of the exact `D_s` from `displacement`, equations 48 and 49.

        For eigenpairs of A; a Krylov space of m steps is exact up to step m instead.
        """
        gain = rate * steps
        if tail_values is not None:
            tail = tail_values[(tail_values > 0) & self._above_rounding(tail_values)]
            gain = float(descent_gain(tail, rate, steps).abs().max()) if len(tail) else 0.0
        return gain * self.perpendicular_norm

    def matching_time(self, norm: float) -> float | None:
        """When gradient flow is `norm` away from the base; None if it never gets there."""
        if norm == 0:
            return 0.0
        if not bool(self.positive_k.any()):
            return norm / self.drive_norm if self.drive_norm else None

        def distance(time: float) -> float:
            return float((flow_gain(self.values_k, time) * self.coefficients_k).norm())

        low, high = 0.0, 64 / float(self.values_k[self.positive_k].min())
        if distance(high) < norm:
            return None
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if distance(middle) < norm else (low, middle)
        return high

    @float32_products()
    def _along(self, gains_k: Tensor) -> Tensor:
        weights_k = gains_k * self.coefficients_k
        return weights_k.to(self.vectors_kP) @ self.vectors_kP


@float32_products()
def leading_theory(pairs: EigenPairs, drive_P: Float[Tensor, " P"]) -> LocalTheory:
    """The prediction from the leading eigenpairs of A, equations 46 to 49."""
    coefficients_k = pairs.vectors_kP @ drive_P
    outside_P = drive_P - coefficients_k @ pairs.vectors_kP
    return LocalTheory(
        values_k=pairs.values_k,
        vectors_kP=pairs.vectors_kP,
        coefficients_k=coefficients_k.to(pairs.values_k),
        perpendicular_norm=float(outside_P.norm()),
    )


@float32_products()
def krylov_theory(krylov: Krylov) -> LocalTheory:
    """The prediction from the Krylov space of b: exact for as many steps as the space has.

    `D_s` is a polynomial of degree s - 1 in A applied to b. Later steps are exact once the space is
    invariant, and otherwise as good as the space's largest and smallest pairs have settled.
    """
    pairs = ritz_pairs(krylov)
    first_k = (pairs.vectors_kP @ krylov.basis_mP[0]).to(pairs.values_k)
    return LocalTheory(
        values_k=pairs.values_k,
        vectors_kP=pairs.vectors_kP,
        coefficients_k=first_k * krylov.start_norm,
        perpendicular_norm=0.0,
    )


# How far to extrapolate ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """The loss along `tip + f * update`: `L + slope f + curvature f^2 / 2`, in nats."""

    slope: float
    curvature: float

    @property
    def factor(self) -> float | None:
        """`f* = -slope / curvature` of the minimum; None where the loss does not curve upwards."""
        return -self.slope / self.curvature if self.curvature > 0 else None

    @property
    def scale(self) -> float | None:
        """Where the minimum is on the search's ray from anchor (0) through tip (1): `1 + f*`."""
        return None if self.factor is None else 1.0 + self.factor


@float32_products()
def quadratic_parabola(
    product: Product, drive_P: Tensor, tip_P: Tensor, update_P: Tensor, *, largest: float = 0.0
) -> Parabola:
    """The local quadratic along a ray, with `g = A tip - b`; two products with A."""
    gradient_P = product(tip_P) - drive_P
    curvature, square = update_P @ product(update_P), float(update_P @ update_P)
    counts = above_rounding(
        curvature, update_P.numel(), largest=largest * square, dtype=update_P.dtype
    )
    return Parabola(
        slope=float(gradient_P @ update_P), curvature=float(curvature) if counts else 0.0
    )


def fitted_parabola(anchor: float, tip: float, beyond: float) -> Parabola:
    """The parabola through the losses at f = -1, 0 and 1, scales 0, 1 and 2.

    A curvature that is no more than rounding of these losses is taken for zero.
    """
    curvature = torch.tensor(beyond - 2 * tip + anchor, dtype=torch.float64)
    counts = above_rounding(curvature, 1, largest=max(map(abs, (anchor, tip, beyond))))
    return Parabola(slope=(beyond - anchor) / 2, curvature=float(curvature) if counts else 0.0)


def largest_stable_factor(theory: LocalTheory, tip_P: Tensor, update_P: Tensor) -> float:
    """Twice the smallest `gap_i / update_i` among the directions that still matter, at least 0.

    The gap of a direction is what is left to its optimum `beta_i / lambda_i`; up to this factor no
    such direction is left farther from its optimum than it was at the tip. A direction matters that
    holds `MATTERS` of the remaining loss `lambda_i gap_i^2 / 2`. Infinite when none has any.
    """
    positive_k = theory.positive_k
    values_k, vectors_kP = theory.values_k[positive_k], theory.vectors_kP[positive_k]
    gap_k = theory.coefficients_k[positive_k] / values_k - vectors_kP @ tip_P
    loss_k = values_k * gap_k.square() / 2
    counted_k = (loss_k > 0) & (loss_k >= MATTERS * loss_k.sum())
    factors = (gap_k / (vectors_kP @ update_P))[counted_k]
    return 2 * max(0.0, float(factors.min())) if len(factors) else math.inf
