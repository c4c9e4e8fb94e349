"""What the ray points along, and which of its points is the next anchor.

The ray runs from the anchor through the tip. `AlphaPLS` alone puts another displacement in the
place of `tip - anchor`: `point(s) = tip + (s - 1) * (target - tip)`, its target at scale 2.
"""

import math
from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError


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
class AlphaPLS:
    """A jump to the weights at which a regression on the progress so far sees the target.

    Per matrix and snapshot, the leading `rank` components `s_i u_i` of the displacement from the
    base are scaled to the norm of the whole displacement and signs follow the snapshot before. One
    component of partial least squares relates them to progress; the point on it whose progress is
    `target` replaces them, with the right singular vectors of now. The prediction is at scale 2.
    A matrix stays at the tip where the regression does not hold up (leave-one-out R2 below
    `min_r2`, fewer than `min_snapshots`), and so does everything that is no matrix.

    Departures from the source: progress in place of benchmark accuracy; signs from the past alone
    (released code: from the last snapshot backwards); R2 leave-one-out instead of in-sample; no
    scaling of the regressors to unit variance; target 1 as printed (released code: 1.7); the
    prediction is added to the base as printed (released code: to an early checkpoint). The source
    itself finds little of a distillation update in rank 1 (its tables 7 and 8).

    Cost: an eigendecomposition of the shorter side of each matrix, in float64, a snapshot.

    Attributes:
        rank: Components a matrix.
        target: Progress to predict for; 0 is the base, 1 the teacher.
        min_r2: Smallest leave-one-out R2 trusted.
        min_snapshots: Fewest snapshots with known progress trusted.
        every: Steps between snapshots.
        keep: Most snapshots kept, each `rank` vectors a matrix; when there are more, every second
            one is dropped and `every` doubles.

    Source: AlphaRL, arXiv 2510.00553.
    """

    type: Literal["alpha_pls"] = "alpha_pls"
    rank: int = 1
    target: float = 1.0
    min_r2: float = 0.5
    min_snapshots: int = 4
    every: int = 2
    keep: int = 32

    def __post_init__(self) -> None:
        if not (self.rank >= 1 and self.every >= 1 and self.min_snapshots >= 3):
            raise ConfigError(
                "alpha_pls needs rank >= 1, every >= 1 and min_snapshots >= 3 (leaving one out "
                f"keeps two), got rank {self.rank}, every {self.every}, min_snapshots "
                f"{self.min_snapshots}"
            )
        if self.keep <= 2 * self.min_snapshots:
            raise ConfigError(
                "keep must exceed 2 * min_snapshots, since dropping every second snapshot has to "
                f"leave enough, got keep {self.keep}, min_snapshots {self.min_snapshots}"
            )
        if not (math.isfinite(self.target) and self.min_r2 <= 1):
            raise ConfigError(
                f"target must be finite and min_r2 at most 1, got {self.target}, {self.min_r2}"
            )

    def anchor_scale(self, accepted_scale: float) -> float:
        """The accepted point."""
        return accepted_scale


Direction = SinceAccepted | SinceRaw | SinceBase | AlphaPLS
