"""Divergences and representations summed up in plain Python: loops over lists of numbers."""

import math
from collections.abc import Sequence

Vector = Sequence[float]


def mean(values: Vector) -> float:
    return math.fsum(values) / len(values)


def clustered_error(answers: Sequence[Vector]) -> float | None:
    """Standard error of the mean over tokens when only answers are independent."""
    tokens = [value for answer in answers for value in answer]
    centre, count = mean(tokens), len(answers)
    if count < 2:
        return None
    residuals = [math.fsum(value - centre for value in answer) for answer in answers]
    variance = count / (count - 1) * math.fsum(r * r for r in residuals)
    return math.sqrt(variance) / len(tokens)


def carriers(answers: Sequence[Vector], share: float) -> float | None:
    """Share of tokens, largest first, until `share` of the sum is reached."""
    tokens = sorted((max(0.0, value) for answer in answers for value in answer), reverse=True)
    total, found = math.fsum(tokens), 0
    if total == 0:
        return None
    while math.fsum(tokens[:found]) < share * total:
        found += 1
    return found / len(tokens)


def cosine(one: Vector, other: Vector) -> float:
    dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return (
        dot / math.sqrt(math.fsum(a * a for a in one)) / math.sqrt(math.fsum(b * b for b in other))
    )


def centred(rows: Sequence[Vector]) -> list[list[float]]:
    """Rows minus their mean."""
    middle = [mean(column) for column in zip(*rows, strict=True)]
    return [[x - m for x, m in zip(row, middle, strict=True)] for row in rows]


def flat(rows: Sequence[Vector]) -> list[float]:
    return [x for row in rows for x in row]


def norm(rows: Sequence[Vector]) -> float:
    return math.sqrt(math.fsum(x * x for x in flat(rows)))


def shift(before: Sequence[Vector], after: Sequence[Vector]) -> dict[str, float]:
    """What `ShiftSums.row` says, for representations without zeros."""
    cosines = [cosine(b, a) for b, a in zip(before, after, strict=True)]
    moved = [[y - x for x, y in zip(b, a, strict=True)] for b, a in zip(before, after, strict=True)]
    pairs = [
        cosine(one, other) for i, one in enumerate(before) for other in before[:i] + before[i + 1 :]
    ]
    return {
        "tokens": len(before),
        "mean_cosine": mean(cosines),
        "min_cosine": min(cosines),
        "centred_cosine": cosine(flat(centred(before)), flat(centred(after))),
        "unrelated_cosine": mean(pairs),
        "relative_shift": norm(moved) / norm(before),
        "norm_ratio": norm(after) / norm(before),
        "zero_tokens": 0,
    }
