"""Teachers: whoever scores what the student wrote."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.evaluation.readings import AlignedReading, MappedReading, Reading
from effopd.models.alignment import Aligner, AlignmentSettings
from effopd.models.checkpoints import restore_
from effopd.models.policy import Policy
from effopd.models.token_map import TokenMap, match_vocabularies
from effopd.models.tokenizers import ends_remark, shared_vocabulary
from effopd.objectives import aligned_vocabulary_size


def frozen(policy: Policy) -> Policy:
    """The policy with parameters that require no gradient, in evaluation mode."""
    policy.model.requires_grad_(False).eval()
    return policy


def frozen_copy(policy: Policy) -> Policy:
    """A copy of a policy as it is now."""
    return frozen(
        Policy(
            copy.deepcopy(policy.model), policy.tokenizer, vocabulary_size=policy.vocabulary_size
        )
    )


@dataclass(frozen=True, kw_only=True)
class SelfTeacher:
    """A teacher made of the student's own weights, see docs/teachers.md.

    Attributes:
        weights: "average" is their exponential moving average, in a copy. "current" is the very
            model that is trained, as it is when a batch is scored, and "base" the untrained
            student: with adapters that is the model with them switched off, else a copy. These two
            teach by a prompt of their own (`teacher_prompt`).
        decay: Share of the average that is kept at each step, in [0, 1).
    """

    weights: Literal["average", "current", "base"] = "average"
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"self_teacher.decay must be in [0, 1), got {self.decay}")


MOVES_WITH_STUDENT = (
    "self_teacher.weights = 'current' teaches by weights that every update moves the same way, so "
    "that nothing holds what the prompt makes them do: set self_teacher.weights = 'base', or stop "
    "at the best evaluation (train.stop.patience, checkpoint.keep_best)"
)
"""Measured in the tiny world, where the prompted model goes from 95 % to 0 (docs/teachers.md)."""


class StudentAverage:
    """Moves a teacher towards the student: `teacher = decay * teacher + (1 - decay) * student`.

    The average is kept in fp32 or wider and rounded once to the teacher's precision: in bfloat16 a
    step of a hundredth of the distance would round away. `moved` is called whenever the teacher
    has other weights.
    """

    def __init__(
        self,
        teacher: Policy,
        student: Policy,
        decay: float,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.teacher, self._student, self._decay = teacher, student, decay
        self._moved = moved
        self._average = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in teacher.model.named_parameters()
        }

    @torch.no_grad()
    def update_(self) -> None:
        """One step towards the student as it is now."""
        for name, parameter in self._student.model.named_parameters():
            average = self._average[name]
            average.lerp_(parameter.to(average), 1.0 - self._decay)
        self._write_()

    def _write_(self) -> None:
        for name, parameter in self.teacher.model.named_parameters():
            parameter.copy_(self._average[name])
        self._moved()

    def state(self) -> dict[str, Tensor]:
        """The average by parameter name; references."""
        return dict(self._average)

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        restore_(self._average, tensors, "average")
        self._write_()


class Vocabularies(NamedTuple):
    """What a run says of the tokens of all models, and how teachers with other tokens read."""

    remarks: list[str]
    readings: dict[str, Reading]


def align_vocabularies(
    student: Policy,
    others: Mapping[str, Policy],
    *,
    readers: Collection[str] = (),
    alignment: AlignmentSettings | None = None,
    is_dense: bool = True,
) -> Vocabularies:
    """Trims head rows so that all policies have the same vocabulary: the tokens they share.

    Those of `readers` may have other tokens: under a named mapping, or, with `alignment`, another
    tokenizer. `is_dense` is whether whole vocabularies are compared.

    Raises:
        ParameterMismatchError: Tokens that cannot be compared; says what to set.
    """
    sizes, remarks, trimmed = [student.vocabulary_size], list[str](), [student]
    readings, maps = dict[str, Reading](), dict[str, TokenMap]()
    for name, other in others.items():
        ends = student.end_ids, other.tokenizer, other.end_ids
        remark = ends_remark(student.tokenizer, *ends, name)
        if name in readers:
            found = _reading(student, other, name, alignment)
            if found is not None:
                readings[name] = found
                if isinstance(found, MappedReading):
                    remarks += found.tokens.lines
                    maps[name] = found.tokens
                else:
                    remarks.append(f"{name} has another tokenizer: answers are aligned by bytes")
                continue
        shared = shared_vocabulary(student.tokenizer, other.tokenizer, name)
        trimmed.append(other)
        if remark:
            remarks.append(remark)
        if shared.size is None:
            rows = (student.vocabulary_size, other.vocabulary_size)
            sizes.append(aligned_vocabulary_size(*rows, len(student.tokenizer)))
            continue
        for whose, policy in (("the student", student), (name, other)):
            if policy.vocabulary_size <= (last := max(policy.tokenizer.get_vocab().values())):
                raise ParameterMismatchError(
                    f"the lm_head of {whose} has {policy.vocabulary_size} rows, its tokenizer "
                    f"uses ids up to {last}: resize its embeddings, or drop the added tokens"
                )
        sizes.append(shared.size)
        remarks.append(shared.remark)
    # Under a mapping the shared tokens are the student's first, or whole vocabularies are apart.
    for tokens in maps.values():
        count = len(tokens.student_ids)
        if tokens.student_ids == tuple(range(count)):
            sizes.append(count)
        elif is_dense:
            raise ParameterMismatchError(
                f"{'; '.join(tokens.lines)}. The tokens that only the student has are not its last "
                "ones, so that whole vocabularies cannot be compared: set objective.type = "
                "'sampled_token', validation.type = 'accuracy' and evaluation.divergence = false"
            )
    for policy in trimmed:
        policy.vocabulary_size = min(sizes)
    for name, tokens in maps.items():
        if tokens.student_ids == tuple(range(len(tokens.student_ids))):
            others[name].head_rows = tokens.teacher_ids[: min(sizes)]
    return Vocabularies(remarks, readings)


def _reading(
    student: Policy, teacher: Policy, name: str, alignment: AlignmentSettings | None
) -> Reading | None:
    """How a teacher with other tokens reads; None where ids are shared and one end at least."""
    refused: ParameterMismatchError | None = None
    names = [
        {policy.tokenizer.convert_ids_to_tokens(i) for i in policy.end_ids}
        for policy in (student, teacher)
    ]
    try:
        shared_vocabulary(student.tokenizer, teacher.tokenizer, name)
        if names[0] & names[1]:
            return None
    except ParameterMismatchError as error:
        refused = error
    pair, ends = (student.tokenizer, teacher.tokenizer), (student.end_ids, teacher.end_ids)
    try:
        tokens = match_vocabularies(*pair, name, student_ends=ends[0], teacher_ends=ends[1])
    except ParameterMismatchError as error:
        if alignment is None:
            raise ParameterMismatchError(
                f"{refused or error} To learn across tokenizers set [alignment] "
                "(docs/tokenizers.md)."
            ) from error
        return aligned_reading(student, teacher.tokenizer, ends[1], name, alignment)
    if teacher.vocabulary_size <= (last := max(tokens.teacher_ids)):
        raise ParameterMismatchError(
            f"the lm_head of {name} has {teacher.vocabulary_size} rows, its tokenizer uses ids up "
            f"to {last}: resize its embeddings, or drop the added tokens"
        )
    return MappedReading(tokens=tokens, unknown=teacher.tokenizer.pad_token_id)


def aligned_reading(
    student: Policy, tokenizer: Any, ends: tuple[int, ...], name: str, settings: AlignmentSettings
) -> AlignedReading:
    """How a teacher with another tokenizer reads, whose answers end with `ends`."""
    own, own_ends = student.tokenizer, student.end_ids
    return AlignedReading(
        aligner=Aligner(own, tokenizer, student_ends=own_ends, teacher_ends=ends),
        settings=settings,
        name=name,
        own=Aligner(own, own, student_ends=own_ends, teacher_ends=own_ends, recuts=True),
    )


def alignment_contradictions(config: Any) -> Iterator[str]:
    """What is not learned across tokenizers, and why."""
    if config.alignment is None:
        return
    objective = config.objective
    if config.alignment.tokenizer and not config.teacher_server:
        yield "alignment.tokenizer is teacher_server's, a local teacher brings its own: remove it"
    if config.teacher_server and not config.alignment.tokenizer:
        yield (
            "alignment needs the teacher's tokenizer, which teacher_server does not send: set "
            "alignment.tokenizer to its directory or repository, or remove [alignment]"
        )
    server = config.teacher_server
    if server and server.flavor != "effopd" and config.compares_vocabularies:
        yield (
            f"alignment with teacher_server.flavor = {server.flavor!r} compares the sampled tokens "
            "alone, since likely tokens leave out part of every class: serve the teacher by "
            "`effopd serve-teacher` (flavor = 'effopd'), or set objective.type = 'sampled_token', "
            "validation.type = 'accuracy' and evaluation.divergence = false"
        )
    if config.self_teacher:
        yield (
            "alignment is for another tokenizer than the student's, which self_teacher has: remove "
            "it"
        )
    if config.environment:
        yield (
            "alignment aligns answers that the student wrote as a whole, and environment writes "
            "parts of them in the student's chat template: keep one"
        )
    if objective.type not in {"sampled_token", "full_kl"}:
        yield (
            "alignment brings a teacher's values to the student's tokens beside the student's own, "
            "which other objectives weigh otherwise: set objective.type = 'full_kl' or "
            f"'sampled_token', not {objective.type!r}"
        )
    if objective.needs_vocabulary and objective.reward_scale != 1.0:
        yield (
            "alignment leaves no logits that could be mixed with those of a reference: set "
            f"objective.reward_scale = 1, not {objective.reward_scale:g}"
        )
