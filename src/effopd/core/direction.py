"""What the ray points along, and which of its points is the next anchor.

Where a direction says nothing else, the ray runs from the anchor through the tip. Some put another
displacement in the place of `tip - anchor`: `point(s) = tip + (s - 1) * displacement`, as if the
ray had started at the virtual origin `tip - displacement`. A jump to a predicted target is the
displacement `target - tip`, reached at scale 2. What they compute it from is a `Memory`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from effopd.errors import ConfigError


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


@dataclass(frozen=True, kw_only=True)
class SinceBase:
    """Displacement since the initial weights, accepted jumps included: the anchor never moves.

    Source: ExPO, arXiv 2404.16792: `theta_0 + (1 + alpha) (theta_1 - theta_0)` is scale 1 + alpha.
    """

    type: Literal["since_base"] = "since_base"

    def anchor_scale(self, accepted_scale: float) -> float:
        """The anchor itself."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """Exponential average of the displacements of the searches so far: momentum.

    With `d_n = tip - anchor` at the n-th search, `m_n = beta m_(n-1) + (1 - beta) d_n` and the
    displacement is `m_n / (1 - beta**n)`. Jumps are not part of it, since each `d_n` starts at the
    accepted point. The average is of displacements a search, not a step.

    Attributes:
        beta: Weight of the past, in [0, 1); 0 is `SinceAccepted` up to rounding.
    """

    type: Literal["averaged"] = "averaged"
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ConfigError(f"beta must be in [0, 1), got {self.beta}")

    def anchor_scale(self, accepted_scale: float) -> float:
        """The accepted point."""
        return accepted_scale
