"""Which problems a step works on, and in which portions."""

import random
from collections.abc import Iterator, Sequence

from effopd.rollouts.rollout import Rollout
from effopd.tasks.problem import Problem


def step_problems(problems: Sequence[Problem], seed: int, step: int, count: int) -> list[Problem]:
    """Problems of step `step` (1 is the first): slices of a fresh shuffle per epoch.

    A pure function of its arguments, so a resumed run sees the same data.
    """
    chosen: list[Problem] = []
    position, end = (step - 1) * count, step * count
    while position < end:
        epoch, index = divmod(position, len(problems))
        order = epoch_order(len(problems), seed, epoch)[index : index + end - position]
        chosen += [problems[i] for i in order]
        position += len(order)
    return chosen


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The shuffled indices of one epoch."""
    order = list(range(count))
    random.Random(f"{seed}/epoch/{epoch}").shuffle(order)
    return order


def micro_batches(rollouts: Sequence[Rollout], max_tokens: int) -> Iterator[list[int]]:
    """Indices of consecutive rollouts whose padded size stays within `max_tokens`.

    A single rollout longer than that forms a micro-batch of its own.
    """
    batch: list[int] = []
    longest = 0
    for i, rollout in enumerate(rollouts):
        length = len(rollout.prompt_ids) + len(rollout.completion.token_ids)
        if batch and max(longest, length) * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest = [], 0
        batch.append(i)
        longest = max(longest, length)
    yield batch
