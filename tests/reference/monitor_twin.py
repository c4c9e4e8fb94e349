"""The monitor, from whole weights at every step, in float64 and without any memory of its own."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

Leg = tuple[str, Tensor]
"""("training" or "jump", all weights after it)."""


def twin_row(base: Tensor, legs: Sequence[Leg]) -> dict[str, float | None]:
    """Fields of the last row: the last leg is of training and ends with it.

    Args:
        base: Weights before the first leg.
        legs: All legs so far; an observation came after each one of training.
    """
    points = [base, *(weights for _, weights in legs)]
    moves = [after - before for before, after in pairwise(points)]
    trained = [
        move
        for (kind, _), move in zip(legs, moves, strict=True)
        if kind == "training" and move.any()
    ]
    displacement = float((points[-1] - points[0]).norm())
    path_length = sum(float(move.norm()) for move in moves)
    cosine = None
    if moves[-1].any() and len(trained) > 1:
        cosine = float(torch.cosine_similarity(trained[-1], trained[-2], dim=0))
    return {
        "step_cosine": cosine,
        "displacement": displacement,
        "path_length": path_length,
        "straightness": displacement / path_length if path_length else None,
    }


def twin_inertia(momentum: float, before: int, updates: int) -> float:
    """From the matrix of all weights of gradients (columns) in updates (rows)."""
    count = before + updates
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    weights = torch.tril(momentum ** (steps[:, None] - steps[None]).clamp(min=0))
    weights = weights / (1 - momentum**steps)[:, None]
    first, second = weights[before - updates : before].sum(0), weights[before:].sum(0)
    return float(first @ second / (first.norm() * second.norm()))
