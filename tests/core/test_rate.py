"""The learning rate that follows the search, against its recurrence written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effopd.core.extrapolator import Extrapolator, Search
from effopd.core.past import PastSearch
from effopd.core.rate import GROWTH, LARGEST_FACTOR, rate_factor
from effopd.core.scales import GeometricScales
from effopd.core.schedule import EveryN
from effopd.errors import ConfigError


def searches(*scales: float) -> list[PastSearch]:
    return [PastSearch(step=i + 1, accepted_scale=s) for i, s in enumerate(scales)]


def test_before_the_first_search_the_rate_is_the_schedule_s() -> None:
    assert rate_factor([]) == 1.0


@given(st.lists(st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 256.0]), max_size=30))
def test_the_factor_is_the_product_of_its_steps_within_bounds(scales: list[float]) -> None:
    logarithm, bound = 0.0, math.log(LARGEST_FACTOR)
    for scale in scales:
        step = {True: math.log(scale), False: math.log(scale) / 2}[scale > 1]
        logarithm += math.log(GROWTH) if scale == 1 else step
        logarithm = min(max(logarithm, -bound), bound)
    assert rate_factor(searches(*scales)) == pytest.approx(math.exp(logarithm), rel=1e-9)


def test_a_search_that_ends_at_the_anchor_is_no_division_by_zero() -> None:
    assert rate_factor(searches(0.0)) == pytest.approx(LARGEST_FACTOR**-0.5)


def bowl(learning_rate: str) -> tuple[Extrapolator, torch.Tensor]:
    """A parabola with its minimum at 10, whose tip is short of it by a factor of eight."""
    x = torch.zeros(1)
    search = Search(
        schedule=EveryN(n=1),
        scales=GeometricScales(floor=0.125),
        learning_rate=learning_rate,  # type: ignore[arg-type]
        guard=None,
    )
    return Extrapolator({"x": x}, lambda draw: -((x.item() - 10) ** 2), search=search), x


def test_the_extrapolator_offers_the_factor_only_where_it_is_asked_for() -> None:
    for learning_rate, expected in (("keep", 1.0), ("follow", 8.0)):
        extrapolator, x = bowl(learning_rate)
        x.fill_(1.25)
        result = extrapolator.step(1)
        assert result is not None
        assert result.accepted_scale == 8.0
        assert extrapolator.rate_factor == expected


def test_a_resumed_extrapolator_goes_on_with_the_same_factor() -> None:
    extrapolator, x = bowl("follow")
    x.fill_(1.25)
    extrapolator.step(1)
    resumed, y = bowl("follow")
    y.copy_(x)
    resumed.load_state_dict(extrapolator.state_dict())
    assert resumed.rate_factor == 8.0


def test_an_overshoot_is_taken_back_and_shortens_the_rate_by_its_root() -> None:
    extrapolator, x = bowl("follow")
    x.fill_(40.0)
    result = extrapolator.step(1)
    assert result is not None
    assert [trial.scale for trial in result.trials] == [1.0, 2.0, 0.5, 0.25, 0.125]
    assert result.accepted_scale == 0.25
    assert x.item() == 10.0
    assert extrapolator.rate_factor == 0.5


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate is 'keep' or 'follow', got 'chase'"):
        Search(learning_rate="chase")  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", [0.0, -1.0, 1.5, float("nan")])
def test_a_floor_outside_its_range_is_refused(floor: float) -> None:
    with pytest.raises(ConfigError, match="floor in"):
        GeometricScales(floor=floor)


def test_bisection_looks_ahead_only() -> None:
    with pytest.raises(ConfigError, match="1 where refine is used"):
        GeometricScales(floor=0.5, refine=1)
