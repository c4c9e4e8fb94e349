"""Spread of single-context gradients at the base: distillation against reinforcement learning.

Legend: n contexts, N contexts of a batch, V vocabulary, P trained parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.analysis.quadratic import ContextBatch, Covectors, FrozenLoss, fisher_product
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.search.rounding import above_rounding


@dataclass(frozen=True, kw_only=True)
class GradientCovariance:
    """Statistics of n gradients, one per context.

    Attributes:
        contexts: n.
        trace: `Tr(Sigma)`, unbiased: the mean squared distance from the mean.
        effective_rank: `exp(-sum_i p_i log p_i)` with p the shares of Sigma's eigenvalues in the
            trace; 1 to n - 1, so it is a lower bound. 0 where all gradients are equal.
        mean_norm: Norm of the mean gradient.
    """

    contexts: int
    trace: float
    effective_rank: float
    mean_norm: float


def gradient_covariance(gradients_nP: Float[Tensor, "n P"]) -> GradientCovariance:
    """The statistics from the n x n Gram matrix; Sigma itself is never formed.

    Args:
        gradients_nP: At least two rows.

    Returns:
        The statistics, accumulated in float64.

    Raises:
        ParameterMismatchError: There are fewer than two rows.

    Source: covariances of arXiv 2605.11739, equations 62 to 64. The paper defines an effective rank
    for singular values (15); here its entropy is over eigenvalues of the covariance.
    """
    n = len(gradients_nP)
    if gradients_nP.dim() != 2 or n < 2:
        raise ParameterMismatchError(
            f"a covariance needs at least two gradients [n, P], got {tuple(gradients_nP.shape)}"
        )
    mean_P = gradients_nP.mean(0)
    centred_nP = (gradients_nP - mean_P).double()
    values_n = torch.linalg.eigvalsh(centred_nP @ centred_nP.mT).clamp(min=0)
    # Gradients that differ by rounding alone have no spread, whatever the largest value is.
    length = float(gradients_nP.norm(dim=1, dtype=torch.float64).max())
    dtype = gradients_nP.dtype
    counts_n = above_rounding(values_n.sqrt(), n, largest=length, dtype=dtype)
    values_n = torch.where(counts_n, values_n, 0.0) / (n - 1)
    trace = float(values_n.sum())
    shares_n = values_n / trace if trace > 0 else values_n
    entropy = float(-torch.special.xlogy(shares_n, shares_n).sum())
    return GradientCovariance(
        contexts=n,
        trace=trace,
        effective_rank=math.exp(entropy) if trace > 0 else 0.0,
        mean_norm=float(mean_P.norm()),
    )


@dataclass(frozen=True, kw_only=True)
class EstimatorCovariances:
    """The gradient estimators compared, on the same contexts.

    Attributes:
        opd: `J^T F r` over the whole vocabulary, equation 62.
        sampled_opd: `A J^T (e_y - p)` with `A = log p*(y) - log p(y)`, equation 9: what is used in
            practice. Its expectation over y is that of `opd`.
        rl: The same with the advantage of a reward, equation 63; None without advantages.
        score_moment: `E ||J^T (e_y - p)||^2`.
        advantage_variance: Variance of the reward's advantages over the contexts; None without.
    """

    opd: GradientCovariance
    sampled_opd: GradientCovariance
    rl: GradientCovariance | None
    score_moment: float
    advantage_variance: float | None

    @property
    def rl_bound(self) -> float | None:
        """`sigma_A^2 E ||J^T (e_y - p)||^2`, right side of equation 64.

        The equation takes advantage and score to be independent and leaves out the squared mean,
        so a sample's trace may be below it.
        """
        if self.advantage_variance is None:
            return None
        return self.advantage_variance * self.score_moment


def estimator_covariances(
    loss: FrozenLoss,
    chosen: Sequence[int],
    advantages: Sequence[float] | None = None,
) -> EstimatorCovariances:
    """Covariances of the estimators at the base, over the chosen contexts.

    Holds up to 3 n P numbers at a time.

    Args:
        loss: Base, teacher and text.
        chosen: Contexts, for example 64 drawn at random.
        advantages: Of the completion each chosen context is part of; None without rewards.

    Returns:
        The covariances.

    Raises:
        ConfigError: Not one advantage a chosen context.
    """
    if advantages is not None and len(advantages) != len(chosen):
        raise ConfigError(
            f"expected one advantage a chosen context ({len(chosen)}), got {len(advantages)}"
        )

    def covariance(covectors: Covectors) -> GradientCovariance:
        return gradient_covariance(loss.context_gradients(chosen, covectors))

    opd, sampled = covariance(opd_covectors), covariance(sampled_opd_covectors)
    scores_nP = loss.context_gradients(chosen, score_covectors)
    moment = float(scores_nP.square().sum(1).mean())
    rl = variance = None
    if advantages is not None:
        advantages_n = torch.tensor(advantages, dtype=scores_nP.dtype, device=scores_nP.device)
        variance = float(advantages_n.var())
        rl = gradient_covariance(scores_nP * advantages_n[:, None])
    return EstimatorCovariances(
        opd=opd, sampled_opd=sampled, rl=rl, score_moment=moment, advantage_variance=variance
    )


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
