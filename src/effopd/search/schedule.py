"""When to search: schedules over optimizer steps.

A schedule is a pure function of the step number and of the searches before it, so a resumed run
searches at the same steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from effopd.errors import ConfigError
from effopd.search.past import PastSearch


class Schedule(Protocol):
    """Decides at which optimizer steps a search is due."""

    def is_due(self, step: int, past: Sequence[PastSearch]) -> bool:
        """Whether to search after optimizer update number `step` (1 is the first update).

        Args:
            step: Number of the update.
            past: Every earlier search in order.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PowersOfTwo:
    """Steps 1, 2, 4, 8, ...: `floor(log2 T) + 1` searches in `T` steps.

    Attributes:
        first: No search before this step.

    Source: arXiv 2605.11739, section 4.
    """

    type: Literal["powers_of_two"] = "powers_of_two"
    first: int = 1

    def __post_init__(self) -> None:
        if self.first < 1:
            raise ConfigError(f"first must be at least 1, got {self.first}")

    def is_due(self, step: int, past: Sequence[PastSearch]) -> bool:
        """True at powers of two from `first` on."""
        return step >= self.first and step & (step - 1) == 0


@dataclass(frozen=True, kw_only=True)
class EveryN:
    """Steps n, 2n, 3n, ...

    Attributes:
        n: Period in optimizer steps.
    """

    type: Literal["every_n"] = "every_n"
    n: int = 4

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"n must be at least 1, got {self.n}")

    def is_due(self, step: int, past: Sequence[PastSearch]) -> bool:
        """True at positive multiples of `n`."""
        return step > 0 and step % self.n == 0


@dataclass(frozen=True, kw_only=True)
class AtSteps:
    """An explicit list of steps.

    Attributes:
        steps: Strictly increasing positive step numbers.
    """

    type: Literal["at_steps"] = "at_steps"
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        increasing = all(a < b for a, b in zip((0, *self.steps), self.steps, strict=False))
        if not self.steps or not increasing:
            raise ConfigError(
                f"steps must be strictly increasing positive numbers, got {self.steps}"
            )

    def is_due(self, step: int, past: Sequence[PastSearch]) -> bool:
        """True at the listed steps."""
        return step in self.steps


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Often while searches go far, ever less often while they are rejected.

    The first search is due at step `first`, the next `interval` steps after the last one. The
    interval starts at `shortest`, returns there after a search that went to `large` or further,
    doubles up to `longest` after one that accepted nothing, and stays otherwise.

    Attributes:
        first: No search before this step.
        shortest: Smallest interval in optimizer steps.
        longest: Largest interval in optimizer steps.
        large: Accepted scale from which on the next search follows as soon as possible.
    """

    type: Literal["adaptive"] = "adaptive"
    first: int = 1
    shortest: int = 1
    longest: int = 32
    large: float = 4.0

    def __post_init__(self) -> None:
        if not (self.first >= 1 and 1 <= self.shortest <= self.longest and self.large > 1):
            raise ConfigError(
                "an adaptive schedule needs first >= 1, 1 <= shortest <= longest and large > 1 "
                f"(1 is the tip), got first {self.first}, shortest {self.shortest}, longest "
                f"{self.longest}, large {self.large}"
            )

    def is_due(self, step: int, past: Sequence[PastSearch]) -> bool:
        """True once the interval has passed since the last search."""
        if not past:
            return step >= self.first
        return step >= past[-1].step + self._interval(past)

    def _interval(self, past: Sequence[PastSearch]) -> int:
        interval = self.shortest
        for search in past:
            if search.accepted_scale >= self.large:
                interval = self.shortest
            elif search.is_rejection:
                interval = min(2 * interval, self.longest)
        return interval
