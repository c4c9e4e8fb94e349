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

from effopd.analysis.lanczos import EigenPairs, Krylov, Product, ritz_pairs
from effopd.analysis.quadratic import ParameterSpace
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.precision import float32_products
from effopd.search.rounding import above_rounding

MATTERS = 0.01
"""Share of the remaining loss above which a direction counts for the largest stable factor."""


def descent_gain(values_k: Float[Tensor, " k"], rate: float, steps: int) -> Float[Tensor, " k"]:
    """`(1 - (1 - eta lambda)^s) / lambda = eta sum_j (1 - eta lambda)^j`; `eta s` at lambda = 0.

    Stable for small `eta lambda`, where the difference would cancel. Any rate is allowed; beyond
    `2 / lambda` the gain grows without bound, as gradient descent does.

    Args:
        values_k: Eigenvalues.
        rate: eta, above 0.
        steps: s, at least 0.

    Returns:
        Gains, in the dtype of the values.

    Raises:
        ConfigError: Rate or steps are out of range.

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


def tail_gain(rate: float, steps: int, tail_values: Tensor | None = None) -> float:
    """rho_perp: the largest gain in what is left out of the leading space, equation 48.

    Args:
        rate: eta.
        steps: s.
        tail_values: Eigenvalues left out; zeros among them do not count. None bounds it for any
            that satisfy `0 < eta lambda <= 2`, by `eta s`.

    Returns:
        The bound; 0 when nothing is left out.
    """
    if tail_values is None:
        return rate * steps
    positive = tail_values[tail_values > 0]
    if not positive.numel():
        return 0.0
    return float(descent_gain(positive, rate, steps).abs().max())


@dataclass(frozen=True, kw_only=True)
class LocalTheory:
    """Prediction of gradient descent on `1/2 D^T A D - b^T D`, within the span of some pairs.

    Attributes:
        values_k: Eigenvalues, descending.
        vectors_kP: Orthonormal rows.
        coefficients_k: beta, components of b.
        perpendicular_norm: Norm of what b has outside the span, equation 45.
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
        """Largest distance of the exact `D_s` from `displacement`, equation 49.

        For eigenpairs of A; a Krylov space of m steps is exact up to step m instead.
        """
        if tail_values is not None:
            tail_values = tail_values[self._above_rounding(tail_values)]
        return tail_gain(rate, steps, tail_values) * self.perpendicular_norm

    def matching_time(self, norm: float) -> float | None:
        """When gradient flow is `norm` away from the base; None if it never gets there."""
        if norm == 0:
            return 0.0
        if not bool(self.positive_k.any()):
            return norm / self.drive_norm if self.drive_norm else None
        latest = 64 / float(self.values_k[self.positive_k].min())
        if self._flow_norm(latest) < norm:
            return None
        low, high = 0.0, latest
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self._flow_norm(middle) < norm else (low, middle)
        return high

    def _flow_norm(self, time: float) -> float:
        return float((flow_gain(self.values_k, time) * self.coefficients_k).norm())

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


def module_norms(space: ParameterSpace, vector_P: Float[Tensor, " P"]) -> dict[str, float]:
    """Norm of each tensor's part of a vector: `||b_m||` for the drive, equation 53."""
    return {name: float(part.norm()) for name, part in space.tensors(vector_P).items()}


# How far to extrapolate ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """The loss along `tip + f * update`: `L + slope f + curvature f^2 / 2`.

    Attributes:
        slope: `g^T update`, nats.
        curvature: `update^T A update`, nats.
    """

    slope: float
    curvature: float

    @property
    def factor(self) -> float | None:
        """`f* = -slope / curvature` of the minimum; None where the loss does not curve upwards.

        Away from the teacher the reverse KL may be indefinite; a fitted curvature that is not
        positive has no minimum to go to.
        """
        if not self.curvature > 0:
            return None
        return -self.slope / self.curvature

    @property
    def scale(self) -> float | None:
        """Where the minimum is on the search's ray from anchor (0) through tip (1): `1 + f*`."""
        return None if self.factor is None else 1.0 + self.factor


@float32_products()
def quadratic_parabola(
    product: Product, drive_P: Tensor, tip_P: Tensor, update_P: Tensor, *, largest: float = 0.0
) -> Parabola:
    """The local quadratic along a ray, with `g = A tip - b`; two products with A.

    Args:
        product: `v -> A v`.
        drive_P: b.
        tip_P: Displacement of the tip from the base.
        update_P: Displacement of the tip from the anchor.
        largest: Largest eigenvalue of A, if known: beside it a curvature along the ray that is
            zero up to rounding is taken for zero, so that there is no minimum.

    Returns:
        The parabola.
    """
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


def closing_factors(values_k: Float[Tensor, " k"], rate: float, steps: int) -> Tensor:
    """`q_i / (1 - q_i)` with `q_i = (1 - eta lambda_i)^(s / 2)`: closes the gap of direction i.

    The tip is after `steps` steps of gradient descent, the anchor after half of them. 0 for stiff
    directions, about `2 / (eta lambda_i s)` for soft ones, infinite where lambda is 0, which is
    where `above_rounding` says so for as many numbers as there are eigenvalues.

    Args:
        values_k: Eigenvalues.
        rate: eta.
        steps: s, even.

    Returns:
        Factors of `tip - anchor`.

    Raises:
        ConfigError: Steps are odd.
    """
    if steps < 2 or steps % 2:
        raise ConfigError(f"the anchor is at half of the steps: give an even number, got {steps}")
    kept_k = (1 - rate * values_k) ** (steps // 2)
    factors_k = kept_k / (values_k * descent_gain(values_k, rate, steps // 2))
    return torch.where(above_rounding(values_k, len(values_k)), factors_k, math.inf)


def largest_stable_factor(
    factors_k: Float[Tensor, " k"],
    remaining_loss_k: Float[Tensor, " k"],
    *,
    matters: float = MATTERS,
) -> float:
    """Twice the smallest closing factor among the directions that still matter, at least 0.

    Up to there no such direction is left farther from its optimum than it was at the tip.

    Args:
        factors_k: From `closing_factors`, or `remaining / update` as measured.
        remaining_loss_k: `lambda_i gap_i^2 / 2` of each direction at the tip.
        matters: Share of the total remaining loss that makes a direction matter.

    Returns:
        The factor; infinite when no direction has any loss left.

    Raises:
        ParameterMismatchError: The two do not belong together.
    """
    if factors_k.shape != remaining_loss_k.shape:
        raise ParameterMismatchError(
            f"one factor and one remaining loss a direction: got {tuple(factors_k.shape)} and "
            f"{tuple(remaining_loss_k.shape)}"
        )
    total = remaining_loss_k.sum()
    counted = factors_k[(remaining_loss_k > 0) & (remaining_loss_k >= matters * total)]
    return 2 * max(0.0, float(counted.min())) if counted.numel() else math.inf
