"""On-policy distillation on the sampled tokens, to the teacher and beyond.

A token whose value the teacher does not give (NaN: a server's null, a token that it does not have)
is missing: it has no weight in the loss, and is counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.logprobs import completion_log_probs
from effopd.evaluation.readings import span_counts
from effopd.evaluation.routing import routed_log_probs
from effopd.methods.objective import (
    Batch,
    Contribution,
    Learner,
    Objective,
    Portion,
    Resources,
    Tensors,
    TokenScores,
    gathered,
    policy_log_probs,
    weight_sums,
)
from effopd.objectives import (
    exopd_advantages,
    importance_weights,
    opd_advantages,
    sampled_token_loss,
)
from effopd.objectives.token_checks import check_positive
from effopd.rollouts.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class SampledTokenOPD(Objective):
    """On-policy distillation on the sampled tokens, equation (9) of arXiv 2605.11739.

    Attributes:
        type: Name of this objective in a configuration.
        importance_cap: Upper bound of the importance weight, above 0.
        teacher_temperature: Divides the teacher's logits, above 0; below 1 sharpens it.
    """

    type: Literal["sampled_token"] = "sampled_token"
    importance_cap: float = 5.0
    teacher_temperature: float = 1.0
    divergence = "reverse"

    def __post_init__(self) -> None:
        check_positive("teacher_temperature", self.teacher_temperature)
        check_positive("importance_cap", self.importance_cap)

    def learner(self, resources: Resources) -> Learner:
        """See `Objective.learner`."""
        return SampledTokenLearner(self, resources, self.importance_cap)


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


class SampledTokenLearner(Learner):
    """The log-ratio at the sampled token is its advantage; with a reference, ExOPD's."""

    def __init__(self, objective: Objective, resources: Resources, cap: float) -> None:
        assert resources.teachers is not None
        assert resources.reference is not None or not objective.needs_reference
        self._objective, self._cap = objective, cap
        self._student, self._teachers = resources.student, resources.teachers
        self._reference = resources.reference if objective.needs_reference else None
        self._reference_samples = resources.reference_samples
        self._scoring_tokens = resources.scoring_tokens
        self._rollouts: Sequence[Rollout] = ()
        self._teacher_scores: TokenScores = ()
        self._reference_scores: TokenScores = ()
        self._metrics = dict[str, float]()

    def prepare(self, batch: Batch) -> int:
        """See `Learner.prepare`.

        What a teacher with another tokenizer says is brought to the student's tokens here, once a
        batch: values on runs are those beside the policy that wrote the answers.

        Raises:
            NonFiniteError: The teachers give no value for any token.
            ParameterMismatchError: Too few tokens match those of a teacher with another tokenizer.
        """
        answers = [
            (name, [batch.rollouts[i] for i in indices])
            for name, _, indices in self._teachers.split(batch.rollouts)
        ]
        spans = span_counts(self._teachers.readings, answers)
        self._metrics = {} if spans is None else dict(spans.shares)
        self._rollouts = batch.rollouts
        unread = self._teachers.unread(batch.rollouts)  # a search may have had them read
        self._teacher_scores = routed_log_probs(
            self._teachers,
            batch.rollouts,
            temperature=self._objective.teacher_temperature,
            batch_tokens=self._scoring_tokens,
        )
        if self._reference is not None:
            samples = self._reference_samples(batch.rollouts)
            self._reference_scores = completion_log_probs(
                self._reference, samples, batch_tokens=self._scoring_tokens
            )
        # What the teachers did not give.
        tokens = sum(map(len, self._teacher_scores))
        missing = sum(math.isnan(value) for row in self._teacher_scores for value in row)
        if missing == tokens:
            raise NonFiniteError(f"the teacher gives no value for any of {tokens} tokens")
        if missing:
            self._metrics["teacher_missing"] = float(missing)
        return unread

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """See `Learner.contribution`."""
        rollouts = [self._rollouts[i] for i in indices]
        log_probs_N = policy_log_probs(self._student, rollouts)
        current_N = log_probs_N.detach()
        teacher_N = gathered(self._teacher_scores, indices, current_N)
        engine_N = gathered([r.completion.log_probs for r in self._rollouts], indices, current_N)
        inputs = {"student": current_N, "teacher": teacher_N, "rollout engine": engine_N}
        if self._reference is not None:
            reference_N = gathered(self._reference_scores, indices, current_N)
            inputs["reference"] = reference_N
            scale = self._objective.reward_scale
            advantages_N = exopd_advantages(current_N, teacher_N, reference_N, scale)
        else:
            advantages_N = opd_advantages(current_N, teacher_N)
        gaps_N, known = current_N - teacher_N, dict[str, Tensor | float]()
        if "teacher_missing" in self._metrics:
            # Nothing is learned from a missing token; the mean divergence is that of the others.
            is_known_N = ~teacher_N.isnan()
            advantages_N = torch.where(is_known_N, advantages_N, 0.0)
            gaps_N = torch.where(is_known_N, gaps_N, 0.0)
            known = {"reverse_kl": is_known_N.sum()}
            inputs["teacher"] = teacher_N.masked_fill(~is_known_N, 0.0)
        weights_N = importance_weights(current_N, engine_N, self._cap)
        loss = sampled_token_loss(log_probs_N, advantages_N, weights_N, portion.tokens)
        sums = {"reverse_kl": gaps_N.sum()} | weight_sums(weights_N, self._cap)
        return Contribution(loss=loss, sums=sums, inputs=inputs, known=known)

    def metrics(self) -> Mapping[str, float]:
        """Shares of tokens by how they are scored across tokenizers, and how many are missing."""
        return self._metrics

    def state(self) -> Tensors:
        """Which teachers it learns from, where they are behind servers."""
        return self._teachers.identities()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Checks that they are still the same."""
        self._teachers.expect(tensors)
