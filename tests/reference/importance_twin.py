"""Importance-weighted estimates one answer and one position at a time."""

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def ratio_before(candidate: Sequence[float], behaviour: Sequence[float], position: int) -> float:
    """Product of the ratios of the tokens before `position`; of all of them after the end."""
    pairs = zip(candidate[:position], behaviour[:position], strict=True)
    return math.prod(math.exp(c - b) for c, b in pairs)


def weights_at(candidate: Rows, behaviour: Rows, position: int) -> list[float]:
    """Self-normalised weights of all answers at one position."""
    pairs = zip(candidate, behaviour, strict=True)
    ratios = [ratio_before(c, b, position) for c, b in pairs]
    return [len(ratios) * ratio / sum(ratios) for ratio in ratios]


def value_at(row: Sequence[float], position: int) -> float:
    """The row's value, 0 after its end."""
    return row[position] if position < len(row) else 0.0


def weighted_sum(
    candidate: Rows, behaviour: Rows, values: Rows, counts: Sequence[float] | None = None
) -> float:
    """`sum_t (sum_i c_i rho_it v_it) / (sum_i c_i rho_it)`, answer i counted `c_i` times."""
    counts = counts or [1.0] * len(values)
    total = 0.0
    for position in range(max(map(len, values))):
        above = below = 0.0
        for c, b, row, count in zip(candidate, behaviour, values, counts, strict=True):
            ratio = count * ratio_before(c, b, position)
            above += ratio * value_at(row, position)
            below += ratio
        total += above / below
    return total


def ones(values: Rows) -> list[list[float]]:
    """1 for every token: their sums are lengths."""
    return [[1.0] * len(row) for row in values]


def estimate(
    candidate: Rows,
    behaviour: Rows,
    values: Rows,
    reduce: str,
    counts: Sequence[float] | None = None,
) -> float:
    """The sum over tokens, divided by the length where it is per token."""
    total = weighted_sum(candidate, behaviour, values, counts)
    if reduce == "sequence":
        return total
    return total / weighted_sum(candidate, behaviour, ones(values), counts)


def per_answer(candidate: Rows, behaviour: Rows, values: Rows, reduce: str) -> list[float]:
    """The estimate plus n times its derivative in how often each answer counts."""
    n, step = len(values), 1e-5
    found = []
    for i in range(n):
        more, less = ([1.0 + sign * step * (j == i) for j in range(n)] for sign in (1, -1))
        up, down = (estimate(candidate, behaviour, values, reduce, c) for c in (more, less))
        found.append(estimate(candidate, behaviour, values, reduce) + n * (up - down) / 2 / step)
    return found


def k3(candidate: Rows, behaviour: Rows) -> float:
    """Mean over tokens of `r - 1 - log r`."""
    terms = [
        math.exp(c - b) - 1 - (c - b)
        for ours, theirs in zip(candidate, behaviour, strict=True)
        for c, b in zip(ours, theirs, strict=True)
    ]
    return sum(terms) / len(terms)
