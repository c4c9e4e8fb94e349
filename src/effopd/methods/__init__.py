"""Methods: what is minimised, one file each, and the registry of their names.

To add one, write a class of settings and a learner, and `register` it (docs/methods.md).
"""

from effopd.methods.fixed_negative import FixedNegative
from effopd.methods.full_kl import FullVocabularyKL
from effopd.methods.objective import (
    Batch,
    Contribution,
    Learner,
    Objective,
    Portion,
    Resources,
    policy_log_probs,
)
from effopd.methods.opd import ExOPD, SampledTokenOPD
from effopd.methods.policy_gradient import PolicyGradient
from effopd.methods.registry import import_installed, register

__all__ = [
    "Batch", "Contribution", "ExOPD", "FixedNegative", "FullVocabularyKL", "Learner", "Objective",
    "PolicyGradient", "Portion", "Resources", "SampledTokenOPD", "policy_log_probs", "register",
]  # fmt: skip

import_installed()
