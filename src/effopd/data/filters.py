"""Which training problems are left out, and how many."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effopd.data.counts import Counts
from effopd.data.decontamination import Overlap, benchmark_questions
from effopd.data.mapping import Candidate, Unfit
from effopd.errors import ConfigError

Check = tuple[str, Callable[[Candidate], bool]]
"""A reason, and whether it applies to a problem."""


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
        """The checks, in the order in which they are made.

        Args:
            held_out: Prompts of test problems, as `plain` writes them.

        Returns:
            The checks; the one of repeated prompts remembers what it saw.
        """
        found = [*self._level_checks()]
        if (limit := self.max_characters) is not None:
            found.append((f"more than {limit} characters", lambda c: len(c.question) > limit))
        if self.repeated == "drop":
            found.append(("the prompt of an earlier row", _is_repeated()))
        if held_out:
            found.append(("the prompt of a test problem", lambda c: plain(c) in held_out))
        found.extend(self._benchmark_check(pattern) for pattern in self.benchmarks)
        return found

    def _level_checks(self) -> list[Check]:
        low, high = self.min_level, self.max_level
        found: list[Check] = []
        if low is not None or high is not None:
            found.append(("no readable level", lambda c: c.level is None))
        if low is not None:
            found.append((f"level below {low:g}", lambda c: c.level is not None and c.level < low))
        if high is not None:
            found.append(
                (f"level above {high:g}", lambda c: c.level is not None and c.level > high)
            )
        return found

    def _benchmark_check(self, pattern: str) -> Check:
        overlap = Overlap(benchmark_questions(pattern), self.benchmark_words)
        reason = f"{self.benchmark_words} words in a row of {Path(pattern).name}"
        return reason, lambda c: c.question in overlap


def plain(candidate: Candidate) -> str:
    """All that is said with white space made even: what makes two prompts the same."""
    problem = candidate.problem
    said = [problem.system, *(text for turn in problem.turns for text in turn), problem.prompt]
    return " ".join("\n".join(said).split())


def select(
    name: str, rows: Iterable[Candidate | Unfit], checks: Iterable[Check]
) -> tuple[list[Candidate], Counts]:
    """The problems that pass.

    Args:
        name: The source, for messages and counts.
        rows: One a row.
        checks: What is left out.

    Returns:
        The problems that pass, in order, and the counts.

    Raises:
        ConfigError: None passes.
    """
    checks, kept, dropped = list(checks), [], Counter[str]()
    first_mistake, read, answered = "", 0, 0
    for row in rows:
        read += 1
        if isinstance(row, Unfit):
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


def _is_repeated() -> Callable[[Candidate], bool]:
    seen: set[str] = set()

    def is_repeated(candidate: Candidate) -> bool:
        prompt = plain(candidate)
        if prompt in seen:
            return True
        seen.add(prompt)
        return False

    return is_repeated
