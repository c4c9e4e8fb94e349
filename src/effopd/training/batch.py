"""Which problems a step works on, and which rollouts an update."""

import random
from collections.abc import Sequence
from itertools import pairwise

from effopd.data.problem import Problem
from effopd.rollouts.engine import derive_seed


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


def mini_batches(count: int, updates: int, seed: int, step: int, epoch: int) -> list[list[int]]:
    """Indices of `count` rollouts in `updates` portions of nearly equal size.

    Shuffled anew in every epoch; a single portion keeps its order. Fewer rollouts than updates
    give fewer portions.
    """
    order = list(range(count))
    if updates > 1:
        random.Random(derive_seed(seed, "mini-batches", step, epoch)).shuffle(order)
    cuts = [count * i // updates for i in range(updates + 1)]
    portions = [order[start:end] for start, end in pairwise(cuts)]
    return [portion for portion in portions if portion]
