"""The local theory of a run against what the run did: displacements, losses, and scales.

Legend: n contexts, N contexts of a batch, V vocabulary, P trained parameters.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.analysis.local_theory import (
    LocalTheory,
    fitted_parabola,
    krylov_theory,
    largest_stable_factor,
    leading_theory,
    quadratic_parabola,
)
from effopd.analysis.quadratic import ContextBatch, FrozenLoss, fisher_product
from effopd.errors import ConfigError
from effopd.linalg.krylov import OnStep, krylov_space, leading_eigenpairs
from effopd.linalg.singular_values import above_rounding
from effopd.models.layout import module_of
from effopd.precision import float32_products
from effopd.records import Row

RATE_SHARES = (0.1, 0.5, 1.0, 1.9)
"""Rates of gradient descent, in units of 1 / lambda_1; above 2 it diverges."""
SCALES = (0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
"""Scales of a search's ray at which the frozen loss is evaluated."""
SAMPLED_CONTEXTS = 64
"""Contexts whose gradients are compared."""
HESSIAN_STEPS = 12
"""Products with the Hessian of the loss; its extreme values settle first."""
SEED = 0
"""Of the first Lanczos vector and of the sampled contexts."""


@dataclass(frozen=True, kw_only=True)
class PastRay:
    """The ray of one search: steps done before it, the scale where it ended, and displacements.

    `anchor_P` is equal to `tip_P` in what does not move.
    """

    step: int
    scale: float
    tip_P: Tensor
    anchor_P: Tensor


@dataclass(frozen=True, kw_only=True)
class Theory:
    """Numbers of the whole run, and tables by name: descent, checkpoints, scales, modules."""

    summary: Row
    tables: Mapping[str, list[Row]]


def compute_theory(
    loss: FrozenLoss,
    checkpoints: Mapping[int, Float[Tensor, " P"]],
    rays: Sequence[PastRay],
    *,
    rank: int = 16,
    steps: int = 32,
    advantages: Sequence[float] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Theory:
    """Computes the local theory of a base model and holds a run against it.

    `checkpoints` are step -> displacement from the base, ascending; `advantages` one a context, of
    the answer it is part of. A number that does not exist or is not finite is None; docs/theory.md
    explains the columns.
    """

    def told(what: str) -> OnStep:
        return lambda count: report(f"{what}: {count} products") if count % 8 == 0 else None

    # The Krylov space of b, and the leading eigenpairs of A.
    drive_P = loss.drive()
    if not float(drive_P.norm()):
        raise ConfigError(
            "teacher and base model agree on every context: there is nothing to learn"
        )
    size, product = drive_P.numel(), loss.curvature_product
    on_step = told("Krylov space of b")
    krylov = krylov_space(product, drive_P, min(steps, size), on_step=on_step)
    generator = torch.Generator().manual_seed(SEED)
    start_P = torch.randn(size, generator=generator, dtype=torch.float64).to(drive_P)
    on_step = told("eigenpairs")
    pairs = leading_eigenpairs(product, start_P, min(rank, size), tolerance=1e-4, on_step=on_step)
    compared = Comparison(
        loss=loss,
        drive_P=drive_P,
        krylov=krylov_theory(krylov),
        leading=leading_theory(pairs, drive_P),
        residuals=pairs.residuals_k.tolist(),
        base_loss=loss.loss(),
    )
    rates = [share / float(compared.leading.values_k[0]) for share in RATE_SHARES]
    report(f"gradient descent: {len(rates)} rates, {steps} steps each")
    marks = sorted({2**n for n in range(steps.bit_length())} | {steps})
    descents = [row for rate in rates for row in compared.descent(rate, marks)]
    visited = [compared.checkpoint(step, update_P) for step, update_P in checkpoints.items()]
    report(f"searches: {len(rays)}")
    searched = [compared.search(ray) for ray in rays]
    last_P = checkpoints[max(checkpoints)] if checkpoints else None
    tables: dict[str, list[Row]] = {"descent": descents, "checkpoints": visited}
    tables |= {"scales": searched, "modules": compared.modules(last_P)}
    # Gradients of single contexts, drawn without replacement.
    report(f"gradients of {min(SAMPLED_CONTEXTS, loss.contexts)} contexts")
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.randperm(loss.contexts, generator=generator)[:SAMPLED_CONTEXTS].tolist()
    drawn = None if advantages is None else [advantages[context] for context in chosen]
    summary = compared.summary(report) | estimator_covariances(loss, chosen, drawn)
    shown = {name: list(map(_finite, rows)) for name, rows in tables.items()}
    return Theory(summary=_finite(summary), tables=shown)


def _finite(row: Row) -> Row:
    lost = {key for key, cell in row.items() if isinstance(cell, float) and not math.isfinite(cell)}
    return row | dict.fromkeys(lost)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A frozen loss, its b, and the predictions from the Krylov space of b and from eigenpairs."""

    loss: Any
    drive_P: Float[Tensor, " P"]
    krylov: LocalTheory
    leading: LocalTheory
    residuals: Sequence[float]
    base_loss: float

    def descent(self, rate: float, steps: Sequence[int]) -> Iterator[Row]:
        """Walks plain gradient descent on the frozen loss; a row at each of the ascending steps.

        Ends early where the loss is not finite any more: the rate is too large.
        """
        update_P = torch.zeros_like(self.drive_P)
        for step in range(1, steps[-1] + 1):
            update_P = update_P - rate * self.loss.gradient(update_P)
            if step not in steps:
                continue
            loss = self.loss.loss(update_P)
            if not math.isfinite(loss):
                return
            predicted_P = self.krylov.displacement(rate, step)
            norm, predicted_norm = float(update_P.norm()), float(predicted_P.norm())
            yield {
                "rate": rate,
                "step": step,
                "norm": norm,
                "cosine": cosine(update_P, predicted_P),
                "norm_ratio": norm / predicted_norm if predicted_norm else None,
                "loss": loss,
                "predicted_loss": self.base_loss + self.krylov.change(rate, step),
            }

    @float32_products()
    def checkpoint(self, step: int, update_P: Float[Tensor, " P"]) -> Row:
        """Compares the displacement of a checkpoint with gradient flow of the same length.

        Training with Adam has no rate of gradient descent. Where the flow never gets that far, the
        prediction is where it ends.
        """
        norm = float(update_P.norm())
        time = self.krylov.matching_time(norm)
        flow_P = self.krylov.optimum() if time is None else self.krylov.flow(time)
        inside_k = self.leading.vectors_kP @ update_P
        change = float(update_P @ self.loss.curvature_product(update_P)) / 2
        return {
            "step": step,
            "norm": norm,
            "time": time,
            "cosine": cosine(update_P, flow_P),
            "cosine_drive": cosine(update_P, self.drive_P),
            "cosine_sign": cosine(update_P, self.drive_P.sign()),
            "leading_share": float(inside_k.square().sum()) / norm**2 if norm else 0.0,
            "loss": self.loss.loss(update_P),
            "quadratic_loss": self.base_loss + change - float(self.drive_P @ update_P),
            "flow_loss": self.loss.loss(flow_P),
        }

    @float32_products()
    def search(self, ray: PastRay) -> Row:
        """Compares where a search ended with the scale at which the theory's loss is least."""
        update_P = ray.tip_P - ray.anchor_P
        losses = {s: self.loss.loss(ray.anchor_P + s * update_P) for s in SCALES}
        finite = {s: loss for s, loss in losses.items() if math.isfinite(loss)}
        theory = quadratic_parabola(
            self.loss.curvature_product,
            self.drive_P,
            ray.tip_P,
            update_P,
            largest=float(self.leading.values_k.max()),
        )
        fitted = fitted_parabola(losses[0.0], losses[1.0], losses[2.0])
        return {
            "step": ray.step,
            "accepted_scale": ray.scale,
            "theory_scale": theory.scale,
            "fitted_scale": fitted.scale,
            "least_scale": min(finite, key=finite.__getitem__),
            "stable_scale": 1.0 + largest_stable_factor(self.leading, ray.tip_P, update_P),
            "theory_curvature": theory.curvature,
            "fitted_curvature": fitted.curvature,
            "update_norm": float(update_P.norm()),
        }

    def modules(self, last_P: Tensor | None) -> list[Row]:
        """One row a tensor: how strongly b pushes it, and how far the last checkpoint moved it."""
        rows = []
        moved = None if last_P is None else self.loss.space.tensors(last_P)
        for name, push in self.loss.space.tensors(self.drive_P).items():
            module = module_of(name)
            row: Row = {"name": name, "layer": module.layer, "block": module.block}
            row |= {"projection": module.projection, "parameters": push.numel()}
            row |= {"drive_norm": float(push.norm()), "drive_share": _share(push, self.drive_P)}
            if moved is not None and last_P is not None:
                update = moved[name]
                row |= {"update_norm": float(update.norm()), "update_share": _share(update, last_P)}
                row |= {"cosine": cosine(push.flatten(), update.flatten())}
            rows.append(row)
        return rows

    def summary(self, report: Callable[[str], None]) -> Row:
        """The quadratic in numbers, and how far A is from the Hessian of the frozen loss.

        The extreme values of the Hessian are those in the Krylov space of b: bounds from inside.
        """
        report(f"Hessian of the loss: {HESSIAN_STEPS} products")
        size = self.drive_P.numel()
        depth = min(HESSIAN_STEPS, size)
        hessian = krylov_theory(krylov_space(self.loss.hessian_product, self.drive_P, depth))

        def along_drive(theory: LocalTheory) -> float:
            shares_k = theory.coefficients_k.square() / theory.drive_norm**2
            return float((shares_k * theory.values_k).sum())

        return {
            "contexts": self.loss.contexts,
            "parameters": size,
            "base_loss_nats": self.base_loss,
            "quadratic_base_loss_nats": self.loss.constant(),
            "drive_norm": self.leading.drive_norm,
            "eigenvalues": self.leading.values_k.tolist(),
            "residuals": list(self.residuals),
            "drive_coefficients": self.leading.coefficients_k.tolist(),
            "leading_drive_share": _share(self.leading.coefficients_k, self.drive_P),
            "krylov_steps": len(self.krylov.values_k),
            "random_cosine": 1 / math.sqrt(size),
            "drive_curvature": along_drive(self.krylov),
            "drive_hessian": along_drive(hessian),
            "hessian_largest": float(hessian.values_k[0]),
            "hessian_smallest": float(hessian.values_k[-1]),
        }


@float32_products()
def cosine(first_P: Tensor, second_P: Tensor) -> float | None:
    """Cosine of two vectors; None where one is zero."""
    norms = float(first_P.norm() * second_P.norm())
    return float(first_P @ second_P) / norms if norms else None


def _share(part: Tensor, whole: Tensor) -> float:
    """Of the squared norm."""
    total = float(whole.square().sum())
    return float(part.square().sum()) / total if total else 0.0


# Spread of single-context gradients ---------------------------------------------------------------


def estimator_covariances(
    loss: FrozenLoss, chosen: Sequence[int], advantages: Sequence[float] | None = None
) -> Row:
    """Compares gradient estimators at the base, over the chosen contexts; n P numbers at a time.

    `opd` is `J^T F r` over the whole vocabulary (equation 62); `sampled_opd` is `A J^T (e_y - p)`
    with `A = log p*(y) - log p(y)` (equation 9), of the same expectation; `rl` the same with the
    advantage of a reward (63). `rl_trace_bound`, the right side of equation 64, is `score_moment`
    times `advantage_variance`: it takes the two to be independent and leaves out the squared mean,
    so a sample's trace may exceed it.
    """
    distilled = {"opd": opd_covectors, "sampled_opd": sampled_opd_covectors}
    estimators = {
        name: gradient_covariance(loss.context_gradients(chosen, covectors))
        for name, covectors in distilled.items()
    }
    rows_nP = loss.context_gradients(chosen, score_covectors)
    moment, variance = float(rows_nP.square().sum(1).mean()), None
    if advantages is not None:
        advantages_n = torch.tensor(advantages, dtype=rows_nP.dtype, device=rows_nP.device)
        variance = float(advantages_n.var())
        estimators["rl"] = gradient_covariance(rows_nP * advantages_n[:, None])
    return {
        "sampled_contexts": len(chosen),
        "estimators": estimators,
        "score_moment": moment,
        "advantage_variance": variance,
        "rl_trace_bound": None if variance is None else variance * moment,
    }


def gradient_covariance(gradients_nP: Float[Tensor, "n P"]) -> dict[str, float]:
    """Statistics of at least two gradients, from their n x n Gram matrix in float64.

    `trace` of the unbiased covariance; `effective_rank`, the exponential of the entropy of its
    eigenvalues' shares, at most n - 1, 0 where all gradients are equal; norm of the mean gradient.

    Source: covariances of arXiv 2605.11739, equations 62 to 64. The paper defines an effective rank
    for singular values (15); here its entropy is over eigenvalues of the covariance.
    """
    n = len(gradients_nP)
    mean_P = gradients_nP.mean(0)
    centred_nP = (gradients_nP - mean_P).double()
    values_n = torch.linalg.eigvalsh(centred_nP @ centred_nP.mT).clamp(min=0)
    # Gradients that differ by rounding alone have no spread, whatever the largest value is.
    length = float(gradients_nP.norm(dim=1, dtype=torch.float64).max())
    dtype = gradients_nP.dtype
    counts_n = above_rounding(values_n.sqrt(), n, largest=length, dtype=dtype)
    values_n = torch.where(counts_n, values_n, 0.0) / max(n - 1, 1)
    trace = float(values_n.sum())
    shares_n = values_n / trace if trace > 0 else values_n
    entropy = float(torch.special.entr(shares_n).sum())
    return {
        "trace": trace,
        "effective_rank": math.exp(entropy) if trace > 0 else 0.0,
        "mean_norm": float(mean_P.norm()),
    }


def opd_covectors(batch: ContextBatch, log_probs_NV: Tensor) -> Tensor:
    """`F r`, equation 62."""
    return fisher_product(log_probs_NV, batch.target_log_probs_NV - log_probs_NV)


def score_covectors(batch: ContextBatch, log_probs_NV: Tensor) -> Tensor:
    """`e_y - p`, equation 58."""
    p_NV = log_probs_NV.exp()
    return torch.zeros_like(p_NV).scatter_(1, batch.tokens_N[:, None], 1.0) - p_NV


def sampled_opd_covectors(batch: ContextBatch, log_probs_NV: Tensor) -> Tensor:
    """`(log p*(y) - log p(y)) (e_y - p)`, equation 9."""
    ratios_NV = batch.target_log_probs_NV - log_probs_NV
    return ratios_NV.gather(1, batch.tokens_N[:, None]) * score_covectors(batch, log_probs_NV)
