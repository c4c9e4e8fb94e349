"""The monitor, from whole weights at every look, in float64 and without any memory of its own."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Leg = tuple[str, Weights]
"""("training" or "jump", the weights after it)."""


def flat(weights: Weights) -> Tensor:
    return torch.cat([tensor.double().reshape(-1) for tensor in weights.values()])


def cosine(first: Tensor, second: Tensor) -> float | None:
    norms = float(first.norm() * second.norm())
    return float(first @ second) / norms if norms else None


def twin_look(base: Weights, legs: Sequence[Leg]) -> dict[str, float | None]:
    """Fields of the last look: the last leg is of training and ends with it.

    Args:
        base: Weights before the first leg.
        legs: All legs so far; a look came after each one of training.
    """
    points = [flat(base), *(flat(weights) for _, weights in legs)]
    moves = [after - before for before, after in pairwise(points)]
    stretches = [
        move
        for (kind, _), move in zip(legs, moves, strict=True)
        if kind == "training" and float(move.norm()) > 0
    ]
    displacement = float((points[-1] - points[0]).norm())
    path_length = sum(float(move.norm()) for move in moves)
    is_still = float(moves[-1].norm()) == 0
    return {
        "step_cosine": None
        if is_still or len(stretches) < 2
        else cosine(stretches[-1], stretches[-2]),
        "direction_cosine": cosine(points[-1] - points[0], points[-2] - points[0]),
        "displacement": displacement,
        "path_length": path_length,
        "straightness": displacement / path_length if path_length else None,
        "allocation_entropy": allocation_entropy(base, legs[-1][1]),
        **leading(base, legs),
    }


def twin_inertia(momentum: float, before: int, updates: int) -> float:
    """From the matrix of all weights of gradients (columns) in updates (rows)."""
    count = before + updates
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    weights = torch.tril(momentum ** (steps[:, None] - steps[None]).clamp(min=0))
    weights = weights / (1 - momentum**steps)[:, None]
    first, second = weights[before - updates : before].sum(0), weights[before:].sum(0)
    return float(first @ second / (first.norm() * second.norm()))


def allocation_entropy(base: Weights, now: Weights) -> float | None:
    amounts = [float((now[n].double() - base[n].double()).square().sum()) for n in base]
    total = sum(amounts)
    if len(amounts) < 2 or total == 0:
        return None
    entropy = -sum(a / total * math.log(a / total) for a in amounts if a > 0)
    return entropy / math.log(len(amounts))


def leading(base: Weights, legs: Sequence[Leg]) -> dict[str, float | None]:
    """Mean of spectral over Frobenius norm, and of the cosine of left vectors with the look before.

    From full decompositions of every matrix.
    """
    looks = [weights for kind, weights in legs if kind == "training"]
    shares, cosines = [], []
    for name, start in base.items():
        update = looks[-1][name].double() - start.double()
        if not update.any():
            continue
        left, values, _ = torch.linalg.svd(update)
        shares.append(float(values[0] / values.norm()))
        earlier = [w[name].double() - start.double() for w in looks[:-1]]
        earlier = [each for each in earlier if each.any()]
        if earlier:
            old = torch.linalg.svd(earlier[-1])[0]
            cosines.append(abs(float(left[:, 0] @ old[:, 0])))
    return {
        "spectral_share": sum(shares) / len(shares) if shares else None,
        "alignment": sum(cosines) / len(cosines) if cosines else None,
    }
