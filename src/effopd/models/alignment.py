"""One answer in the tokens of student and teacher: spans of equal bytes, and what they are worth.

Legend: N student tokens of an answer, M teacher tokens of the same answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.token_bytes import TokenBytes, token_ends
from effopd.models.tokenizers import default_ends, special_ids


class Span(NamedTuple):
    """Tokens `start:stop` of student and teacher that write the same bytes of an answer."""

    student_start: int
    student_stop: int
    teacher_start: int
    teacher_stop: int
    is_equal: bool  # one token each, of equal bytes or of one role

    @property
    def is_scored(self) -> bool:
        """Whether the teacher has tokens for it."""
        return self.teacher_stop > self.teacher_start


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """One answer as both tokenizers cut it.

    Attributes:
        teacher_ids: The answer in the teacher's tokens [M].
        spans: In order; they partition the student's tokens and the teacher's.
    """

    teacher_ids: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def counts(self) -> "SpanCounts":
        """Student tokens by how they are scored."""
        equal, run, unscored = 0, 0, 0
        for span in self.spans:
            tokens = span.student_stop - span.student_start
            equal += tokens if span.is_equal else 0
            run += tokens if span.is_scored and not span.is_equal else 0
            unscored += 0 if span.is_scored else tokens
        return SpanCounts(equal=equal, run=run, unscored=unscored)


@dataclass(frozen=True, kw_only=True)
class SpanCounts:
    """Student tokens scored alone, as part of a run, and not at all; they add up."""

    equal: int = 0
    run: int = 0
    unscored: int = 0

    def __add__(self, other: "SpanCounts") -> "SpanCounts":
        return SpanCounts(
            equal=self.equal + other.equal,
            run=self.run + other.run,
            unscored=self.unscored + other.unscored,
        )

    @property
    def shares(self) -> dict[str, float]:
        """The same as shares of all tokens, for metrics; zeros without tokens."""
        tokens = max(1, self.equal + self.run + self.unscored)
        return {
            "equal_token_share": self.equal / tokens,
            "run_token_share": self.run / tokens,
            "unscored_token_share": self.unscored / tokens,
        }


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
    """When two tokenizers are too different to learn across them.

    Attributes:
        least_equal: Share of the student's tokens that must have a teacher's token of the same
            bytes, in [0, 1]. Where most tokens are parts of runs, credit goes to the wrong ones.
        tokenizer: Directory or repository of a teacher behind a server, of which config.json and
            tokenizer are read; "" where the teacher is here.
    """

    least_equal: float = 0.5
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.least_equal <= 1:
            raise ConfigError(f"least_equal must be in [0, 1], got {self.least_equal}")

    def check(self, counts: SpanCounts, name: str) -> None:
        """Refuses a teacher, called `name`, whose tokens match too few of the student's."""
        shares = counts.shares
        self.check_share(
            f"have a token of the same bytes, {shares['run_token_share']:.0%} are in runs that "
            f"match as a whole, {shares['unscored_token_share']:.0%} have no counterpart",
            shares["equal_token_share"],
            name,
        )

    def check_share(self, what: str, share: float, name: str) -> None:
        """Refuses a teacher of which too few of the student's tokens are compared."""
        if share < self.least_equal:
            raise ParameterMismatchError(
                f"the tokenizers of student and {name} cut answers too differently: {share:.0%} "
                f"of the student's tokens {what}; least_equal = {self.least_equal:g}. Choose a "
                "teacher with a closer tokenizer, or lower it"
            )


_REMEMBERED = 4096  # answers: each is aligned to be read, to be scored and to be counted


class Aligner:
    """Cuts the student's answers again as the teacher's tokenizer would.

    Args:
        student: Tokenizer of the student.
        teacher: Tokenizer of the teacher.
        student_ends: Tokens at which the student's answers end; those of its tokenizer and chat
            template by default.
        teacher_ends: The teacher's.
        recuts: Cut answers again also where both have one vocabulary.

    Raises:
        ParameterMismatchError: The bytes of a tokenizer's tokens cannot be told.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        student_ends: Sequence[int] = (),
        teacher_ends: Sequence[int] = (),
        recuts: bool = False,
    ) -> None:
        self.student, self.teacher = TokenBytes(student), TokenBytes(teacher)
        self.student_ends = tuple(student_ends) or default_ends(student)
        self.teacher_ends = tuple(teacher_ends) or default_ends(teacher)
        self._is_same = not recuts and student.get_vocab() == teacher.get_vocab()
        self.special = special_pairs(student, teacher, self.student_ends, self.teacher_ends)
        self._aligned = lru_cache(_REMEMBERED)(self._align)

    @cached_property
    def beginnings(self) -> frozenset[int]:
        """Tokens of the student with which another of its tokens begins."""
        known = by_bytes(self.student)
        starts = {text[:end] for text in known for end in range(1, len(text))}
        return frozenset(i for text, i in known.items() if text in starts)

    def align(self, completion_ids: Sequence[int]) -> Alignment:
        """The answer in the teacher's tokens, and which tokens of both write the same bytes.

        An end token is that of the same role. A special token inside the answer that the teacher
        does not have is a span without tokens of the teacher, which is not scored. Where both have
        one vocabulary, the teacher scores the student's own tokens, however they cut the text.
        """
        return self._aligned(tuple(completion_ids))

    def _align(self, ids: tuple[int, ...]) -> Alignment:
        teacher_ids, spans = list[int](), list[Span]()
        if self._is_same:
            return Alignment(
                teacher_ids=tuple(self.special.get(token, token) for token in ids),
                spans=tuple(Span(i, i + 1, i, i + 1, True) for i in range(len(ids))),
            )
        start = 0
        for place, token in enumerate((*ids, None)):
            is_end = place == len(ids) - 1 and token in self.student_ends
            is_text = token not in self.special and not self.student.is_special(token)
            if token is not None and not is_end and is_text:
                continue
            # The text before the special token, or before the end of the answer.
            if place > start:
                cut, found = self._text(ids[start:place])
                before = len(teacher_ids)
                spans += [
                    Span(a + start, b + start, c + before, d + before, same)
                    for a, b, c, d, same in found
                ]
                teacher_ids += cut
            if token is not None:
                theirs = self.special.get(token)
                before = len(teacher_ids)
                teacher_ids += [] if theirs is None else [theirs]
                after = len(teacher_ids)
                spans.append(Span(place, place + 1, before, after, theirs is not None))
            start = place + 1
        return Alignment(teacher_ids=tuple(teacher_ids), spans=tuple(spans))

    def _text(self, ids: tuple[int, ...]) -> tuple[list[int], list[Span]]:
        """The teacher's tokens of a text without special tokens, and the spans."""
        ours = self.student.pieces(ids)
        cut, theirs = self.teacher.cut(b"".join(ours))
        if not cut:  # an empty text: nothing that the teacher could score
            return [], [Span(0, len(ids), 0, 0, False)]
        ends = token_ends(ours, b"".join(theirs))
        found = list(_matched(ends, list(accumulate(map(len, theirs)))))
        return cut, [
            Span(a, b, c, d, (b - a, d - c) == (1, 1) and ours[a] == theirs[c])
            for a, b, c, d in found
        ]


def align(
    student_tokenizer: Any, teacher_tokenizer: Any, completion_ids: Sequence[int]
) -> Alignment:
    """One answer in the tokens of both; `Aligner` keeps what many answers have in common."""
    return Aligner(student_tokenizer, teacher_tokenizer).align(completion_ids)


def transfer(
    alignment: Alignment,
    student_log_probs_N: Float[Tensor, " N"],
    teacher_log_probs_M: Float[Tensor, " M"],
) -> Float[Tensor, " N"]:
    """The teacher's log-probabilities (nats) as values of the student's tokens.

    A token that both have takes the teacher's value as it is. A run that matches as a whole is
    scored on its last token, with the difference of the summed log-probabilities; the others take
    the student's own, an advantage of 0. So `teacher - student` adds up to the difference of the
    whole answer. Tokens without a counterpart are NaN. With equal tokenizers the result is the
    input, bit for bit. No gradients flow.
    """
    student_N, teacher_M = student_log_probs_N.detach(), teacher_log_probs_M.detach()
    values_N = student_N.to(torch.promote_types(student_N.dtype, teacher_M.dtype), copy=True)
    for span in alignment.spans:
        ours = slice(span.student_start, span.student_stop)
        theirs = slice(span.teacher_start, span.teacher_stop)
        if span.is_equal:
            values_N[ours] = teacher_M[theirs]
        elif span.is_scored:
            difference = teacher_M[theirs].sum() - student_N[ours].sum()
            values_N[span.student_stop - 1] += difference
        else:
            values_N[ours] = torch.nan
    return values_N


def by_bytes(tokens: TokenBytes) -> dict[bytes, int]:
    """Bytes -> id of the token that writes them, one that is no fallback where there are two."""
    ids = sorted(tokens.tokenizer.get_vocab().values(), key=lambda i: (tokens.is_fallback(i), i))
    found: dict[bytes, int] = {}
    for i in ids:
        if text := tokens.of(i):
            found.setdefault(text, i)
    return found


def special_pairs(
    student: Any, teacher: Any, student_ends: Sequence[int], teacher_ends: Sequence[int]
) -> dict[int, int]:
    """Special token of the student -> the teacher's: one of the same name, an end for an end."""
    names, theirs = student.convert_ids_to_tokens, teacher.get_vocab()
    known = special_ids(teacher)
    same = {i: theirs.get(names(i)) for i in sorted(special_ids(student))}
    pairs = {i: j for i, j in same.items() if j is not None and j in known}
    for end in student_ends:
        if pairs.get(end) not in teacher_ends:
            pairs[end] = teacher_ends[0]
    return pairs


def _matched(
    ours: Sequence[int | None], theirs: Sequence[int | None]
) -> Iterator[tuple[int, int, int, int]]:
    """The finest runs of tokens of both that end together; the last takes whatever is left.

    A token without bytes belongs to the run behind it.
    """
    first_stop: dict[int, int] = {}
    for j, end in enumerate(theirs, 1):
        if end:
            first_stop.setdefault(end, j)
    a = c = 0
    for i, end in enumerate(ours, 1):
        j = first_stop.get(end or 0, 0)
        if j > c and end != theirs[-1]:
            yield a, i, c, j
            a, c = i, j
    yield a, len(ours), c, len(theirs)
