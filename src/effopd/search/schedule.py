"""When to search: schedules over optimizer steps.

A schedule is a pure function of the step number, of the searches before it, and of whether
foresight holds where someone watches it; so a resumed run searches at the same steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from effopd.errors import ConfigError
from effopd.search.scales import PastSearch


class Schedule(Protocol):
    """Decides at which optimizer steps a search is due."""

    def is_due(self, step: int, past: Sequence[PastSearch], foresight: bool | None = None) -> bool:
        """Whether to search after optimizer update number `step` (1 is the first update).

        Args:
            step: Number of the update.
            past: Every earlier search in order.
            foresight: Whether the direction so far still tells where the weights go, as a monitor
                sees it; None where that is not known. Most schedules do not ask.
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

    def is_due(self, step: int, past: Sequence[PastSearch], foresight: bool | None = None) -> bool:
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

    def is_due(self, step: int, past: Sequence[PastSearch], foresight: bool | None = None) -> bool:
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

    def is_due(self, step: int, past: Sequence[PastSearch], foresight: bool | None = None) -> bool:
        """True at the listed steps."""
        return step in self.steps


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """Soon again while foresight holds, seldom while it is broken.

    The first search is due at step `first`. The next is due `soon` steps after the last one while
    foresight holds, `usual` while that is not known, and `seldom` while it is broken: a search now
    and then finds out what a verdict that is wrong would miss.

    Attributes:
        first: No search before this step.
        soon: Interval in optimizer steps while foresight holds.
        usual: Interval while it is not known.
        seldom: Interval while it is broken.
    """

    type: Literal["foresight"] = "foresight"
    first: int = 1
    soon: int = 1
    usual: int = 4
    seldom: int = 16

    def __post_init__(self) -> None:
        if not (self.first >= 1 and 1 <= self.soon <= self.usual <= self.seldom):
            raise ConfigError(
                "a foresight schedule needs first >= 1 and 1 <= soon <= usual <= seldom, got first "
                f"{self.first}, soon {self.soon}, usual {self.usual}, seldom {self.seldom}"
            )

    def is_due(self, step: int, past: Sequence[PastSearch], foresight: bool | None = None) -> bool:
        """True once the interval that foresight asks for has passed since the last search."""
        if not past:
            return step >= self.first
        interval = {True: self.soon, None: self.usual, False: self.seldom}[foresight]
        return step >= past[-1].step + interval
