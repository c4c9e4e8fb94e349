import math

import pytest

from effopd.errors import ConfigError
from effopd.search.past import PastSearch
from effopd.search.schedule import Adaptive, AtSteps, EveryN, PowersOfTwo, Schedule


def due(schedule: Schedule, last: int) -> list[int]:
    return [step for step in range(-3, last + 1) if schedule.is_due(step, ())]


def test_powers_of_two() -> None:
    assert due(PowersOfTwo(), 70) == [1, 2, 4, 8, 16, 32, 64]
    assert due(PowersOfTwo(first=3), 20) == [4, 8, 16]
    assert due(PowersOfTwo(first=4), 20) == [4, 8, 16]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 31, 32, 33, 100, 1023, 1024, 5000])
def test_number_of_searches_is_logarithmic(steps: int) -> None:
    assert len(due(PowersOfTwo(), steps)) == math.floor(math.log2(steps)) + 1


@pytest.mark.parametrize(("n", "steps"), [(1, 5), (4, 3), (4, 4), (4, 41), (7, 100)])
def test_every_n(n: int, steps: int) -> None:
    assert due(EveryN(n=n), steps) == list(range(n, steps + 1, n))


def test_at_steps() -> None:
    assert due(AtSteps(steps=(1, 3, 10)), 20) == [1, 3, 10]
    assert AtSteps(steps=[2, 5]) == AtSteps(steps=(2, 5))  # as JSON and TOML give it


def searched(schedule: Schedule, accepted: list[float]) -> list[int]:
    """Steps of the searches when they end at these scales, in order."""
    past: list[PastSearch] = []
    step = 0
    while len(past) < len(accepted):
        step += 1
        if schedule.is_due(step, past):
            past.append(PastSearch(step=step, accepted_scale=accepted[len(past)]))
    return [search.step for search in past]


@pytest.mark.parametrize(
    ("schedule", "accepted", "steps"),
    [
        (Adaptive(), [8.0] * 4, [1, 2, 3, 4]),
        (Adaptive(first=5), [8.0] * 3, [5, 6, 7]),
        # every rejection doubles the interval, up to the longest
        (Adaptive(longest=8), [1.0] * 6, [1, 3, 7, 15, 23, 31]),
        # small gains keep it, a large one starts over
        (Adaptive(), [1.0, 1.0, 2.0, 3.9, 4.0, 2.0, 1.0, 2.0], [1, 3, 7, 11, 15, 16, 17, 19]),
        (Adaptive(shortest=3, longest=7), [1.0, 1.0, 1.0, 64.0, 2.0], [1, 7, 14, 21, 24]),
    ],
)
def test_adaptive_follows_what_searches_found(
    schedule: Schedule, accepted: list[float], steps: list[int]
) -> None:
    assert searched(schedule, accepted) == steps


def test_adaptive_makes_up_for_steps_that_were_not_asked_about() -> None:
    past = [PastSearch(step=4, accepted_scale=1.0)]
    assert [step for step in range(5, 9) if Adaptive().is_due(step, past)] == [6, 7, 8]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PowersOfTwo(first=0), "first must be at least 1, got 0"),
        (lambda: EveryN(n=0), "n must be at least 1, got 0"),
        (lambda: EveryN(n=-2), "n must be at least 1"),
        (lambda: Adaptive(first=0), "first >= 1.*got first 0"),
        (lambda: Adaptive(shortest=0), "1 <= shortest"),
        (lambda: Adaptive(shortest=9, longest=8), "shortest <= longest"),
        (lambda: Adaptive(large=1.0), "large > 1"),
        (lambda: Adaptive(large=math.nan), "large > 1"),
        (lambda: AtSteps(steps=()), "strictly increasing"),
        (lambda: AtSteps(steps=(0, 1)), "strictly increasing"),
        (lambda: AtSteps(steps=(1, 3, 3)), "strictly increasing"),
        (lambda: AtSteps(steps=(3, 1)), "strictly increasing"),
    ],
)
def test_bad_settings(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
