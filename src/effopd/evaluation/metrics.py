"""Statistics of rewards."""

from collections.abc import Sequence

from effopd.search.validation import standard_error

__all__ = ["mean", "standard_error"]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
