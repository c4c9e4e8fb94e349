"""Which training problems are left out, and how many."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effopd.data.fields import conversation_at
from effopd.data.mapping import MappedRow, RejectedRow
from effopd.data.problem import Counts, Problem
from effopd.data.rows import file_rows
from effopd.errors import ConfigError

Check = tuple[str, Callable[[MappedRow], bool]]
"""A reason, and whether it applies to a problem."""

_WORD = re.compile(r"[^\W_]+")
_QUESTION_FIELDS = ("problem", "question", "prompt", "question_content")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What training problems have to be like. Length in tokens is `prompt.too_long`.

    Attributes:
        min_level: Easiest; problems without a readable level are left out too.
        max_level: Hardest.
        max_characters: Longest question.
        repeated: What becomes of a problem whose prompt was there before.
        benchmarks: Files, or patterns of files, whose problems must not be trained on.
        benchmark_words: Words in a row that a question may not share with a benchmark's.
    """

    min_level: float | None = None
    max_level: float | None = None
    max_characters: int | None = None
    repeated: Literal["drop", "keep"] = "drop"
    benchmarks: tuple[str, ...] = ()
    benchmark_words: int = 13

    def __post_init__(self) -> None:
        low, high = self.min_level, self.max_level
        if low is not None and high is not None and low > high:
            raise ConfigError(f"min_level must be at most max_level, got {low} and {high}")
        if self.max_characters is not None and self.max_characters < 1:
            raise ConfigError(f"max_characters must be at least 1, got {self.max_characters}")
        if self.benchmark_words < 1:
            raise ConfigError(f"benchmark_words must be at least 1, got {self.benchmark_words}")

    def checks(self, held_out: Collection[str]) -> list[Check]:
        """The checks in the order in which they are made; that of repeated prompts remembers them.

        `held_out` has the prompts of test problems, as `plain` writes them.
        """
        low, high, longest = self.min_level, self.max_level, self.max_characters
        found: list[Check] = []
        if low is not None or high is not None:
            found.append(("no readable level", lambda row: row.level is None))
        if low is not None:
            found.append((f"level below {low:g}", lambda row: (row.level or 0.0) < low))
        if high is not None:
            found.append((f"level above {high:g}", lambda row: (row.level or 0.0) > high))
        if longest is not None:
            found.append(
                (f"more than {longest} characters", lambda row: len(row.question) > longest)
            )
        if self.repeated == "drop":
            seen: set[str] = set()

            def is_repeated(row: MappedRow) -> bool:
                before = len(seen)
                seen.add(plain(row.problem))
                return len(seen) == before

            found.append(("the prompt of an earlier row", is_repeated))
        if held_out:
            found.append(
                ("the prompt of a test problem", lambda row: plain(row.problem) in held_out)
            )
        for pattern in self.benchmarks:
            reason = f"{self.benchmark_words} words in a row of {Path(pattern).name}"
            found.append((reason, Overlap(benchmark_questions(pattern), self.benchmark_words).has))
        return found


def plain(problem: Problem) -> str:
    """All that is said with white space made even: what makes two prompts the same."""
    return " ".join("\n".join(problem.said).split())


def select(
    name: str, rows: Iterable[MappedRow | RejectedRow], checks: Iterable[Check]
) -> tuple[list[MappedRow], Counts]:
    """The problems of a source that pass, in order, and the counts; an error where none passes."""
    checks, kept, dropped = list(checks), [], Counter[str]()
    first_mistake, read, answered = "", 0, 0
    for row in rows:
        read += 1
        if isinstance(row, RejectedRow):
            dropped[row.reason] += 1
            first_mistake = first_mistake or row.explanation
        elif reason := next((reason for reason, applies in checks if applies(row)), None):
            dropped[reason] += 1
        else:
            kept.append(row)
            answered += row.answered
    counts = Counts(
        name=name,
        read=read,
        kept=len(kept),
        dropped=dict(dropped.most_common()),
        answered=answered,
        example=first_mistake,
    )
    if not kept:
        example = f"\nThe first that cannot be read: {first_mistake}" if first_mistake else ""
        raise ConfigError(f"no problems are left. {counts}{example}")
    return kept, counts


# Overlap with benchmarks --------------------------------------------------------------------------


def words(text: str) -> list[str]:
    r"""Runs of letters and digits, compatibility forms and case undone.

    Punctuation, markup and layout do not count: `\frac{1}{2}` is `frac 1 2`.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Overlap:
    """The texts that share `ngram` consecutive words with one of a collection.

    A text of the collection with fewer words is shared by the texts that have exactly its words.
    """

    def __init__(self, texts: Iterable[str], ngram: int) -> None:
        self._ngram = ngram
        self._shared = {each for text in texts for each in self._sequences(text)}

    def __contains__(self, text: str) -> bool:
        """Whether a text overlaps with one of the collection."""
        return any(each in self._shared for each in self._sequences(text))

    def has(self, row: MappedRow) -> bool:
        """Whether the question of a row does."""
        return row.question in self

    def _sequences(self, text: str) -> Iterator[str]:
        """Every `ngram` words in a row; all words of a text with fewer."""
        found, size = words(text), self._ngram
        return (" ".join(found[i : i + size]) for i in range(max(len(found) - size, 0) + 1))


def benchmark_questions(pattern: str) -> Iterator[str]:
    """Questions of benchmark files, from the first of the usual fields that a row has."""
    for row in file_rows(pattern):
        try:
            usual = next((field for field in _QUESTION_FIELDS if field in row.values), None)
            if usual is None:
                raise ConfigError(
                    f"a benchmark needs one of the fields {', '.join(_QUESTION_FIELDS)}"
                )
            yield conversation_at(row.values, usual).asked
        except ConfigError as error:
            raise ConfigError(f"{row.place}: {error}") from None
