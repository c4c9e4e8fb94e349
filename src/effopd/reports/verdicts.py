"""What seeds say about a claim: an interval, and a verdict that the interval decides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from effopd.errors import RecordError

Verdict = Literal["reproduced", "not", "opposite"]

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % points of Student's t with 1 to 9 degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds and its 95 % interval by Student's t.

    Attributes:
        mean: Mean.
        low: Lower end; minus infinity with a single seed.
        high: Upper end; infinity with a single seed.
        n: Seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    def text(self, digits: int = 2) -> str:
        """`0.12 [0.05, 0.19]`; a single seed has no interval."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.n == 1 else f"{mean} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interval(values: Sequence[float]) -> Interval:
    """The 95 % interval of the mean of one value per seed.

    Args:
        values: One to ten finite values.

    Raises:
        RecordError: There are none, more than ten, or one is not finite.
    """
    n = len(values)
    if not 1 <= n <= 1 + len(_T_975) or not all(map(math.isfinite, values)):
        raise RecordError(f"an interval needs 1 to {1 + len(_T_975)} finite values, got {values}")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean=mean, low=-math.inf, high=math.inf, n=1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = _T_975[n - 2] * math.sqrt(variance / n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n)


def verdict(found: Interval, neutral: float = 0.0) -> Verdict:
    """Whether a quantity that a claim says is above `neutral` is above it.

    Args:
        found: The quantity over seeds.
        neutral: The value at which the claim is neither right nor wrong.

    Returns:
        "reproduced" when the whole interval lies above, "opposite" when it lies below, else "not":
        the seeds leave it open.
    """
    if found.low > neutral:
        return "reproduced"
    return "opposite" if found.high < neutral else "not"
