"""Training objectives as pure functions of tensors."""

from effopd.objectives.advantages import (
    AdvantageEstimate,
    GroupScale,
    explained_variance,
    gae,
    group_advantages,
    informative_groups,
    overlong_penalties,
    whiten,
)
from effopd.objectives.distillation import (
    exopd_advantages,
    importance_weights,
    opd_advantages,
    sampled_token_loss,
)
from effopd.objectives.fused_kl import (
    Divergence,
    FusedDivergence,
    fused_divergence,
    token_divergences,
)
from effopd.objectives.health import HEALTH, health_row, health_sums
from effopd.objectives.policy_gradient import (
    Aggregation,
    ClippedSurrogate,
    clipped_surrogate,
    clipped_value_loss,
    k3_divergence,
    token_weights,
)
from effopd.objectives.projection import aligned_vocabulary_size
from effopd.objectives.token_checks import check_finite, non_finite_cause
from effopd.objectives.token_logprobs import TokenLogProbs, token_log_probs
from effopd.objectives.top_k import TopK, TopKDivergence, top_k_divergence
from effopd.precision import MatmulPrecision

__all__ = [
    "HEALTH",
    "AdvantageEstimate",
    "Aggregation",
    "ClippedSurrogate",
    "Divergence",
    "FusedDivergence",
    "GroupScale",
    "MatmulPrecision",
    "TokenLogProbs",
    "TopK",
    "TopKDivergence",
    "aligned_vocabulary_size",
    "check_finite",
    "clipped_surrogate",
    "clipped_value_loss",
    "exopd_advantages",
    "explained_variance",
    "fused_divergence",
    "gae",
    "group_advantages",
    "health_row",
    "health_sums",
    "importance_weights",
    "informative_groups",
    "k3_divergence",
    "non_finite_cause",
    "opd_advantages",
    "overlong_penalties",
    "sampled_token_loss",
    "token_divergences",
    "token_log_probs",
    "token_weights",
    "top_k_divergence",
    "whiten",
]  # fmt: skip
