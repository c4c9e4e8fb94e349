"""Training objectives as pure functions of tensors."""

from effopd.objectives.distillation import (
    ExOPD,
    FullVocabularyKL,
    SampledTokenOPD,
    exopd_advantages,
    importance_weights,
    opd_advantages,
    sampled_token_loss,
)
from effopd.objectives.divergence_tiles import Divergence
from effopd.objectives.fused_kl import FusedDivergence, fused_divergence, token_divergences
from effopd.objectives.projection import MatmulPrecision, fast_matmul_precision
from effopd.objectives.token_logprobs import TokenLogProbs, token_log_probs
from effopd.objectives.vocabulary import aligned_vocabulary_size, trim_rows

__all__ = [
    "Divergence",
    "ExOPD",
    "FullVocabularyKL",
    "FusedDivergence",
    "MatmulPrecision",
    "SampledTokenOPD",
    "TokenLogProbs",
    "aligned_vocabulary_size",
    "exopd_advantages",
    "fast_matmul_precision",
    "fused_divergence",
    "importance_weights",
    "opd_advantages",
    "sampled_token_loss",
    "token_divergences",
    "token_log_probs",
    "trim_rows",
]
