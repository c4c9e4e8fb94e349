"""From rollouts to gradients: distillation objectives applied to the student.

Legend: N completion tokens of one micro-batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from effopd.errors import ConfigError
from effopd.evaluation.logprobs import BATCH_TOKENS, completion_log_probs, evaluation_mode
from effopd.evaluation.routing import Teachers, routed_log_probs
from effopd.models.policy import Policy, Sample
from effopd.objectives import (
    ExOPD,
    FullVocabularyKL,
    FusedDivergence,
    SampledTokenOPD,
    exopd_advantages,
    fused_divergence,
    importance_weights,
    opd_advantages,
    sampled_token_loss,
    token_log_probs,
)
from effopd.objectives.projection import Head
from effopd.rollouts.rollout import Rollout
from effopd.training.batch import Portion
from effopd.training.collect import Batch

TokenScores = Sequence[Sequence[float]]
"""One number per completion token, one sequence per rollout."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one micro-batch adds to an update.

    Attributes:
        loss: Its share of the update's loss; `backward()` adds its share of the gradient.
        sums: Sums over its tokens of what the metrics report per token, by name; left on the device
            until the update is done.
        inputs: What the loss was computed from, [N] each; looked at where it is not finite.
    """

    loss: Tensor
    sums: Mapping[str, Tensor | float] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


class Learner(Protocol):
    """One objective, ready to be applied."""

    def prepare(self, batch: Batch) -> int:
        """Scores the step's rollouts; returns the tokens that teachers scored."""
        ...

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """Loss of the rollouts at `indices`, a micro-batch of the mini-batch `portion`."""
        ...

    def after_update(self) -> None:
        """Called after each optimizer update: whatever else learns takes its step."""
        ...

    def discard(self) -> None:
        """Called when an update is given up: drops gradients of whatever else learns."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """More fields of the step's metrics row."""
        ...

    def state(self) -> Tensors:
        """What must be saved for an exact resume; references, not copies."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        ...


class Stateless:
    """The parts of a learner that only learners with a critic need."""

    def after_update(self) -> None:
        """Nothing else learns."""

    def discard(self) -> None:
        """Nothing else learns."""

    def metrics(self) -> Mapping[str, float]:
        """Nothing to add."""
        return {}

    def state(self) -> Tensors:
        """Nothing to save."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


class SampledTokenLearner(Stateless):
    """Equation 9: the log-ratio at the sampled token is its advantage.

    Args:
        objective: `SampledTokenOPD` or `ExOPD`.
        student: The policy to train.
        teachers: Score the tokens.
        reference: Scores them too, for ExOPD: the untrained student, or the teacher's own base.
        scoring_tokens: Padded tokens per forward pass of teachers and reference, at most.
    """

    def __init__(
        self,
        objective: SampledTokenOPD | ExOPD,
        student: Policy,
        teachers: Teachers,
        reference: Policy | None = None,
        *,
        scoring_tokens: int = BATCH_TOKENS,
    ) -> None:
        if isinstance(objective, ExOPD) and reference is None:
            raise ConfigError("ExOPD needs a reference: the untrained student, or the teacher's")
        self._objective = objective
        self._student = student
        self._teachers = teachers
        self._reference = reference
        self._scoring_tokens = scoring_tokens
        self._rollouts: Sequence[Rollout] = ()
        self._teacher_scores: TokenScores = ()
        self._reference_scores: TokenScores = ()

    def prepare(self, batch: Batch) -> int:
        """See `Learner.prepare`."""
        self._rollouts = batch.rollouts
        self._teacher_scores = routed_log_probs(
            self._teachers,
            batch.rollouts,
            temperature=self._objective.teacher_temperature,
            batch_tokens=self._scoring_tokens,
        )
        if self._reference is not None:
            samples = [r.sample for r in batch.rollouts]
            self._reference_scores = completion_log_probs(
                self._reference, samples, batch_tokens=self._scoring_tokens
            )
        return sum(map(len, self._teacher_scores))

    def state(self) -> Tensors:
        """Which teachers it learns from, where they are behind servers."""
        return self._teachers.identities()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Checks that they are still the same."""
        self._teachers.expect(tensors)

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """See `Learner.contribution`."""
        rollouts = [self._rollouts[i] for i in indices]
        log_probs_N = policy_log_probs(self._student, rollouts)
        current_N = log_probs_N.detach()
        teacher_N = gathered(self._teacher_scores, indices, current_N)
        engine_N = gathered([r.completion.log_probs for r in self._rollouts], indices, current_N)
        inputs = {"student": current_N, "teacher": teacher_N, "rollout engine": engine_N}
        if isinstance(self._objective, ExOPD):
            reference_N = gathered(self._reference_scores, indices, current_N)
            inputs["reference"] = reference_N
            scale = self._objective.reward_scale
            advantages_N = exopd_advantages(current_N, teacher_N, reference_N, scale)
        else:
            advantages_N = opd_advantages(current_N, teacher_N)
        weights_N = importance_weights(current_N, engine_N, self._objective.importance_cap)
        loss = sampled_token_loss(log_probs_N, advantages_N, weights_N, portion.tokens)
        sums = {"reverse_kl": (current_N - teacher_N).sum()}
        capped = weight_sums(weights_N, self._objective.importance_cap)
        return Contribution(loss=loss, sums=sums | capped, inputs=inputs)


class FullVocabularyLearner(Stateless):
    """The divergence to a local teacher over the whole vocabulary at every token.

    With `reward_scale` other than 1 the target is the teacher moved away from a reference:
    `softmax(lambda z* + (1 - lambda) z_ref)`, which is ExOPD without the noise of the sampled
    token: the objective `lambda log(q / r) - KL(p || r)` is `-KL(p || target)` up to a constant.

    Args:
        objective: Which divergence.
        student: The policy to train.
        teachers: Local teachers.
        reference: The untrained student, or the teacher's own base; for `reward_scale`.
        passes: How often each rollout is trained on: the teacher scores it that often, since its
            logits over the vocabulary are too large to keep.
    """

    def __init__(
        self,
        objective: FullVocabularyKL,
        student: Policy,
        teachers: Teachers,
        reference: Policy | None = None,
        *,
        passes: int = 1,
    ) -> None:
        if objective.needs_reference and reference is None:
            raise ConfigError("objective.reward_scale other than 1 needs a reference")
        self._objective = objective
        self._student = student
        self._teachers = teachers
        self._reference = reference if objective.needs_reference else None
        self._passes = passes
        in_target = self._reference is not None  # which divides the teacher's logits alone
        self._temperature = 1.0 if in_target else objective.teacher_temperature
        self._rollouts: Sequence[Rollout] = ()

    def prepare(self, batch: Batch) -> int:
        """See `Learner.prepare`; the teacher is run together with the student."""
        self._rollouts = batch.rollouts
        return self._passes * sum(len(r.completion.token_ids) for r in batch.rollouts)

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """See `Learner.contribution`."""
        rollouts = [self._rollouts[i] for i in indices]
        loss, divergence = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        inputs: Tensors = {}
        for name, teacher, members in self._teachers.split_local(rollouts):
            part = self._divergence(teacher, [rollouts[i] for i in members], portion.tokens)
            loss = part.loss + loss.to(part.loss.device)
            divergence = part.per_token_N.sum().double() + divergence.to(part.loss.device)
            inputs[f"divergence from the teacher {name}".rstrip()] = part.per_token_N
        count = sum(len(r.completion.token_ids) for r in rollouts)
        sums: dict[str, Tensor | float] = {
            "importance_mean": float(count),
            "importance_capped_share": 0.0,
        }
        if self._objective.divergence == "reverse" and self._reference is None:
            sums["reverse_kl"] = divergence
        return Contribution(loss=loss, sums=sums, inputs=inputs)

    def _divergence(
        self, teacher: Policy, rollouts: Sequence[Rollout], tokens: int
    ) -> FusedDivergence:
        """The divergence of answers that one teacher scores."""
        samples = [r.sample for r in rollouts]
        target = self._target(teacher, samples)  # before the student's activations take the memory
        ours = self._student.states(samples)
        device = ours.hidden_ND.device
        return fused_divergence(
            ours.hidden_ND,
            self._student.head_weight_VD,
            target.hidden_ND.to(device),
            target.weight_VD.to(device),
            student_bias=self._student.head_bias_V,
            teacher_bias=None if target.bias_V is None else target.bias_V.to(device),
            divergence=self._objective.divergence,
            beta=self._objective.beta,
            teacher_temperature=self._temperature,
            normalizer=tokens,
        )

    @torch.no_grad()
    def _target(self, teacher: Policy, samples: Sequence[Sample]) -> Head:
        """The teacher, or teacher and reference side by side: a head of twice the width.

        Their hidden states one after the other, times their heads one beside the other, are
        `lambda z* + (1 - lambda) z_ref`: no logits are held for that. The teacher's temperature
        divides z* alone, as in `ExOPD`.
        """
        own = Head(teacher.states(samples).hidden_ND, teacher.head_weight_VD, teacher.head_bias_V)
        if self._reference is None:
            return own
        reference, past = self._reference, 1.0 - self._objective.reward_scale
        scale = self._objective.reward_scale / self._objective.teacher_temperature
        with evaluation_mode(reference):  # it may be the student without its adapters
            other_ND = reference.states(samples).hidden_ND.to(own.hidden_ND)
        weight_VD = torch.cat(
            [scale * own.weight_VD, past * reference.head_weight_VD.to(own.weight_VD)], dim=1
        )
        biases = [(scale, own.bias_V), (past, reference.head_bias_V)]
        known = [share * bias.to(own.weight_VD) for share, bias in biases if bias is not None]
        bias_V = torch.stack(known).sum(0) if known else None
        return Head(torch.cat([own.hidden_ND, other_ND], dim=1), weight_VD, bias_V)


def policy_log_probs(policy: Policy, rollouts: Sequence[Rollout]) -> Tensor:
    """Log-probability (nats) of every completion token, rollouts concatenated, with gradient."""
    states = policy.states([r.sample for r in rollouts])
    return token_log_probs(
        states.hidden_ND, policy.head_weight_VD, states.targets_N, bias=policy.head_bias_V
    ).log_probs_N


def gathered(scores: TokenScores, indices: Sequence[int], like_N: Tensor) -> Tensor:
    """The scores of some rollouts, concatenated, as a tensor like `like_N`."""
    flat = [value for i in indices for value in scores[i]]
    return torch.tensor(flat, dtype=like_N.dtype, device=like_N.device)


def weight_sums(weights_N: Tensor, cap: float) -> Tensors:
    """Sums of the importance weights and of how many were capped."""
    return {
        "importance_mean": weights_N.sum(),
        "importance_capped_share": (weights_N >= cap).sum(),
    }
