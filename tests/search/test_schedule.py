import math

import pytest

from effopd.errors import ConfigError
from effopd.search.scales import PastSearch
from effopd.search.schedule import AtSteps, EveryN, Foresight, PowersOfTwo, Schedule


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


def foreseen(schedule: Schedule, foresight: dict[int, bool | None], last: int) -> list[int]:
    """Steps of the searches when foresight changes at these steps."""
    past: list[PastSearch] = []
    holds = None
    for step in range(1, last + 1):
        holds = foresight.get(step, holds)
        if schedule.is_due(step, past, holds):
            past.append(PastSearch(step=step, accepted_scale=2.0))
    return [search.step for search in past]


@pytest.mark.parametrize(
    ("schedule", "foresight", "steps"),
    [
        (Foresight(), {}, [1, 5, 9, 13, 17]),
        (Foresight(first=3), {1: True}, list(range(3, 21))),
        (Foresight(), {1: False}, [1, 17]),
        # lost after step 4, found again at step 12, when the shorter interval is long over
        (Foresight(), {1: True, 5: False, 12: True, 14: None}, [1, 2, 3, 4, 12, 13, 17]),
        (Foresight(soon=2, usual=3, seldom=5), {1: True, 6: False}, [1, 3, 5, 10, 15, 20]),
    ],
)
def test_foresight_decides_how_soon(
    schedule: Schedule, foresight: dict[int, bool | None], steps: list[int]
) -> None:
    assert foreseen(schedule, foresight, 20) == steps


@pytest.mark.parametrize("schedule", [PowersOfTwo(), EveryN(n=3), AtSteps(steps=(2, 7))], ids=str)
def test_other_schedules_do_not_ask_for_foresight(schedule: Schedule) -> None:
    asked = [foreseen(schedule, {1: holds}, 20) for holds in (True, False, None)]
    assert asked[0] == asked[1] == asked[2]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PowersOfTwo(first=0), "first must be at least 1, got 0"),
        (lambda: EveryN(n=0), "n must be at least 1, got 0"),
        (lambda: EveryN(n=-2), "n must be at least 1"),
        (lambda: Foresight(first=0), "first >= 1.*got first 0"),
        (lambda: Foresight(soon=0), "1 <= soon"),
        (lambda: Foresight(soon=5), "soon <= usual.*soon 5, usual 4"),
        (lambda: Foresight(usual=17), "usual <= seldom"),
        (lambda: AtSteps(steps=()), "strictly increasing"),
        (lambda: AtSteps(steps=(0, 1)), "strictly increasing"),
        (lambda: AtSteps(steps=(1, 3, 3)), "strictly increasing"),
        (lambda: AtSteps(steps=(3, 1)), "strictly increasing"),
    ],
)
def test_bad_settings(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
