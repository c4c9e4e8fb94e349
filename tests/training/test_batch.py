"""Data order and mini-batches against their plain definitions."""

import random

from hypothesis import given
from hypothesis import strategies as st

from effopd.data.problem import Problem
from effopd.rollouts.engine import derive_seed
from effopd.training.collect import step_problems
from effopd.training.update import mini_batches


def problems(count: int) -> list[Problem]:
    return [Problem(id=str(i), prompt="") for i in range(count)]


def twin(count: int, seed: int, step: int, per_step: int) -> list[str]:
    """The whole stream of epochs, each a fresh shuffle, then the slice of the step."""
    stream: list[str] = []
    epoch = 0
    while len(stream) < step * per_step:
        order = list(range(count))
        random.Random(f"{seed}/epoch/{epoch}").shuffle(order)
        stream += [str(i) for i in order]
        epoch += 1
    return stream[(step - 1) * per_step : step * per_step]


@given(
    count=st.integers(1, 12),
    seed=st.integers(0, 3),
    step=st.integers(1, 9),
    per_step=st.integers(1, 30),
)
def test_a_step_is_a_slice_of_the_shuffled_epochs(
    count: int, seed: int, step: int, per_step: int
) -> None:
    chosen = step_problems(problems(count), seed, step, per_step)
    assert [problem.id for problem in chosen] == twin(count, seed, step, per_step)


def test_every_epoch_holds_every_problem_once_in_an_order_of_its_own() -> None:
    every = problems(50)
    orders = [[each.id for each in step_problems(every, 0, epoch, 50)] for epoch in range(1, 5)]
    assert all(sorted(order) == sorted(each.id for each in every) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert step_problems(every, 1, 1, 50) != step_problems(every, 0, 1, 50)


# Mini-batches -------------------------------------------------------------------------------------


@given(count=st.integers(1, 40), updates=st.integers(1, 12), step=st.integers(1, 3))
def test_mini_batches_are_a_partition_of_nearly_equal_size(
    count: int, updates: int, step: int
) -> None:
    found = mini_batches(count, updates, 0, step, 0)
    assert sorted(i for portion in found for i in portion) == list(range(count))
    assert len(found) == min(count, updates)
    sizes = {len(portion) for portion in found}
    assert max(sizes) - min(sizes) <= 1


def test_a_single_mini_batch_keeps_its_order_in_every_epoch() -> None:
    assert [mini_batches(5, 1, 0, 1, epoch) for epoch in (0, 1)] == [[[0, 1, 2, 3, 4]]] * 2


def test_several_mini_batches_are_shuffled_by_seed_step_and_epoch() -> None:
    keys = [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]
    assert len({str(mini_batches(30, 3, *key)) for key in keys}) == 4
    twin = list(range(30))
    random.Random(derive_seed(0, "mini-batches", 1, 0)).shuffle(twin)
    assert mini_batches(30, 3, 0, 1, 0) == [twin[:10], twin[10:20], twin[20:]]
