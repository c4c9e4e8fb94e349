import pytest

from effopd.search.scales import GeometricScales, LadderScales, Scales, Trial
from effopd.search.validation import Score


def proposed(scales: Scales, verdicts: str) -> list[float]:
    """Scales proposed while candidates are accepted ("y") or not ("n"); at most one more."""
    trials = [Trial(kind="incumbent", scale=1.0, score=Score(value=0.0), accepted=None)]
    found = []
    for verdict in verdicts + "n":
        scale = scales.propose(trials, ())
        if scale is None:
            break
        found.append(scale)
        value = Score(value=float(len(found)))
        trials.append(Trial(kind="candidate", scale=scale, score=value, accepted=verdict == "y"))
    return found


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
        # the other way where the first one is rejected
        (GeometricScales(floor=0.125), "ny", [2, 0.5, 0.25]),
        (GeometricScales(floor=0.125), "nyyy", [2, 0.5, 0.25, 0.125]),
        (GeometricScales(floor=0.125), "nn", [2, 0.5]),
        (GeometricScales(floor=0.125), "yn", [2, 4]),
    ],
)
def test_geometric_grows_to_the_cap_or_shrinks_to_the_floor(
    scales: GeometricScales, verdicts: str, expected: list[float]
) -> None:
    assert proposed(scales, verdicts) == pytest.approx(expected, rel=1e-12)
