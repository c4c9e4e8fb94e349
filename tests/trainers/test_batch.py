"""Data order and micro-batches against their plain definitions."""

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.rollouts.engine import Completion
from effopd.rollouts.rollout import Rollout
from effopd.tasks.problem import Problem
from effopd.trainers.batch import epoch_order, micro_batches, step_problems


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


@settings(deadline=None, max_examples=60)
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
    orders = [epoch_order(50, 0, epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(50, 1, 0) != epoch_order(50, 0, 0)


def rollout(prompt: int, completion: int) -> Rollout:
    written = Completion(
        token_ids=(1,) * completion, log_probs=(0.0,) * completion, finish_reason="stop", text=""
    )
    return Rollout(problem=Problem(id="", prompt=""), prompt_ids=(1,) * prompt, completion=written)


sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(sizes=sizes, limit=st.integers(1, 120))
def test_micro_batches_partition_the_rollouts_in_order(
    sizes: list[tuple[int, int]], limit: int
) -> None:
    batches = list(micro_batches([rollout(*size) for size in sizes], limit))
    assert [i for batch in batches for i in batch] == list(range(len(sizes)))
    assert all(batches)


@settings(deadline=None, max_examples=60)
@given(sizes=sizes, limit=st.integers(1, 120))
def test_micro_batches_stay_within_the_limit_and_waste_none_of_it(
    sizes: list[tuple[int, int]], limit: int
) -> None:
    lengths = [sum(size) for size in sizes]
    batches = list(micro_batches([rollout(*size) for size in sizes], limit))

    def padded(indices: list[int]) -> int:
        return max(lengths[i] for i in indices) * len(indices)

    assert all(padded(batch) <= limit or len(batch) == 1 for batch in batches)
    assert all(padded([*batch, after[0]]) > limit for batch, after in pairwise(batches))
