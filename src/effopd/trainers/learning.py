"""From rollouts to gradients: the objectives applied to the student.

Legend: N completion tokens of one micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from effopd.models.policy import Policy, Sample
from effopd.objectives import (
    ExOPD,
    FullVocabularyKL,
    SampledTokenOPD,
    exopd_advantages,
    fused_divergence,
    importance_weights,
    opd_advantages,
    sampled_token_loss,
    token_log_probs,
)
from effopd.rollouts.rollout import Rollout
from effopd.trainers.teachers import LocalTeacher, Teacher

TokenLogProbs = Sequence[tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one micro-batch adds to a step.

    Attributes:
        loss: Its share of the step's loss; `backward()` adds its share of the gradient.
        reverse_kl_sum: Sum over tokens of the (sampled or exact) reverse KL in nats; None when the
            objective is another divergence.
        weight_sum: Sum of importance weights.
        capped: Tokens whose importance ratio was capped.
    """

    loss: Tensor
    reverse_kl_sum: float | None
    weight_sum: float
    capped: int


class Learner(Protocol):
    """One objective, ready to be applied."""

    def prepare(self, rollouts: Sequence[Rollout]) -> int:
        """Has the teacher score the step's rollouts; returns the tokens it scored."""
        ...

    def contribution(self, indices: Sequence[int], tokens: int) -> Contribution:
        """Loss of the rollouts at `indices`, normalised by the step's `tokens`."""
        ...


class SampledTokenLearner:
    """Equation 9: the log-ratio at the sampled token is its advantage.

    Args:
        objective: `SampledTokenOPD` or `ExOPD`.
        student: The policy to train.
        teacher: Scores the tokens.
        reference: Scores them too, for ExOPD.
    """

    def __init__(
        self,
        objective: SampledTokenOPD | ExOPD,
        student: Policy,
        teacher: Teacher,
        reference: Teacher | None = None,
    ) -> None:
        self._objective = objective
        self._student = student
        self._teacher = teacher
        self._reference = reference
        self._rollouts: Sequence[Rollout] = ()
        self._teacher_scores: TokenLogProbs = ()
        self._reference_scores: TokenLogProbs = ()

    def prepare(self, rollouts: Sequence[Rollout]) -> int:
        """See `Learner.prepare`."""
        samples = [r.sample for r in rollouts]
        self._rollouts = rollouts
        self._teacher_scores = self._teacher.log_probs(samples)
        if self._reference is not None:
            self._reference_scores = self._reference.log_probs(samples)
        return sum(map(len, self._teacher_scores))

    def contribution(self, indices: Sequence[int], tokens: int) -> Contribution:
        """See `Learner.contribution`."""
        student = self._student
        states = student.states([self._rollouts[i].sample for i in indices])
        log_probs_N = token_log_probs(
            states.hidden_ND, student.head_weight_VD, states.targets_N, bias=student.head_bias_V
        ).log_probs_N
        current_N = log_probs_N.detach()
        teacher_N = _gather(self._teacher_scores, indices, current_N)
        rollout_N = _gather([r.completion.log_probs for r in self._rollouts], indices, current_N)
        weights_N = importance_weights(current_N, rollout_N, self._objective.importance_cap)
        loss = sampled_token_loss(
            log_probs_N, self._advantages(indices, current_N, teacher_N), weights_N, tokens
        )
        return Contribution(
            loss=loss,
            reverse_kl_sum=(current_N - teacher_N).sum().item(),
            weight_sum=weights_N.sum().item(),
            capped=int((weights_N >= self._objective.importance_cap).sum()),
        )

    def _advantages(self, indices: Sequence[int], current_N: Tensor, teacher_N: Tensor) -> Tensor:
        if not isinstance(self._objective, ExOPD):
            return opd_advantages(current_N, teacher_N)
        reference_N = _gather(self._reference_scores, indices, current_N)
        return exopd_advantages(current_N, teacher_N, reference_N, self._objective.reward_scale)


class FullVocabularyLearner:
    """The divergence to a local teacher over the whole vocabulary at every token.

    Args:
        objective: Which divergence.
        student: The policy to train.
        teacher: A local teacher.
    """

    def __init__(self, objective: FullVocabularyKL, student: Policy, teacher: LocalTeacher) -> None:
        self._objective = objective
        self._student = student
        self._teacher = teacher.policy
        self._samples: Sequence[Sample] = ()

    def prepare(self, rollouts: Sequence[Rollout]) -> int:
        """See `Learner.prepare`; the teacher is run together with the student."""
        self._samples = [r.sample for r in rollouts]
        return sum(len(s.completion_ids) for s in self._samples)

    def contribution(self, indices: Sequence[int], tokens: int) -> Contribution:
        """See `Learner.contribution`."""
        samples = [self._samples[i] for i in indices]
        ours = self._student.states(samples)
        with torch.no_grad():
            theirs = self._teacher.states(samples)
        divergence = fused_divergence(
            ours.hidden_ND,
            self._student.head_weight_VD,
            theirs.hidden_ND.to(ours.hidden_ND.device),
            self._teacher.head_weight_VD,
            student_bias=self._student.head_bias_V,
            teacher_bias=self._teacher.head_bias_V,
            divergence=self._objective.divergence,
            beta=self._objective.beta,
            normalizer=tokens,
        )
        count = len(divergence.per_token_N)
        is_reverse = self._objective.divergence == "reverse"
        return Contribution(
            loss=divergence.loss,
            reverse_kl_sum=divergence.per_token_N.sum().item() if is_reverse else None,
            weight_sum=float(count),
            capped=0,
        )


def _gather(scores: TokenLogProbs, indices: Sequence[int], like_N: Tensor) -> Tensor:
    """The scores of some rollouts, concatenated, as a tensor like `like_N`."""
    flat = [value for i in indices for value in scores[i]]
    return torch.tensor(flat, dtype=like_N.dtype, device=like_N.device)
