"""How far to look: rules that propose the next scale on the ray.

A rule is a pure function of the trials so far and of the earlier searches, so a resumed or repeated
search proposes the same scales. Scale 1 is the tip; `s` means `anchor + s * (tip - anchor)`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from effopd.errors import ConfigError
from effopd.search.past import PastSearch
from effopd.search.validation import Score


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One scored point of a search.

    Attributes:
        kind: "incumbent" is the tip itself; the re-test pair is scored on fresh prompts.
        scale: Position on the ray.
        score: None when the score was not finite, or the point was taken without validation.
        accepted: Whether it replaced the best point so far; None for incumbents.
        reason: Why it was rejected, "not validated" where nothing was asked, or "".
        seconds: Wall time of moving and scoring.
    """

    kind: Literal["incumbent", "candidate", "retest-incumbent", "retest-candidate"]
    scale: float
    score: Score | None
    accepted: bool | None
    reason: str = ""
    seconds: float = 0.0


class Scales(Protocol):
    """Proposes scales one at a time; the search accepts or rejects each."""

    def propose(self, trials: Sequence[Trial], past: Sequence[PastSearch]) -> float | None:
        """The next scale to try, or None to stop.

        `trials[0]` is the tip at scale 1; `past` holds every earlier search in order.
        """
        ...


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
        refine: Trials after the first rejection that bisect (geometric mean) between the best
            accepted scale and the nearest rejected one above it; ahead of the tip only.

    Departure from arXiv 2605.11739, whose candidates all lie ahead of the tip.
    """

    type: Literal["geometric"] = "geometric"
    ratio: float = 2.0
    cap: float = 256.0
    floor: float = 1.0
    refine: int = 0

    def __post_init__(self) -> None:
        _check_above_one("ratio and cap", self.ratio, self.cap)
        if self.refine < 0 or self.ratio > self.cap:
            raise ConfigError(
                f"geometric scales need refine >= 0 and ratio <= cap, got refine {self.refine}, "
                f"ratio {self.ratio}, cap {self.cap}"
            )
        if not 0 < self.floor <= 1 or (self.refine and self.floor < 1):
            raise ConfigError(
                "geometric scales need a floor in (0, 1], 1 where refine is used, got floor "
                f"{self.floor}, refine {self.refine}"
            )

    def propose(self, trials: Sequence[Trial], past: Sequence[PastSearch]) -> float | None:
        """The next power while accepted; then down, or up to `refine` bisections."""
        if self.floor < 1 and len(trials) > 1 and not trials[1].accepted:
            return self._downwards(trials)
        rejected = [i for i, trial in enumerate(trials) if trial.accepted is False]
        best = max((t.scale for t in trials if t.accepted), default=1.0)
        if not rejected:
            following = self.ratio ** len(trials)
            return following if following <= self.cap * (1 + 1e-12) else None
        if len(trials) - 1 - rejected[0] >= self.refine:
            return None
        above = min(trials[i].scale for i in rejected if trials[i].scale > best)
        middle = math.sqrt(best * above)
        return middle if best < middle < above else None  # no float left between them

    def _downwards(self, trials: Sequence[Trial]) -> float | None:
        """The next scale between anchor and tip while accepted; `trials[1]` was rejected."""
        following = self.ratio ** (1 - len(trials))
        goes_on = len(trials) == 2 or trials[-1].accepted
        return following if goes_on and following >= self.floor * (1 - 1e-12) else None


@dataclass(frozen=True, kw_only=True)
class TrackingScales:
    """A walk that starts where the last search ended: two or three trials once it is on the track.

    The first probe is the scale accepted last; `first` when there was no search yet; `ratio`, the
    smallest step away from the tip, when the last search accepted nothing. From an accepted probe
    it goes up by `ratio` while candidates are accepted; from a rejected one down by `ratio` until
    one is accepted or the next would be the tip or behind it. It settles at a scale that is better
    than the tip and than the next one up; one below may be better still.

    Attributes:
        ratio: Factor between neighbouring scales, above 1.
        first: First probe of the first search, above 1.
        cap: Largest scale tried.
    """

    type: Literal["tracking"] = "tracking"
    ratio: float = 2.0
    first: float = 4.0
    cap: float = 256.0

    def __post_init__(self) -> None:
        _check_above_one("ratio, first and cap", self.ratio, self.first, self.cap)
        if max(self.ratio, self.first) > self.cap:
            raise ConfigError(
                f"tracking scales need ratio and first <= cap, got ratio {self.ratio}, first "
                f"{self.first}, cap {self.cap}"
            )

    def propose(self, trials: Sequence[Trial], past: Sequence[PastSearch]) -> float | None:
        """The warm start, then its neighbours upwards or downwards."""
        if len(trials) == 1:
            return self._start(past)
        last = trials[-1]
        if trials[1].accepted:
            above = last.scale * self.ratio
            return above if last.accepted and above <= self.cap * (1 + 1e-12) else None
        below = last.scale / self.ratio
        return None if last.accepted or below <= 1 + 1e-12 else below

    def _start(self, past: Sequence[PastSearch]) -> float:
        if not past:
            return self.first
        return self.ratio if past[-1].is_rejection else past[-1].accepted_scale


@dataclass(frozen=True, kw_only=True)
class QuadraticScales:
    """A parabola through three scores; its maximum is the fourth and last trial.

    Scores at scales 1, `probes[0]`, `probes[1]` determine the parabola. No fitted trial when it is
    not concave (the model says nothing about a maximum); the vertex is clipped to
    [1, probes[1]] and skipped where a score is known already. The best point seen is kept.

    Attributes:
        probes: Two increasing scales above 1.
    """

    type: Literal["quadratic"] = "quadratic"
    probes: tuple[float, float] = (4.0, 16.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", tuple(float(s) for s in self.probes))
        _check_above_one("probes", *self.probes)
        if len(self.probes) != 2 or self.probes[0] >= self.probes[1]:
            raise ConfigError(f"probes must be two increasing scales, got {self.probes}")

    def propose(self, trials: Sequence[Trial], past: Sequence[PastSearch]) -> float | None:
        """The two probes, then the vertex if there is a new one."""
        if len(trials) <= 2:
            return self.probes[len(trials) - 1]
        scores = [trial.score for trial in trials]
        if len(trials) > 3 or any(score is None for score in scores):
            return None
        points = [(t.scale, t.score.value) for t in trials if t.score is not None]
        vertex = parabola_vertex(points)
        if vertex is None:
            return None
        vertex = min(max(vertex, 1.0), self.probes[1])
        known = any(math.isclose(vertex, scale, rel_tol=0.02) for scale, _ in points)
        return None if known else vertex


def parabola_vertex(points: Sequence[tuple[float, float]]) -> float | None:
    """Abscissa of the maximum of the parabola through three points; None unless it is concave.

    Newton's divided differences: `curvature = (d12 - d01) / (x2 - x0)`.
    """
    (x0, y0), (x1, y1), (x2, y2) = points
    slope01, slope12 = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (slope12 - slope01) / (x2 - x0)
    if not curvature < 0:
        return None
    vertex = (x0 + x1) / 2 - slope01 / (2 * curvature)
    return vertex if math.isfinite(vertex) else None
