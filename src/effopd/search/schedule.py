"""When to search: schedules over optimizer steps, the first update being step 1.

A schedule is a pure function of the step number and of the searches before it, so a resumed run
searches at the same steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError
from effopd.search.scales import PastSearch


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


Schedule = PowersOfTwo | EveryN | AtSteps
