"""On-policy distillation beyond the teacher."""

from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError
from effopd.methods.objective import Learner, Objective, Resources
from effopd.methods.opd import SampledTokenLearner
from effopd.objectives.token_checks import check_positive


@dataclass(frozen=True, kw_only=True)
class ExOPD(Objective):
    """On-policy distillation beyond the teacher, away from a reference model (arXiv 2602.12125).

    Attributes:
        type: Name of this objective in a configuration.
        reward_scale: lambda, how far to go from the reference (0) past the teacher (1), at least
            0. The paper finds 1.25 best and 1.5 unstable.
        importance_cap: Upper bound of the importance weight, above 0.
        teacher_temperature: Divides the teacher's logits, not the reference's, above 0; below 1
            sharpens it.
    """

    type: Literal["exopd"] = "exopd"
    reward_scale: float = 1.25
    importance_cap: float = 5.0
    teacher_temperature: float = 1.0
    needs_reference = True
    divergence = "reverse"

    def __post_init__(self) -> None:
        check_reward_scale(self.reward_scale)
        check_positive("importance_cap", self.importance_cap)
        check_positive("teacher_temperature", self.teacher_temperature)

    def learner(self, resources: Resources) -> Learner:
        """See `Objective.learner`."""
        return SampledTokenLearner(self, resources, self.importance_cap)


def check_reward_scale(reward_scale: float) -> None:
    """Refuses a lambda below 0, infinite or NaN."""
    if not 0.0 <= reward_scale < float("inf"):
        raise ConfigError(
            f"reward_scale is {reward_scale}; expected at least 0 (1 is plain OPD, 1.25 the vetted "
            "setting)."
        )
