"""An objective in one file: cross-entropy on own answers, weighted by their rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError
from effopd.methods import (
    Batch,
    Contribution,
    Learner,
    Objective,
    Portion,
    Resources,
    policy_log_probs,
    register,
)


@register
@dataclass(frozen=True, kw_only=True)
class RewardWeighted(Objective):
    """`-sum_n (r_n - baseline) log p_n / N` over the N sampled tokens, r their answer's reward."""

    type: Literal["reward_weighted"] = "reward_weighted"
    baseline: float = 0.0
    needs_teacher = False
    needs_rewards = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.baseline <= 1.0:
            raise ConfigError(f"baseline must be in [0, 1], got {self.baseline}")

    def learner(self, resources: Resources) -> Learner:
        """Applies the objective to a student."""
        return RewardWeightedLearner(self, resources)


class RewardWeightedLearner(Learner):
    """The loss of one micro-batch after the other."""

    def __init__(self, objective: RewardWeighted, resources: Resources) -> None:
        self.objective, self.student = objective, resources.student

    def prepare(self, batch: Batch) -> int:
        """Called once a step; no teacher scores anything."""
        self.batch = batch
        return 0

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """Called for every micro-batch; the answers at `indices` are a part of `portion`."""
        rollouts = [self.batch.rollouts[i] for i in indices]
        log_probs_N = policy_log_probs(self.student, rollouts)
        weights = [
            self.batch.rewards[i] - self.objective.baseline
            for i in indices
            for _ in self.batch.rollouts[i].completion.token_ids
        ]
        weights_N = log_probs_N.new_tensor(weights)
        return Contribution(loss=-(weights_N * log_probs_N).sum() / portion.tokens)
