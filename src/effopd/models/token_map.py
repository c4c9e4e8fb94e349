"""Two tokenizers that differ in a few added tokens, taken for one vocabulary by a named mapping."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from effopd.errors import ParameterMismatchError
from effopd.models.tokenizers import default_ends, special_ids, turn_end_id

_SHOWN = 8
"""Tokens that a message names."""


@dataclass(frozen=True, kw_only=True)
class TokenMap:
    """Which token of the teacher is which of the student, where all ordinary tokens are shared.

    Attributes:
        student_ids: Ids that have a counterpart, ascending; each occurs once.
        teacher_ids: Their counterparts; each occurs once.
        lines: What a run prints of it, one sentence each; none where both are equal.
        in_prompts: Pairs of ids that are other tokens in a prompt than at the end of an answer: an
            exchanged end has its namesake there.
    """

    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    lines: tuple[str, ...]
    in_prompts: tuple[tuple[int, int], ...] = ()

    @cached_property
    def _teacher_of(self) -> dict[int, int]:
        return dict(zip(self.student_ids, self.teacher_ids, strict=True))

    @cached_property
    def _in_prompts(self) -> dict[int, int]:
        return self._teacher_of | dict(self.in_prompts)

    def knows(self, token_id: int) -> bool:
        """Whether the teacher has the student's token."""
        return token_id in self._teacher_of

    def answer_tokens(self, token_ids: Sequence[int], unknown: int) -> tuple[int, ...]:
        """An answer as ids of the teacher, with `unknown` in the place of what it lacks."""
        return tuple(self._teacher_of.get(i, unknown) for i in token_ids)

    def prompt_tokens(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """A prompt, where an exchanged end is its namesake; refuses what the teacher lacks."""
        known = self._in_prompts
        if missing := [i for i in token_ids if i not in known]:
            raise ParameterMismatchError(
                f"token {missing[0]} of the student has no counterpart in the teacher's tokenizer "
                f"({'; '.join(self.lines)}): leave it out of data and chat template, or give the "
                "teacher a prompt of its own ([teacher_prompt])"
            )
        return tuple(known[i] for i in token_ids)


def match_vocabularies(
    student: Any,
    teacher: Any,
    name: str,
    *,
    student_ends: Sequence[int] = (),
    teacher_ends: Sequence[int] = (),
    most_different: int = 64,
) -> TokenMap:
    """Takes two tokenizers that differ in a few added tokens for one vocabulary.

    Tokens of one name are one token, whatever their ids. An added token of the student without a
    namesake is the teacher's of the same role (end of turn, end of sequence, start, padding), if
    that is without one too. Where the two end their answers with no token in common, the first ends
    are exchanged: the student's end is scored as the teacher's.

    Args:
        student: Tokenizer of the student.
        teacher: Tokenizer of the teacher.
        name: What messages call the teacher.
        student_ends: Tokens at which the student's answers end; by default those of its tokenizer.
        teacher_ends: The teacher's.
        most_different: Added tokens that may differ: without a namesake on either side.

    Raises:
        ParameterMismatchError: An ordinary token is one's own, or more added tokens differ.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    alone_ours = {i for token, i in ours.items() if token not in theirs}
    alone_theirs = {i for token, i in theirs.items() if token not in ours}
    # Ordinary tokens decide how text is cut.
    ordinary = len(alone_ours - special_ids(student)), len(alone_theirs - special_ids(teacher))
    different = len(alone_ours) + len(alone_theirs)
    if any(ordinary) or different > most_different:
        raise ParameterMismatchError(
            f"student and {name} have different tokenizers: of {len(ours)} and {len(theirs)} "
            f"tokens {len(ours) - len(alone_ours)} have one name; {len(alone_ours)} are the "
            f"student's alone ({ordinary[0]} of them ordinary text) and {len(alone_theirs)} the "
            f"teacher's ({ordinary[1]}). One vocabulary are tokenizers with the same ordinary "
            f"tokens and at most {most_different} others that differ"
        )
    pairs = {i: theirs[token] for token, i in ours.items() if token in theirs}
    named = len(pairs)
    by_role = list[tuple[int, int, str]]()
    # What has no namesake is told by its role.
    for role, read in _ROLES.items():
        one, other = read(student), read(teacher)
        is_free = one not in pairs and other not in pairs.values()
        if one in alone_ours and other in alone_theirs and is_free:
            by_role.append((one, other, role))
            pairs[one] = other
    # Both must end their answers with one token at least.
    student_ends = tuple(student_ends) or default_ends(student)
    teacher_ends = tuple(teacher_ends) or default_ends(teacher)
    plain = dict(pairs)
    if not any(pairs.get(end) in teacher_ends for end in student_ends):
        one, other = student_ends[0], teacher_ends[0]
        displaced = next((i for i, j in pairs.items() if j == other), None)
        if displaced is not None and one in pairs:
            pairs[displaced] = pairs[one]
        elif displaced is not None:
            del pairs[displaced]
        pairs[one] = other
        by_role.append((one, other, "end of the answer"))
    return TokenMap(
        student_ids=tuple(sorted(pairs)),
        teacher_ids=tuple(pairs[i] for i in sorted(pairs)),
        lines=tuple(_described(student, teacher, name, named, pairs, by_role)),
        in_prompts=tuple((i, j) for i, j in plain.items() if pairs.get(i) != j),
    )


_ROLES = {
    "end of a turn": turn_end_id,
    "end of the text": lambda tokenizer: tokenizer.eos_token_id,
    "start of the text": lambda tokenizer: tokenizer.bos_token_id,
    "padding": lambda tokenizer: tokenizer.pad_token_id,
}


def _described(
    student: Any,
    teacher: Any,
    name: str,
    named: int,
    pairs: dict[int, int],
    by_role: Sequence[tuple[int, int, str]],
) -> Iterator[str]:
    """Sentences on a map: what has a role, what has other ids, what is left out."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    sides = ((student, ours, pairs.keys()), (teacher, theirs, {*pairs.values()}))
    alone = [
        [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted({*tokens.values()} - {*known})]
        for tokenizer, tokens, known in sides
    ]
    moved = sum(i != j for i, j in pairs.items()) - len(by_role)
    if not by_role and not moved and not any(alone):
        return
    yield f"student and {name} share {named} tokens by name, {max(0, moved)} of them with other ids"
    for one, other, role in by_role:
        names = student.convert_ids_to_tokens(one), teacher.convert_ids_to_tokens(other)
        yield f"{names[0]!r} ({one}) of the student is {names[1]!r} ({other}) of {name}: {role}"
    for who, tokens in zip(("the student", name), alone, strict=True):
        if tokens:
            more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
            listed = ", ".join(map(repr, tokens[:_SHOWN])) + more
            yield f"only {who} has {listed}: left out of every comparison"
