"""Every answer scored by the teacher that its problem names."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from effopd.data.problem import Problem
from effopd.errors import ConfigError
from effopd.evaluation.kept_states import (
    STUDENT,
    KeptStates,
    Target,
    served_target,
    teacher_key,
)
from effopd.evaluation.logprobs import (
    BATCH_SEQUENCES,
    BATCH_TOKENS,
    common_reverse_kl,
    known_rows,
    log_probs_of,
    reverse_kl_of,
    served_reverse_kl,
    where_known,
    with_missing,
    without_missing,
)
from effopd.evaluation.readings import AlignedReading, Reading
from effopd.evaluation.served_teacher import LikelyTokens, ServedTeacher
from effopd.models.architecture import position_limit
from effopd.models.policy import Policy, Sample, micro_batches
from effopd.objectives.projection import Head
from effopd.rollouts.prompts import PromptTemplate, shapes
from effopd.rollouts.rollout import Rollout

TokenValues = list[tuple[float, ...]]

Teacher = Policy | ServedTeacher

_ENCODED = 4096  # prompts of a teacher's own that are remembered

_ASKED_TOKENS = 65_536
"""Padded tokens that a server is asked for together where nothing of them is to be kept."""


class OwnPrompt:
    """A prompt of its own for a model that scores, before the student's answers.

    `positions` is how many tokens the model is made for, None for any number. Nothing is cut.
    """

    def __init__(self, template: PromptTemplate, tokenizer: Any, positions: int | None) -> None:
        self.template, self._tokenizer, self._positions = template, tokenizer, positions
        self._encoded: dict[tuple[str, str], tuple[int, ...]] = {}

    @classmethod
    def of(cls, template: PromptTemplate, policy: Teacher) -> "OwnPrompt":
        """For a model, whose chat template has to read the template's arguments."""
        template.check_arguments(policy.tokenizer)
        positions = None
        if isinstance(policy, Policy):  # a server refuses what is too long for it
            positions = position_limit(policy.model.config.to_dict())
        return cls(template, policy.tokenizer, positions)

    def check(self, problems: Sequence[Problem], answer_tokens: int) -> None:
        """Refuses what would be refused later, as far as the longest and each shape tell."""
        for problem in shapes(problems) if problems else ():
            self.ids(problem, answer_tokens)

    def ids(self, problem: Problem, answer_tokens: int) -> tuple[int, ...]:
        """Its tokens before an answer of so many; refuses more than the model has positions for."""
        name = (problem.id, problem.prompt)
        if name not in self._encoded:
            if len(self._encoded) >= _ENCODED:
                self._encoded.clear()
            self._encoded[name] = self.template.encode(self._tokenizer, problem)
        found = self._encoded[name]
        if self._positions is not None and len(found) + answer_tokens > self._positions:
            raise ConfigError(
                f"{self.template.section} has {len(found)} tokens before the {answer_tokens} of an "
                f"answer to {problem.id}, more than the {self._positions} positions that its model "
                f"is made for, and nothing of it is cut: shorten {self.template.section}, or lower "
                "sampling.max_new_tokens"
            )
        return found

    def sample(self, rollout: Rollout) -> Sample:
        """The answer after this prompt."""
        answer_tokens = len(rollout.completion.token_ids)
        return replace(rollout.sample, prompt_ids=self.ids(rollout.problem, answer_tokens))


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """Teachers by name, at least one; "" is the name of problems that name no teacher.

    Those in `prompts` read their own prompt before an answer, the others the student's. Those in
    `readings` have other tokens. `kept` has the hidden states of the answers at hand.
    """

    policies: Mapping[str, Teacher]
    prompts: Mapping[str, OwnPrompt] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)
    kept: KeptStates = field(default_factory=KeptStates, compare=False)

    def __post_init__(self) -> None:
        if not self.policies:
            raise ConfigError("no teacher was given, expected at least one")

    @classmethod
    def single(cls, policy: Teacher) -> "Teachers":
        """One teacher for all problems that name none."""
        return cls(policies={"": policy})

    def name_for(self, problem: Problem) -> str:
        """Under which name the problem's teacher is registered; refuses one that is not there."""
        if problem.teacher in self.policies:
            return problem.teacher
        if problem.teacher == "" and len(self.policies) == 1:
            return next(iter(self.policies))
        known = ", ".join(map(repr, self.policies))
        given = f"the teacher {problem.teacher!r}" if problem.teacher else "no teacher"
        raise ConfigError(
            f"problem {problem.id} names {given}; known are {known}. Name one of these in the "
            "problem, or add the teacher."
        )

    def split(self, rollouts: Sequence[Rollout]) -> list[tuple[str, Teacher, list[int]]]:
        """Which teacher scores which rollouts: name, teacher, ascending indices; none empty."""
        indices: dict[str, list[int]] = {name: [] for name in self.policies}
        for i, rollout in enumerate(rollouts):
            indices[self.name_for(rollout.problem)].append(i)
        return [(name, self.policies[name], found) for name, found in indices.items() if found]

    def split_local(self, rollouts: Sequence[Rollout]) -> list[tuple[str, Policy, list[int]]]:
        """`split` for those who need a model's own logits; refuses a teacher behind a server."""
        return [(name, _local(teacher), found) for name, teacher, found in self.split(rollouts)]

    def split_dense(self, rollouts: Sequence[Rollout]) -> list[tuple[str, Teacher, list[int]]]:
        """`split` for those who need distributions; refuses a server that gives none."""
        return [(name, _dense(teacher), found) for name, teacher, found in self.split(rollouts)]

    def sample_for(self, name: str, rollout: Rollout) -> Sample:
        """What the teacher reads: its own prompt if it has one, and the answer."""
        own, reading = self.prompts.get(name), self.readings.get(name)
        if reading is not None:
            longest = reading.tokens_read(rollout)
            prompt = None if own is None else own.ids(rollout.problem, longest)
            return reading.sample(rollout, prompt)
        return rollout.sample if own is None else own.sample(rollout)

    def hold(self, rollouts: Sequence[Rollout]) -> None:
        """Names the answers whose states are kept once they are read, see `KeptStates.hold`."""
        self.kept.hold(rollouts)

    def read(self, rollouts: Sequence[Rollout], *, batch_tokens: int = BATCH_TOKENS) -> None:
        """Has each teacher read its answers among those at hand, unless it has.

        What there is no room for is left.
        """
        for name, teacher, indices in self.split_dense(rollouts):
            members = [rollouts[i] for i in indices]
            samples = [self.sample_for(name, each) for each in members]
            self.kept.fill(teacher_key(name), teacher, members, samples, batch_tokens=batch_tokens)

    def target(self, name: str, rollouts: Sequence[Rollout]) -> Target:
        """What a teacher says of a micro-batch of its answers.

        Hidden states [N, D] and head, or likely tokens [N, K]. Rows that a server did not give are
        NaN.
        """
        samples = [self.sample_for(name, each) for each in rollouts]
        key, teacher = teacher_key(name), _dense(self.policies[name])
        if isinstance(teacher, ServedTeacher):
            return served_target(teacher, self.kept.served(key, teacher, rollouts, samples))
        return self.kept.head(key, teacher, rollouts, samples)

    def unread(self, rollouts: Sequence[Rollout]) -> int:
        """Tokens of answers whose states are not kept."""
        return sum(
            len(self.sample_for(name, rollouts[indices[i]]).learned_ids)
            for name, _, indices in self.split(rollouts)
            for i in self.kept.missing(teacher_key(name), [rollouts[j] for j in indices])
        )

    @property
    def tokens_read(self) -> int:
        """Completion tokens of which teachers have given distributions so far."""
        return sum(self.kept.tokens_read[teacher_key(name)] for name in self.policies)

    @property
    def served(self) -> dict[str, ServedTeacher]:
        """Those behind servers."""
        return {n: t for n, t in self.policies.items() if isinstance(t, ServedTeacher)}

    def identities(self) -> dict[str, Tensor]:
        """How teachers behind servers score their fixed texts, to be kept with a checkpoint."""
        return {
            f"served_teacher.{name}": torch.tensor(teacher.identity.log_probs, dtype=torch.float64)
            for name, teacher in self.served.items()
        }

    def expect(self, identities: Mapping[str, Tensor]) -> None:
        """Checks teachers behind servers against the `identities` of a checkpoint, if there."""
        for name, teacher in self.served.items():
            if (kept := identities.get(f"served_teacher.{name}")) is not None:
                teacher.expect(kept.tolist())


def routed_log_probs(
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    *,
    temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
) -> TokenValues:
    """`completion_log_probs` of each rollout under its own teacher, in the rollouts' order."""
    found: dict[int, tuple[float, ...]] = {}
    for name, teacher, indices in teachers.split(rollouts):
        members = [rollouts[i] for i in indices]
        if isinstance(teacher, ServedTeacher):
            values = _served_log_probs(teachers, name, teacher, members, temperature, batch_tokens)
        else:
            values = kept_log_probs(
                teachers.kept,
                teacher_key(name),
                teacher,
                members,
                [teachers.sample_for(name, each) for each in members],
                temperature=temperature,
                batch_tokens=batch_tokens,
            )
        if (reading := teachers.readings.get(name)) is not None:
            pairs = zip(members, values, strict=True)
            values = [reading.values(each, own) for each, own in pairs]
        found.update(zip(indices, values, strict=True))
    return [found[i] for i in range(len(rollouts))]


def _served_log_probs(
    teachers: Teachers,
    name: str,
    teacher: ServedTeacher,
    rollouts: Sequence[Rollout],
    temperature: float,
    batch_tokens: int,
) -> TokenValues:
    """From what is kept already, hidden states or values beside likely tokens, else asked for."""
    samples = [teachers.sample_for(name, each) for each in rollouts]
    is_kept = teacher.gives_distributions and not teachers.kept.missing(teacher_key(name), rollouts)
    if not is_kept or (temperature != 1.0 and not teacher.gives_states):
        return teacher.log_probs(samples, temperature=temperature)
    if not teacher.gives_states:
        parts = teachers.kept.served(teacher_key(name), teacher, rollouts, samples)
        return [tuple(part.written_N.tolist()) for part in parts if isinstance(part, LikelyTokens)]
    found: TokenValues = [()] * len(rollouts)
    for indices in _micro_batches(samples, batch_tokens):
        head = teachers.target(name, [rollouts[i] for i in indices])
        assert isinstance(head, Head)  # it gives states
        chosen = [samples[i] for i in indices]
        values = log_probs_of(without_missing(head), chosen, temperature)
        for i, row in zip(indices, with_missing(values, known_rows(head)), strict=True):
            found[i] = row
    return found


def kept_log_probs(
    kept: KeptStates,
    key: str,
    policy: Policy,
    rollouts: Sequence[Rollout],
    samples: Sequence[Sample],
    *,
    temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
) -> TokenValues:
    """`completion_log_probs` from states that are kept; what is not is read, and not kept."""
    found: TokenValues = []
    with policy.during() if kept.missing(key, rollouts) else nullcontext():
        for indices in _micro_batches(samples, batch_tokens):
            chosen = [samples[i] for i in indices]
            head = kept.head(key, policy, [rollouts[i] for i in indices], chosen)
            if policy.head_rows is not None:  # which are in the order of the student's tokens
                chosen = [rollouts[i].sample for i in indices]
            found += log_probs_of(head, chosen, temperature)
    return found


def routed_reverse_kl(
    student: Policy,
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    *,
    teacher_temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
) -> TokenValues:
    """`completion_reverse_kl` of each rollout to its own teacher, in the rollouts' order.

    States that are kept in `teachers.kept`, the teachers' and the student's, are not made again.
    NaN where a server did not say what the teacher holds, or a teacher of another tokenizer has not
    read the same text; a lower bound where a server names k tokens (`top_k_divergence`), and over
    classes of tokens where these differ (`common_divergence`).
    """
    found: dict[int, tuple[float, ...]] = {}
    for name, teacher, indices in teachers.split_dense(rollouts):
        members, reading = [rollouts[i] for i in indices], teachers.readings.get(name)
        is_served = isinstance(teacher, ServedTeacher)
        for places, theirs in _told(teachers, name, student, members, batch_tokens):
            part = [members[place] for place in places]
            samples = [each.sample for each in part]
            ours = teachers.kept.head(STUDENT, student, part, samples)
            if isinstance(reading, AlignedReading) and isinstance(theirs, Head):
                compared = reading.compared(part, ours.weight_VD, theirs.weight_VD)
                if is_served:
                    theirs, compared = where_known(theirs, compared)
                values = common_reverse_kl(ours, theirs, compared, samples, teacher_temperature)
            else:
                measure: Any = served_reverse_kl if is_served else reverse_kl_of
                values = measure(ours, theirs, samples, teacher_temperature)
            found.update(zip([indices[place] for place in places], values, strict=True))
    return [found[i] for i in range(len(rollouts))]


def _told(
    teachers: Teachers,
    name: str,
    student: Policy,
    rollouts: Sequence[Rollout],
    batch_tokens: int,
) -> Iterator[tuple[list[int], Target]]:
    """What a teacher says of its answers, in micro-batches; a server is asked for many together."""
    key, teacher = teacher_key(name), teachers.policies[name]
    if isinstance(teacher, ServedTeacher):
        read = [teachers.sample_for(name, each) for each in rollouts]
        for asked in micro_batches([each.length for each in read], tokens=_ASKED_TOKENS):
            members = [rollouts[i] for i in asked]
            parts = teachers.kept.served(key, teacher, members, [read[i] for i in asked])
            for places in _micro_batches([each.sample for each in members], batch_tokens):
                told = served_target(teacher, [parts[place] for place in places])
                yield [asked[place] for place in places], told
        return
    # A teacher that is the student in another state must not put it there for both.
    alone = teachers.kept.missing(key, rollouts) and teacher.model is not student.model
    with teacher.during() if alone else nullcontext():
        for places in _micro_batches([each.sample for each in rollouts], batch_tokens):
            yield places, teachers.target(name, [rollouts[place] for place in places])


def _micro_batches(samples: Sequence[Sample], batch_tokens: int) -> Iterator[list[int]]:
    lengths = [sample.length for sample in samples]
    return micro_batches(lengths, tokens=batch_tokens, sequences=BATCH_SEQUENCES)


def _dense(teacher: Teacher) -> Teacher:
    if isinstance(teacher, ServedTeacher) and not teacher.gives_distributions:
        raise ConfigError(
            f"{teacher} gives log-probabilities of given tokens only, and a distribution at every "
            "token is needed: set teacher_server.top_k, serve it by `effopd serve-teacher`, or use "
            "objective.type = 'sampled_token' or 'exopd', validation.type = 'accuracy' and "
            "evaluation.divergence = false"
        )
    return teacher


def _local(teacher: Teacher) -> Policy:
    if isinstance(teacher, ServedTeacher):
        raise ConfigError(
            f"{teacher} is behind a server, and logits of a model in this process are needed: name "
            "it as [teacher] instead"
        )
    return teacher
