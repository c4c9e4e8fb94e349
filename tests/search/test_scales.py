import math

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from effopd.errors import ConfigError
from effopd.search.past import PastSearch
from effopd.search.scales import (
    GeometricScales,
    LadderScales,
    QuadraticScales,
    Scales,
    TrackingScales,
    Trial,
    parabola_vertex,
)
from effopd.search.validation import Score

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Machines are shared: a slow example is no failure."""


def ended(*accepted: float) -> list[PastSearch]:
    """Searches that ended at these scales, one a step."""
    return [PastSearch(step=i, accepted_scale=s) for i, s in enumerate(accepted, start=1)]


def proposed(scales: Scales, verdicts: str, *past: float) -> list[float]:
    """Scales proposed while candidates are accepted ("y") or not ("n"); at most one more.

    `past` are the accepted scales of the earlier searches.
    """
    trials = [Trial(kind="incumbent", scale=1.0, score=Score(value=0.0), accepted=None)]
    found = []
    for verdict in verdicts + "n":
        scale = scales.propose(trials, ended(*past))
        if scale is None:
            break
        found.append(scale)
        value = Score(value=float(len(found)))
        trials.append(Trial(kind="candidate", scale=scale, score=value, accepted=verdict == "y"))
    return found


def quadratic_trials(scales: QuadraticScales, *scores: float | None) -> list[Trial]:
    return [
        Trial(
            kind="candidate" if i else "incumbent",
            scale=scale,
            score=None if value is None else Score(value=value),
            accepted=None,
        )
        for i, (scale, value) in enumerate(zip((1.0, *scales.probes), scores, strict=True))
    ]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("n", [3]),
        ("yn", [3, 5]),
        ("yyn", [3, 5, 7]),
        ("yyyyn", [3, 5, 7, 9, 11]),
        ("yyyyy", [3, 5, 7, 9, 11]),
        ("ny", [3]),
    ],
)
def test_ladder_stops_at_the_first_rejection(verdicts: str, expected: list[float]) -> None:
    assert proposed(LadderScales(), verdicts) == expected


def test_ladder_takes_any_increasing_scales() -> None:
    assert proposed(LadderScales(scales=[1.5, 100]), "yy") == [1.5, 100.0]


@pytest.mark.parametrize(
    ("scales", "verdicts", "expected"),
    [
        (GeometricScales(), "y" * 20, [2.0**k for k in range(1, 9)]),
        (GeometricScales(cap=100.0), "y" * 20, [2, 4, 8, 16, 32, 64]),
        (GeometricScales(ratio=3.0, cap=27.0), "y" * 20, [3, 9, 27]),
        (GeometricScales(ratio=10.0, cap=10.0), "y" * 20, [10]),
        (GeometricScales(ratio=1.1, cap=1.331), "y" * 20, [1.1, 1.21, 1.331]),  # 1.1**3 > 1.331
        (GeometricScales(), "yyn", [2, 4, 8]),
        (GeometricScales(), "n", [2]),
        # the bracket [4, 8]: sqrt(32), then above it or below it
        (GeometricScales(refine=1), "yyny", [2, 4, 8, 2**2.5]),
        (GeometricScales(refine=2), "yynyn", [2, 4, 8, 2**2.5, 2**2.75]),
        (GeometricScales(refine=3), "yynnny", [2, 4, 8, 2**2.5, 2**2.25, 2**2.125]),
        (GeometricScales(refine=2), "nn", [2, 2**0.5, 2**0.25]),
        (GeometricScales(refine=2), "ny", [2, 2**0.5, 2**0.75]),
        (GeometricScales(cap=8.0, refine=2), "yyy", [2, 4, 8]),  # no bracket, nothing to refine
    ],
)
def test_geometric_grows_to_the_cap_and_bisects_the_last_bracket(
    scales: GeometricScales, verdicts: str, expected: list[float]
) -> None:
    assert proposed(scales, verdicts) == pytest.approx(expected, rel=1e-12)


def test_bisection_stops_when_no_float_is_left() -> None:
    trials = proposed(GeometricScales(refine=500), "n" + "y" * 600)
    assert 40 < len(trials) < 80
    assert len(set(trials)) == len(trials)


@pytest.mark.parametrize(
    ("verdicts", "past", "expected"),
    [
        # the first search starts at `first`; from an accepted probe it climbs
        ("yyn", (), [4, 8, 16]),
        ("y" * 20, (), [4, 8, 16, 32, 64, 128, 256]),
        # from a rejected one it comes down until something is accepted, or to the tip
        ("ny", (), [4, 2]),
        ("nn", (), [4, 2]),
        # a warm start at the scale accepted last: one accepted and one rejected neighbour
        ("yn", (8.0, 32.0), [32, 64]),
        ("ny", (32.0, 24.0), [24, 12]),
        ("nnnny", (24.0,), [24, 12, 6, 3, 1.5]),
        ("nnnnn", (24.0,), [24, 12, 6, 3, 1.5]),
        ("yy", (256.0,), [256]),
        # after a rejection from the smallest step away from the tip
        ("n", (64.0, 1.0), [2]),
        ("yyn", (64.0, 1.0, 1.0), [2, 4, 8]),
    ],
)
def test_tracking_starts_where_the_last_search_ended(
    verdicts: str, past: tuple[float, ...], expected: list[float]
) -> None:
    assert proposed(TrackingScales(), verdicts, *past) == expected


def test_tracking_keeps_its_ratio() -> None:
    scales = TrackingScales(ratio=1.5, first=3.0, cap=6.75)
    assert proposed(scales, "yyy") == [3, 4.5, 6.75]
    assert proposed(scales, "nnn") == pytest.approx([3, 2, 4 / 3])
    assert proposed(scales, "n", 1.0) == [1.5]


# The parabola -------------------------------------------------------------------------------------

VERTICES = st.floats(1.5, 15.5)
CURVATURES = st.floats(-100.0, -0.01)
OFFSETS = st.floats(-10.0, 10.0)


@settings(QUIET)
@given(vertex=VERTICES, curvature=CURVATURES, offset=OFFSETS)
def test_quadratic_proposes_the_exact_vertex(
    vertex: float, curvature: float, offset: float
) -> None:
    scales = QuadraticScales()
    assume(not any(math.isclose(vertex, s, rel_tol=0.03) for s in (1.0, *scales.probes)))
    values = [curvature * (s - vertex) ** 2 + offset for s in (1.0, *scales.probes)]
    trials = quadratic_trials(scales, *values)
    assert scales.propose(trials[:1], ()) == 4.0
    assert scales.propose(trials[:2], ()) == 16.0
    assert scales.propose(trials, ()) == pytest.approx(vertex, rel=1e-6)
    fitted = Trial(kind="candidate", scale=vertex, score=Score(value=offset), accepted=True)
    assert scales.propose([*trials, fitted], ()) is None


@pytest.mark.parametrize("vertex", [-3.0, 0.5, 1.0, 16.0, 20.0, 1e6])
def test_vertex_outside_the_bracket_is_clipped_to_a_known_scale(vertex: float) -> None:
    scales = QuadraticScales()
    values = [-((s - vertex) ** 2) for s in (1.0, *scales.probes)]
    assert scales.propose(quadratic_trials(scales, *values), ()) is None


def test_vertex_next_to_a_known_scale_is_not_tried_again() -> None:
    scales = QuadraticScales(probes=(2.0, 3.0))
    for vertex, expected in [(2.03, None), (2.06, pytest.approx(2.06))]:
        values = [-((s - vertex) ** 2) for s in (1.0, 2.0, 3.0)]
        assert scales.propose(quadratic_trials(scales, *values), ()) == expected


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 0.0, 0.0),  # flat
        (0.5, 0.5, 0.5),
        (0.0, 3.0, 15.0),  # a line
        (15.0, 12.0, 0.0),
        (9.0, 0.0, 144.0),  # convex
        (1.0, 0.0, 0.0),
        (0.0, None, 1.0),  # a probe without a finite score
        (0.0, 1.0, None),
        (-1.7e308, 1.7e308, -1.7e308),  # slopes overflow
    ],
)
def test_no_fitted_trial_without_a_maximum(values: tuple[float | None, ...]) -> None:
    scales = QuadraticScales()
    assert scales.propose(quadratic_trials(scales, *values), ()) is None


@settings(QUIET)
@given(vertex=st.floats(-50, 50), curvature=CURVATURES, offset=OFFSETS)
def test_parabola_vertex_is_the_closed_form(vertex: float, curvature: float, offset: float) -> None:
    points = [(x, curvature * (x - vertex) ** 2 + offset) for x in (1.0, 4.0, 16.0)]
    assert parabola_vertex(points) == pytest.approx(vertex, rel=1e-6, abs=1e-6)
    assert parabola_vertex([(x, -y) for x, y in points]) is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LadderScales(scales=()), "scales must be finite and above 1"),
        (lambda: LadderScales(scales=(1.0, 2.0)), "above 1"),
        (lambda: LadderScales(scales=(2.0, math.inf)), "finite"),
        (lambda: LadderScales(scales=(3.0, 2.0)), "must increase"),
        (lambda: LadderScales(scales=(3.0, 3.0)), "must increase"),
        (lambda: GeometricScales(ratio=1.0), "above 1"),
        (lambda: GeometricScales(ratio=math.nan), "finite"),
        (lambda: GeometricScales(cap=math.inf), "finite"),
        (lambda: GeometricScales(refine=-1), "refine >= 0"),
        (lambda: GeometricScales(ratio=8.0, cap=4.0), "ratio <= cap"),
        (lambda: TrackingScales(ratio=1.0), "above 1"),
        (lambda: TrackingScales(first=math.nan), "finite"),
        (lambda: TrackingScales(first=8.0, cap=4.0), "ratio and first <= cap"),
        (lambda: TrackingScales(ratio=8.0, first=2.0, cap=4.0), "ratio and first <= cap"),
        (lambda: QuadraticScales(probes=(1.0, 2.0)), "above 1"),
        (lambda: QuadraticScales(probes=(4.0, 4.0)), "two increasing"),
        (lambda: QuadraticScales(probes=(2.0, 4.0, 8.0)), "two increasing"),
    ],
)
def test_bad_settings(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
