"""A divergence over the whole vocabulary at every sampled context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from effopd.evaluation.logprobs import evaluation_mode
from effopd.methods.objective import (
    Batch,
    Contribution,
    Learner,
    Objective,
    Portion,
    Resources,
    Tensors,
)
from effopd.methods.opd import check_reward_scale
from effopd.models.policy import Policy, Sample
from effopd.objectives import Divergence, FusedDivergence, fused_divergence
from effopd.objectives.fused_kl import check_divergence
from effopd.objectives.projection import Head
from effopd.objectives.token_checks import check_positive
from effopd.rollouts.rollout import Rollout, total_tokens


@dataclass(frozen=True, kw_only=True)
class FullVocabularyKL(Objective):
    """A divergence over the whole vocabulary at every sampled context, `fused_divergence`.

    Attributes:
        type: Name of this objective in a configuration.
        divergence: `"reverse"` KL(student || teacher), `"forward"` or `"jsd"`.
        beta: Weight of the teacher in the mixture of `"jsd"`, in (0, 1); unused by the others.
        teacher_temperature: Divides the teacher's logits, above 0; below 1 sharpens it.
        reward_scale: lambda of `ExOPD`, at least 0: the target is `softmax(lambda z* + (1 - lambda)
            z_ref)` of teacher and reference logits. 1 is the teacher itself.
    """

    type: Literal["full_kl"] = "full_kl"
    divergence: Divergence = "reverse"
    beta: float = 0.5
    teacher_temperature: float = 1.0
    reward_scale: float = 1.0
    needs_vocabulary = True

    def __post_init__(self) -> None:
        check_reward_scale(self.reward_scale)
        check_positive("teacher_temperature", self.teacher_temperature)
        check_divergence(self.divergence, self.beta)

    @property
    def needs_reference(self) -> bool:
        """Whether the target depends on a reference model."""
        return self.reward_scale != 1.0

    def learner(self, resources: Resources) -> Learner:
        """See `Objective.learner`."""
        return FullVocabularyLearner(self, resources)


class FullVocabularyLearner(Learner):
    """The divergence to a local teacher over the whole vocabulary at every token.

    With `reward_scale` other than 1 the target is the teacher moved away from a reference:
    `softmax(lambda z* + (1 - lambda) z_ref)`, which is ExOPD without the noise of the sampled
    token: the objective `lambda log(q / r) - KL(p || r)` is `-KL(p || target)` up to a constant.
    """

    def __init__(self, objective: FullVocabularyKL, resources: Resources) -> None:
        assert resources.teachers is not None
        assert resources.reference is not None or not objective.needs_reference
        self._objective = objective
        self._student, self._teachers = resources.student, resources.teachers
        self._reference = resources.reference if objective.needs_reference else None
        self._passes = resources.epochs
        in_target = self._reference is not None  # which divides the teacher's logits alone
        self._temperature = 1.0 if in_target else objective.teacher_temperature
        self._rollouts: Sequence[Rollout] = ()

    def prepare(self, batch: Batch) -> int:
        """See `Learner.prepare`.

        The teacher runs together with the student, in every pass anew: its logits over the
        vocabulary are too large to keep.
        """
        self._rollouts = batch.rollouts
        return self._passes * total_tokens(batch.rollouts)

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
        count = total_tokens(rollouts)
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
