"""A divergence over the whole vocabulary at every sampled context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from effopd.errors import ConfigError
from effopd.evaluation.kept_states import REFERENCE, Target
from effopd.evaluation.logprobs import known_rows, on_device, where_known
from effopd.evaluation.readings import AlignedReading, span_counts
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
from effopd.models.policy import PackedStates, Policy
from effopd.objectives import (
    Divergence,
    fused_divergence,
    health_row,
    health_sums,
)
from effopd.objectives.common_vocabulary import common_divergence
from effopd.objectives.fused_kl import check_divergence
from effopd.objectives.projection import Head
from effopd.objectives.token_checks import check_positive
from effopd.objectives.top_k import TopK, top_k_divergence
from effopd.rollouts.rollout import Rollout, total_tokens

LIKELIEST = 16
"""Tokens that student and teacher are compared in; a quarter of the vocabulary where it is less."""
LOOKED_AT, SPARSE = 16, 64
"""Health is that of every 64th token, or of 16 tokens of an update that has fewer than 1024."""


@dataclass(frozen=True, kw_only=True)
class FullVocabularyKL(Objective):
    """A divergence over the whole vocabulary at every sampled context, `fused_divergence`.

    Attributes:
        type: Name of this objective in a configuration.
        divergence: `"reverse"` KL(student || teacher), `"forward"` or `"jsd"`.
        beta: Weight of the teacher in the mixture of `"jsd"`, 0 (forward KL) to 1 (reverse KL);
            unused by the others.
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
    """The divergence to a teacher over the whole vocabulary at every token.

    Of a teacher behind a server that names its k likeliest tokens, `top_k_divergence`: a lower
    bound. A token of which a server says nothing has weight 0.

    With `reward_scale` other than 1 the target is the teacher moved away from a reference:
    `softmax(lambda z* + (1 - lambda) z_ref)`, which is ExOPD without the noise of the sampled
    token: the objective `lambda log(q / r) - KL(p || r)` is `-KL(p || target)` up to a constant.
    """

    has_value = True

    def __init__(self, objective: FullVocabularyKL, resources: Resources) -> None:
        assert resources.teachers is not None
        assert resources.reference is not None or not objective.needs_reference
        self._objective = objective
        self._student, self._teachers = resources.student, resources.teachers
        self._reference = resources.reference if objective.needs_reference else None
        self._reference_samples = resources.reference_samples
        self._passes, self._scoring_tokens = resources.epochs, resources.scoring_tokens
        in_target = self._reference is not None  # which divides the teacher's logits alone
        self._temperature = 1.0 if in_target else objective.teacher_temperature
        self._rollouts: Sequence[Rollout] = ()
        self._health_B5: Tensor | None = None
        self._updated, self._seen = False, 0
        self._covered: list[tuple[Tensor, Tensor]] = []  # sums, and of how many tokens
        self._shares: dict[str, float] = {}  # of tokens, by how they go with the teacher's

    def prepare(self, batch: Batch) -> int:
        """See `Learner.prepare`.

        Teachers and reference read the batch here, and their hidden states are kept for all passes
        over it: logits over the vocabulary would be too large. What a search has had read of this
        batch is not read again.
        """
        self._rollouts, teachers = batch.rollouts, self._teachers
        self._health_B5, self._updated, self._seen = None, False, 0
        self._covered = []
        answers = [
            (name, [batch.rollouts[i] for i in indices])
            for name, _, indices in teachers.split(batch.rollouts)
        ]
        spans = span_counts(teachers.readings, answers)
        self._shares = {} if spans is None else spans.shares | self._compared(answers)
        limits: Any = {"batch_tokens": self._scoring_tokens}
        before = teachers.tokens_read
        teachers.hold(batch.rollouts)
        teachers.read(batch.rollouts, **limits)
        if self._reference is not None:
            samples = self._reference_samples(batch.rollouts)
            teachers.kept.fill(REFERENCE, self._reference, batch.rollouts, samples, **limits)
        # What there was no room for is read in every pass.
        again = self._passes * teachers.unread(batch.rollouts)
        return teachers.tokens_read - before + again

    def _compared(self, answers: Sequence[tuple[str, Sequence[Rollout]]]) -> dict[str, float]:
        """Share of tokens that are compared with a teacher of another tokenizer; may refuse it."""
        compared, tokens = 0, 0
        for name, rollouts in answers:
            reading, teacher = self._teachers.readings.get(name), self._teachers.policies[name]
            if not isinstance(reading, AlignedReading):
                continue
            weight_WE = (
                teacher.head_weight_VD if isinstance(teacher, Policy) else teacher.head.weight_VD
            )
            places, _ = reading.compared(rollouts, self._student.head_weight_VD, weight_WE)
            own = total_tokens(rollouts)
            reading.settings.check_share(
                "are compared", len(places.student_N) / max(1, own), reading.name
            )
            compared, tokens = compared + len(places.student_N), tokens + own
        return {"compared_token_share": compared / max(1, tokens)}

    def after_update(self) -> None:
        """See `Learner.after_update`; the student has moved away from what wrote the answers."""
        self._updated = True

    def metrics(self) -> Mapping[str, Any]:
        """Health of the step's first update, see `health_row`, where there is a distribution.

        `teacher_covered`: share of the teacher's mass on the tokens that a server named.
        """
        found = {} if self._health_B5 is None else health_row(self._health_B5)
        found |= self._shares
        if self._covered:
            covered, known = (sum(map(float, each)) for each in zip(*self._covered, strict=True))
            found["teacher_covered"] = covered / max(1.0, known)
        return found

    def state(self) -> Tensors:
        """Which teachers it learns from, where they are behind servers."""
        return self._teachers.identities()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Checks that they are still the same."""
        self._teachers.expect(tensors)

    def release(self) -> None:
        """See `Learner.release`."""
        self._teachers.kept.release()

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """See `Learner.contribution`."""
        rollouts = [self._rollouts[i] for i in indices]
        loss, divergence = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        known: Tensor | float = 0.0
        inputs: Tensors = {}
        for name, _, members in self._teachers.split_dense(rollouts):
            own, per_token_N, count = self._divergence(
                name, [rollouts[i] for i in members], portion.tokens
            )
            loss = own + loss.to(own.device)
            known = known + count
            divergence = per_token_N.sum().double() + divergence.to(own.device)
            inputs[f"divergence from the teacher {name}".rstrip()] = per_token_N
        count = total_tokens(rollouts)
        sums: dict[str, Tensor | float] = {
            "importance_mean": float(count),
            "importance_capped_share": 0.0,
        }
        is_reverse = self._objective.divergence == "reverse" and self._reference is None
        measured = "reverse_kl" if is_reverse else "divergence"
        sums[measured] = divergence
        return Contribution(loss=loss, sums=sums, inputs=inputs, known={measured: known})

    def _divergence(
        self, name: str, rollouts: Sequence[Rollout], tokens: int
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """Loss of answers that one teacher scores, divergences, and of how many tokens."""
        own = self._objective
        common: Any = {"divergence": own.divergence, "beta": own.beta, "normalizer": tokens}
        target = self._target(name, rollouts)  # before the student's activations take the memory
        ours = self._student.states([r.sample for r in rollouts])
        hidden_ND, device = ours.hidden_ND, ours.hidden_ND.device
        if isinstance(target, TopK):
            named = top_k_divergence(
                hidden_ND,
                self._student.head_weight_VD,
                on_device(target, device),
                bias=self._student.head_bias_V,
                cap=self._student.head_cap,
                **common,
            )
            self._covered.append((named.covered_N.sum(), named.known_N.sum()))
            return named.loss, named.per_token_N, named.known_N.sum()
        target = on_device(target, device)
        reading = self._teachers.readings.get(name)
        if isinstance(reading, AlignedReading):
            own_head = self._student.head(hidden_ND)
            compared = reading.compared(rollouts, own_head.weight_VD, target.weight_VD)
            if name in self._teachers.served:
                target, compared = where_known(target, compared)
            found = common_divergence(
                hidden_ND,
                own_head.weight_VD,
                target,
                *compared,
                bias=own_head.bias_V,
                cap=own_head.cap,
                teacher_temperature=self._temperature,
                **common,
            )
            self._covered.append((found.covered_N.sum(), found.known_N.sum()))
            return found.loss, found.per_token_N, found.known_N.sum()
        count: Tensor | float = len(hidden_ND)
        if name in self._teachers.served and not bool((known_N := known_rows(target)).all()):
            if not bool(known_N.any()):
                return hidden_ND.sum() * 0.0, torch.zeros(0, device=device), 0.0
            hidden_ND, count = hidden_ND[known_N], known_N.sum()
            target = target._replace(hidden_ND=target.hidden_ND[known_N])
        elif not self._updated:
            self._examine(ours, target, max(1, min(SPARSE, tokens // LOOKED_AT)))
        whole = fused_divergence(
            hidden_ND,
            self._student.head_weight_VD,
            target.hidden_ND,
            target.weight_VD,
            student_bias=self._student.head_bias_V,
            teacher_bias=target.bias_V,
            student_cap=self._student.head_cap,
            teacher_cap=target.cap,
            teacher_temperature=self._temperature,
            **common,
        )
        return whole.loss, whole.per_token_N, count

    def _examine(self, ours: PackedStates, target: Head, every: int) -> None:
        """Adds the health of one micro-batch to that of the step."""
        student = self._student.head(ours.hidden_ND)
        sums_B5 = health_sums(
            student,
            target,
            ours.lengths,
            k=max(1, min(LIKELIEST, len(student.weight_VD) // 4)),
            every=every,
            first=-self._seen % every,
            teacher_temperature=self._temperature,
        )
        self._seen += len(ours.hidden_ND)
        before = self._health_B5
        self._health_B5 = sums_B5 if before is None else before.to(sums_B5.device) + sums_B5

    @torch.no_grad()
    def _target(self, name: str, rollouts: Sequence[Rollout]) -> Target:
        """The teacher, or teacher and reference side by side: a head of twice the width.

        Their hidden states one after the other, times their heads one beside the other, are
        `lambda z* + (1 - lambda) z_ref`: no logits are held for that. The teacher's temperature
        divides z* alone, as in `ExOPD`.
        """
        own = self._teachers.target(name, rollouts)
        if self._reference is None:
            return own
        if isinstance(own, TopK):
            raise ConfigError(
                "reward_scale other than 1 in full_kl mixes the logits of teacher and reference, "
                "and a server that names likely tokens gives no logits of the others: take the "
                "objective exopd, or reward_scale = 1"
            )
        if own.cap is not None or self._reference.head_cap is not None:
            raise ConfigError(
                "reward_scale other than 1 in full_kl mixes the logits of teacher and reference "
                "before a cap, and theirs are soft-capped: take the objective exopd, which "
                "compares log-probabilities, or reward_scale = 1"
            )
        past = 1.0 - self._objective.reward_scale
        scale = self._objective.reward_scale / self._objective.teacher_temperature
        samples = self._reference_samples(rollouts)
        other = self._teachers.kept.head(REFERENCE, self._reference, rollouts, samples)
        weight_VD = torch.cat(
            [scale * own.weight_VD, past * other.weight_VD.to(own.weight_VD)], dim=1
        )
        biases = [(scale, own.bias_V), (past, other.bias_V)]
        known = [share * bias.to(own.weight_VD) for share, bias in biases if bias is not None]
        bias_V = torch.stack(known).sum(0) if known else None
        hidden_ND = torch.cat([own.hidden_ND, other.hidden_ND.to(own.hidden_ND)], dim=1)
        return Head(hidden_ND, weight_VD, bias_V)
