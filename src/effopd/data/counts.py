"""How many problems were read, and why some of them are not there."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows of one source of problems.

    Attributes:
        name: The source, with the commit of a repository.
        read: Rows there.
        kept: Rows that became problems.
        dropped: Reason -> rows left out, each by its first reason; the most frequent first.
        answered: Rows that end with an answer, which is left out.
        example: The first row that could not be read, and what would keep it; "" without one.
    """

    name: str
    read: int
    kept: int
    dropped: Mapping[str, int]
    answered: int = 0
    example: str = field(default="", compare=False)

    def __str__(self) -> str:
        """One line, for a terminal."""
        reasons = "".join(f"; {number}: {reason}" for reason, number in self.dropped.items())
        if self.answered:
            reasons += f"; answers left out at the end of {self.answered} conversations"
        return f"{self.name}: {self.kept} of {self.read} rows kept{reasons}"
