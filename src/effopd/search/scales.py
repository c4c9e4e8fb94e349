"""How far to look: rules that propose the next scale on the ray.

A rule is a pure function of the trials so far, of which the first is the tip, and of the earlier
searches, so a resumed or repeated search proposes the same scales; None stops it. Scale 1 is the
tip; `s` means `anchor + s * (tip - anchor)`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError
from effopd.search.validation import Score


@dataclass(frozen=True, kw_only=True)
class PastSearch:
    """What an earlier search of the run leaves for the rules of the next ones.

    Attributes:
        step: Optimizer step of the search.
        accepted_scale: Where it left the parameters; 1.0 is the tip (nothing accepted).
        rate_change: What a learning rate that follows is multiplied by after it.
    """

    step: int
    accepted_scale: float
    rate_change: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One scored point of a search.

    Attributes:
        kind: "incumbent" is the tip itself.
        scale: Position on the ray.
        score: None when the score was not finite, or the point was taken without validation.
        accepted: Whether it replaced the best point so far; None for the tip.
        reason: Why it was rejected, "not validated" where nothing was asked, or "".
        seconds: Wall time of moving and scoring.
    """

    kind: Literal["incumbent", "candidate"]
    scale: float
    score: Score | None
    accepted: bool | None
    reason: str = ""
    seconds: float = 0.0


def _check_above_one(name: str, *values: float) -> None:
    if not values or not all(math.isfinite(v) and v > 1 for v in values):
        raise ConfigError(f"{name} must be finite and above 1 (1 is the tip), got {values}")


@dataclass(frozen=True, kw_only=True)
class LadderScales:
    """Fixed scales in order, stopping at the first rejection.

    The default is the paper's: `W + 2k (tip - anchor)` for k = 1..5 is scale 1 + 2k.

    Attributes:
        scales: Increasing scales above 1.

    Source: arXiv 2605.11739, equations 2 and 3.
    """

    type: Literal["ladder"] = "ladder"
    scales: tuple[float, ...] = (3.0, 5.0, 7.0, 9.0, 11.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(s) for s in self.scales))
        _check_above_one("scales", *self.scales)
        if list(self.scales) != sorted(set(self.scales)):
            raise ConfigError(f"scales must increase, got {self.scales}")

    def propose(self, trials: Sequence[Trial], past: Sequence[PastSearch]) -> float | None:
        """The next rung while the last one was accepted."""
        rung = len(trials) - 1
        climbing = rung == 0 or trials[-1].accepted
        return self.scales[rung] if climbing and rung < len(self.scales) else None


@dataclass(frozen=True, kw_only=True)
class GeometricScales:
    """Scales `ratio, ratio**2, ...` up to `cap`; the other way where the first one is rejected.

    Geometric growth finds the order of magnitude of the best scale in logarithmically many trials,
    whatever the learning rate: too small a rate is made up for ahead of the tip, too large a rate
    between anchor and tip (`1 / ratio, 1 / ratio**2, ...` down to `floor`).

    Attributes:
        ratio: Growth factor, above 1.
        cap: Largest scale tried.
        floor: Smallest scale tried, in (0, 1]; 1 looks ahead of the tip only.

    Departure from arXiv 2605.11739, whose candidates all lie ahead of the tip.
    """

    type: Literal["geometric"] = "geometric"
    ratio: float = 2.0
    cap: float = 256.0
    floor: float = 1.0

    def __post_init__(self) -> None:
        _check_above_one("ratio and cap", self.ratio, self.cap)
        if self.ratio > self.cap or not 0 < self.floor <= 1:
            raise ConfigError(
                "geometric scales need ratio <= cap and a floor in (0, 1], got ratio "
                f"{self.ratio}, cap {self.cap}, floor {self.floor}"
            )

    def propose(self, trials: Sequence[Trial], past: Sequence[PastSearch]) -> float | None:
        """The next power of the ratio while candidates are accepted; down if the first is not."""
        candidates = len(trials) - 1
        goes_up = candidates == 0 or bool(trials[1].accepted)
        if not (trials[-1].accepted or candidates == 0 or (candidates == 1 and not goes_up)):
            return None
        following = self.ratio ** (candidates + 1) if goes_up else self.ratio**-candidates
        is_inside = self.floor * (1 - 1e-12) <= following <= self.cap * (1 + 1e-12)
        return following if is_inside else None


Scales = LadderScales | GeometricScales
