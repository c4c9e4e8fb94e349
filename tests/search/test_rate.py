"""The learning rate that follows the search, against its recurrence written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effopd.errors import ConfigError
from effopd.search.extrapolator import Extrapolator, Search
from effopd.search.line_search import GROWTH, LARGEST_FACTOR, RETREAT, rate_change, rate_factor
from effopd.search.scales import GeometricScales, PastSearch, Trial
from effopd.search.schedule import EveryN
from effopd.search.validation import Score


def searches(*changes: float) -> list[PastSearch]:
    return [
        PastSearch(step=i, accepted_scale=1.0, rate_change=change)
        for i, change in enumerate(changes, start=1)
    ]


def trials(tip: float, candidates: dict[float, float | None]) -> list[Trial]:
    """A search that accepted nothing; None is a point that could not be scored."""
    found = [Trial(kind="incumbent", scale=1.0, score=Score(value=tip), accepted=None)]
    for scale, value in candidates.items():
        score = None if value is None else Score(value=value)
        found.append(Trial(kind="candidate", scale=scale, score=score, accepted=False))
    return found


def test_before_the_first_search_the_rate_is_the_schedule_s() -> None:
    assert rate_factor([]) == 1.0


@given(st.lists(st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 256.0]), max_size=30))
def test_the_factor_is_the_product_of_its_steps_within_bounds(changes: list[float]) -> None:
    logarithm, bound = 0.0, math.log(LARGEST_FACTOR)
    for change in changes:
        logarithm = min(max(logarithm + math.log(change), -bound), bound)
    assert rate_factor(searches(*changes)) == pytest.approx(math.exp(logarithm), rel=1e-9)


@pytest.mark.parametrize(("scale", "change"), [(8.0, 8.0), (2.0, 2.0), (0.25, 0.5), (0.0, 1 / 32)])
def test_an_accepted_scale_is_followed(scale: float, change: float) -> None:
    assert rate_change(trials(-1.0, {}), scale) == change


@pytest.mark.parametrize(
    ("candidates", "change"),
    [
        ({2.0: -3.0, 0.5: -2.0}, GROWTH),  # the tip is the best of three
        ({2.0: -3.0, 0.5: -1.0}, GROWTH),  # as good half-way: a tie is no step too long
        ({2.0: -3.0}, GROWTH),  # a ladder, which looks ahead only
        ({2.0: -3.0, 0.5: -0.9}, 1.0),  # better half-way, though not significantly
        ({2.0: None, 0.5: -2.0}, 1.0),  # what lies ahead could not be scored
        ({3.0: None}, 1.0),
        ({2.0: None, 0.5: None}, RETREAT),  # the search was blind on both sides
        ({2.0: -3.0, 0.5: None}, RETREAT),
    ],
)
def test_the_rate_grows_at_the_tip_only_on_evidence(
    candidates: dict[float, float | None], change: float
) -> None:
    assert rate_change(trials(-1.0, candidates), 1.0) == change


def test_an_overshoot_beyond_trust_shortens_the_rate_until_it_is_seen() -> None:
    """Gradient steps on a steep parabola, scored only near the tip: a runaway if the rate grew."""
    x = torch.full((1,), 1.0)
    tip = [0.0]

    def validate(draw: object) -> Score:
        tip[0] = tip[0] if draw.is_candidate else x.item()  # type: ignore[attr-defined]
        is_near = abs(x.item() - tip[0]) < 2.0
        return Score(value=-(x.item() ** 2) if is_near else math.nan)

    search = Search(
        schedule=EveryN(n=1),
        scales=GeometricScales(floor=0.125),
        learning_rate="follow",
        guard=None,
    )
    extrapolator = Extrapolator({"x": x}, validate, search=search)
    lr, sizes = 5.0, []
    for step in range(1, 13):
        x.sub_(lr * extrapolator.rate_factor * 2 * x)  # stable below a rate of 1
        sizes.append(abs(x.item()))
        extrapolator.step(step)
    assert max(sizes) > 50
    assert abs(x.item()) < 0.1


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
