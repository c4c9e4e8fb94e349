"""Intervals over seeds and the verdicts they decide."""

import math

import pytest
from studies.paper.page import Interval, interval, verdict

from effopd.errors import RecordError


def test_an_interval_of_known_values() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 4.303 * 1.0 / math.sqrt(3)  # Student's t with two degrees of freedom, deviation 1
    assert found.mean == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2.0 - half, 2.0 + half))
    assert found.text() == "2.00 [-0.48, 4.48]"


def test_a_single_seed_decides_nothing() -> None:
    found = interval([5.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert verdict(found) == "not"
    assert found.text() == "5.00"


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf], [0.0] * 11])
def test_what_has_no_interval_is_refused(values: list[float]) -> None:
    with pytest.raises(RecordError, match="1 to 10 finite values"):
        interval(values)


@pytest.mark.parametrize(
    ("low", "high", "neutral", "expected"),
    [
        (0.1, 0.3, 0.0, "reproduced"),
        (-0.3, -0.1, 0.0, "opposite"),
        (-0.1, 0.3, 0.0, "not"),
        (0.1, 0.3, 0.2, "not"),
        (0.1, 0.3, 0.5, "opposite"),
        (0.0, 0.3, 0.0, "not"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, neutral: float, expected: str) -> None:
    assert verdict(Interval(mean=(low + high) / 2, low=low, high=high, n=5), neutral) == expected
