import pytest

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
