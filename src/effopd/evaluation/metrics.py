"""Statistics of rewards."""

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean, `std(ddof=1) / sqrt(n)`; None with fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (n - 1) / n)
