import pytest

from effopd.errors import ConfigError
from effopd.search.schedule import AtSteps, EveryN, PowersOfTwo, Schedule


def due(schedule: Schedule, last: int) -> list[int]:
    return [step for step in range(-3, last + 1) if schedule.is_due(step, ())]


def test_powers_of_two() -> None:
    assert due(PowersOfTwo(), 70) == [1, 2, 4, 8, 16, 32, 64]
    assert due(PowersOfTwo(first=3), 20) == [4, 8, 16]
    assert due(PowersOfTwo(first=4), 20) == [4, 8, 16]


@pytest.mark.parametrize(("n", "steps"), [(1, 5), (4, 3), (4, 4), (4, 41), (7, 100)])
def test_every_n(n: int, steps: int) -> None:
    assert due(EveryN(n=n), steps) == list(range(n, steps + 1, n))


def test_at_steps() -> None:
    assert due(AtSteps(steps=(1, 3, 10)), 20) == [1, 3, 10]
    assert AtSteps(steps=[2, 5]) == AtSteps(steps=(2, 5))  # as JSON and TOML give it


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PowersOfTwo(first=0), "first must be at least 1, got 0"),
        (lambda: EveryN(n=0), "n must be at least 1, got 0"),
        (lambda: EveryN(n=-2), "n must be at least 1"),
        (lambda: AtSteps(steps=()), "strictly increasing"),
        (lambda: AtSteps(steps=(0, 1)), "strictly increasing"),
        (lambda: AtSteps(steps=(1, 3, 3)), "strictly increasing"),
        (lambda: AtSteps(steps=(3, 1)), "strictly increasing"),
    ],
)
def test_bad_settings(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
