"""What the ray points along: which point of a finished search is the next anchor.

The next ray runs from that anchor through the next tip. Both rules are the position of the new
anchor on the old ray, so the direction needs no memory beyond the anchor itself.
"""

from dataclasses import dataclass
from typing import Literal, Protocol


class Direction(Protocol):
    """Chooses the next anchor."""

    def anchor_scale(self, accepted_scale: float) -> float:
        """Scale of the next anchor on the ray just searched."""
        ...


@dataclass(frozen=True, kw_only=True)
class SinceAccepted:
    """Displacement since the accepted point: what the released code does."""

    type: Literal["since_accepted"] = "since_accepted"

    def anchor_scale(self, accepted_scale: float) -> float:
        """The accepted point."""
        return accepted_scale


@dataclass(frozen=True, kw_only=True)
class SinceRaw:
    """Displacement since the raw previous checkpoint: the paper's letter.

    Equation 1 subtracts `W_{2^(n-1)}`, the weights the optimizer reached before that search moved
    them; an accepted jump is then part of the next displacement.

    Source: arXiv 2605.11739, equation 1 (the text leaves raw or accepted open).
    """

    type: Literal["since_raw"] = "since_raw"

    def anchor_scale(self, accepted_scale: float) -> float:
        """The tip, wherever the search went."""
        return 1.0
