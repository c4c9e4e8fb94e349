"""Closed forms of the statistics of rewards."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.evaluation.statistics import mean
from effopd.search.validation import standard_error

values = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


def test_mean() -> None:
    assert mean([1.0]) == 1.0
    assert mean([1.0, 0.0, 0.0, 1.0]) == 0.5
    with pytest.raises(ZeroDivisionError):
        mean([])


@pytest.mark.parametrize(("n", "right"), [(2, 1), (10, 3), (100, 99), (5, 5), (5, 0)])
def test_standard_error_of_an_accuracy(n: int, right: int) -> None:
    p = right / n
    found = standard_error([1.0] * right + [0.0] * (n - right))
    assert found == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_no_standard_error_without_two_values() -> None:
    assert standard_error([]) is None
    assert standard_error([0.7]) is None
    assert standard_error([0.7, 0.7]) == 0.0


@given(values)
def test_standard_error_is_that_of_the_standard_library(xs: list[float]) -> None:
    expected = statistics.stdev(xs) / math.sqrt(len(xs))
    assert standard_error(xs) == pytest.approx(expected, abs=1e-9)
