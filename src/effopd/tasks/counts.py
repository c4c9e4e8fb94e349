"""How many problems were read, and why some of them are not there."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows of one source of problems.

    Attributes:
        name: The source, with the commit of a repository.
        read: Rows there.
        kept: Rows that became problems.
        dropped: Reason -> rows left out, each by its first reason; the most frequent first.
    """

    name: str
    read: int
    kept: int
    dropped: Mapping[str, int]

    def __str__(self) -> str:
        """One line, for a terminal."""
        reasons = "".join(f"; {number}: {reason}" for reason, number in self.dropped.items())
        return f"{self.name}: {self.kept} of {self.read} rows kept{reasons}"
