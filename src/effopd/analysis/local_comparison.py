"""The local theory against what training did: displacements, losses, and the search's scale.

Legend: P trained parameters.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.analysis.local_theory import (
    LocalTheory,
    Parabola,
    fitted_parabola,
    largest_stable_factor,
    quadratic_parabola,
)
from effopd.analysis.quadratic import FrozenLoss
from effopd.errors import ConfigError
from effopd.precision import float32_products


@dataclass(frozen=True, kw_only=True)
class DescentRow:
    """Gradient descent on the frozen loss after some steps, and its prediction.

    Attributes:
        rate: eta.
        step: Steps done.
        norm: Distance from the base.
        cosine: Of the displacement with the predicted one; None where one of them is zero.
        norm_ratio: Length over predicted length.
        loss: Frozen loss, nats a token.
        predicted_loss: Loss of the base plus the change of the quadratic.
    """

    rate: float
    step: int
    norm: float
    cosine: float | None
    norm_ratio: float | None
    loss: float
    predicted_loss: float


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """A checkpoint of a run, and the theory's displacement of the same length.

    Training with Adam has no rate of gradient descent, so the prediction is gradient flow at the
    time at which it is as far from the base.

    Attributes:
        step: Optimizer steps done.
        norm: Distance from the base.
        time: `t = eta s` of the prediction; None where the flow never gets that far: the prediction
            is then where it ends.
        cosine: With the prediction.
        cosine_drive: With b, the first step of gradient descent.
        cosine_sign: With sign(b), the first step of Adam.
        leading_share: Share of the squared length inside the leading eigenspace, in [0, 1].
        loss: Frozen loss, nats a token.
        quadratic_loss: Loss of the base plus `1/2 D^T A D - b^T D` of the checkpoint itself.
        flow_loss: Frozen loss of the prediction.
    """

    step: int
    norm: float
    time: float | None
    cosine: float | None
    cosine_drive: float | None
    cosine_sign: float | None
    leading_share: float
    loss: float
    quadratic_loss: float
    flow_loss: float


@dataclass(frozen=True, kw_only=True)
class ScaleRow:
    """One search of a run: where it ended, and where the theory says the loss is least.

    Scales are on the ray from the anchor (0) through the tip (1).

    Attributes:
        step: Step of the search.
        accepted_scale: Where it ended.
        theory: The quadratic at the base, `f* = -g^T update / (update^T A update)`.
        fitted: The parabola through the frozen loss at scales 0, 1 and 2.
        least_scale: Scale of the smallest frozen loss among those tried.
        stable_scale: Largest scale at which no leading direction that matters gets worse.
        update_norm: Distance from the anchor to the tip.
    """

    step: int
    accepted_scale: float
    theory: Parabola
    fitted: Parabola
    least_scale: float
    stable_scale: float
    update_norm: float


SCALES = (0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
"""Scales at which the frozen loss is looked at."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A frozen loss with its predictions.

    Attributes:
        loss: The loss.
        drive_P: Its b.
        krylov: Prediction from the Krylov space of b.
        leading: Prediction from the leading eigenpairs of A.
        base_loss: Loss of the base.
    """

    loss: FrozenLoss
    drive_P: Float[Tensor, " P"]
    krylov: LocalTheory
    leading: LocalTheory
    base_loss: float

    @float32_products()
    def quadratic_loss(self, update_P: Float[Tensor, " P"]) -> float:
        """Loss of the base plus `1/2 D^T A D - b^T D`; one product with A."""
        change = float(update_P @ self.loss.curvature_product(update_P)) / 2
        return self.base_loss + change - float(self.drive_P @ update_P)

    def descent(self, rate: float, steps: Sequence[int]) -> Iterator[DescentRow]:
        """Walks plain gradient descent on the frozen loss and compares it at some steps.

        Ends early where the loss or the gradient is not finite any more: the rate is too large.

        Args:
            rate: eta.
            steps: Ascending, at least 1.

        Yields:
            One row for each step reached.

        Raises:
            ConfigError: The steps are not ascending from 1 or more.
        """
        if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1:
            raise ConfigError(f"steps must be ascending and at least 1, got {list(steps)}")
        update_P = torch.zeros_like(self.drive_P)
        for step in range(1, steps[-1] + 1):
            update_P = update_P - rate * self.loss.gradient(update_P)
            if step not in steps:
                continue
            loss = self.loss.loss(update_P)
            if not math.isfinite(loss):
                return
            predicted_P = self.krylov.displacement(rate, step)
            yield DescentRow(
                rate=rate,
                step=step,
                norm=float(update_P.norm()),
                cosine=cosine(update_P, predicted_P),
                norm_ratio=_ratio(update_P, predicted_P),
                loss=loss,
                predicted_loss=self.base_loss + self.krylov.change(rate, step),
            )

    @float32_products()
    def checkpoint(self, step: int, update_P: Float[Tensor, " P"]) -> CheckpointRow:
        """Compares the displacement of a checkpoint from the base."""
        norm = float(update_P.norm())
        time = self.krylov.matching_time(norm)
        flow_P = self.krylov.optimum() if time is None else self.krylov.flow(time)
        inside_k = self.leading.vectors_kP @ update_P
        return CheckpointRow(
            step=step,
            norm=norm,
            time=time,
            cosine=cosine(update_P, flow_P),
            cosine_drive=cosine(update_P, self.drive_P),
            cosine_sign=cosine(update_P, self.drive_P.sign()),
            leading_share=float(inside_k.square().sum()) / norm**2 if norm else 0.0,
            loss=self.loss.loss(update_P),
            quadratic_loss=self.quadratic_loss(update_P),
            flow_loss=self.loss.loss(flow_P),
        )

    @float32_products()
    def search(self, step: int, accepted_scale: float, tip_P: Tensor, anchor_P: Tensor) -> ScaleRow:
        """Compares the scale at which a search ended.

        Args:
            step: Step of the search.
            accepted_scale: Where it ended.
            tip_P: Displacement of the tip from the base.
            anchor_P: Displacement from the base of where the ray starts.
        """
        update_P = tip_P - anchor_P
        losses = {s: self.loss.loss(anchor_P + s * update_P) for s in SCALES}
        finite = {s: loss for s, loss in losses.items() if math.isfinite(loss)}
        product = self.loss.curvature_product
        return ScaleRow(
            step=step,
            accepted_scale=accepted_scale,
            theory=quadratic_parabola(
                product,
                self.drive_P,
                tip_P,
                update_P,
                largest=float(self.leading.values_k.max()),
            ),
            fitted=fitted_parabola(losses[0.0], losses[1.0], losses[2.0]),
            least_scale=min(finite, key=finite.__getitem__),
            stable_scale=1.0 + self._stable_factor(tip_P, update_P),
            update_norm=float(update_P.norm()),
        )

    def _stable_factor(self, tip_P: Tensor, update_P: Tensor) -> float:
        """Twice the smallest `gap_i / update_i` among the leading directions that matter.

        The gap of a direction is what is left to its optimum `beta_i / lambda_i`.
        """
        positive_k = self.leading.positive_k
        values_k = self.leading.values_k[positive_k]
        vectors_kP = self.leading.vectors_kP[positive_k]
        optimum_k = self.leading.coefficients_k[positive_k] / values_k
        gap_k = optimum_k - vectors_kP @ tip_P
        moved_k = vectors_kP @ update_P
        return largest_stable_factor(gap_k / moved_k, values_k * gap_k.square() / 2)


def compare_trajectory(
    comparison: Comparison,
    rates: Sequence[float],
    steps: Sequence[int],
    checkpoints: Mapping[int, Float[Tensor, " P"]],
) -> tuple[list[DescentRow], list[CheckpointRow]]:
    """Prediction against gradient descent at every rate, and against the checkpoints of a run.

    Args:
        comparison: Loss and predictions.
        rates: eta.
        steps: Steps of gradient descent to look at, ascending.
        checkpoints: Step -> displacement from the base.

    Returns:
        Rows of gradient descent, rate by rate, and rows of checkpoints.
    """
    descents = [row for rate in rates for row in comparison.descent(rate, steps)]
    return descents, [comparison.checkpoint(step, d) for step, d in checkpoints.items()]


@float32_products()
def cosine(first_P: Tensor, second_P: Tensor) -> float | None:
    """Cosine of two vectors; None where one is zero."""
    norms = float(first_P.norm() * second_P.norm())
    return float(first_P @ second_P) / norms if norms else None


def _ratio(first_P: Tensor, second_P: Tensor) -> float | None:
    norm = float(second_P.norm())
    return float(first_P.norm()) / norm if norm else None
