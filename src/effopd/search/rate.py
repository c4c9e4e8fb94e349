"""A learning rate that follows the search.

A search that ends at scale s says that the last displacement should have been s times as long. The
next ones are made with a learning rate s times as large, so that the search need not find that out
again. A search that goes back shortens the rate by the root of s: longer steps make way along all
but the steepest directions.

For the same reason the rate grows a little where the search ends at the tip, but only on evidence
that the displacement was not too long: every point it looked at could be scored, and none between
anchor and tip was better, significantly or not. Where the nearest points are beyond trust the
search is blind, and a rate that grows then runs away: too long a step blinds the next search, too.
"""

import math
from collections.abc import Sequence

from effopd.search.past import PastSearch
from effopd.search.scales import Trial

GROWTH = 1.5
"""Factor after a search that found the tip best; 1.25 and 1.5 were tried (LOG.md)."""
RETREAT = 0.5
"""Factor after a search to which even the points between anchor and tip were out of reach."""
LARGEST_FACTOR = 1024.0
"""Bound of the factor, and of its inverse."""


def rate_change(trials: Sequence[Trial], accepted_scale: float) -> float:
    """What one search multiplies the learning rate by.

    `s` for an accepted scale above 1 and `s ** 0.5` for one below. At the tip: `RETREAT` if a point
    between anchor and tip could not be scored, else `GROWTH` if every candidate was scored and none
    of those in between is better than the tip, else 1.

    Args:
        trials: All trials of the search, the tip first.
        accepted_scale: Where it ended.

    Returns:
        The factor; finite and positive.
    """
    if accepted_scale != 1.0:
        scale = max(accepted_scale, 1 / LARGEST_FACTOR)  # the anchor itself is scale 0
        return max(scale, math.sqrt(scale))
    candidates = [trial for trial in trials if trial.kind == "candidate"]
    behind = [trial for trial in candidates if trial.scale < 1]
    if any(trial.score is None for trial in behind):
        return RETREAT
    if any(trial.score is None for trial in candidates):
        return 1.0
    tip = trials[0].score
    is_passed = any(t.score and tip and t.score.value > tip.value for t in behind)
    return 1.0 if is_passed else GROWTH


def rate_factor(past: Sequence[PastSearch]) -> float:
    """What the learning rate is multiplied by after these searches; 1 before the first.

    The product of their `rate_change`, kept within the bounds after each search.
    """
    factor = 1.0
    for search in past:
        factor *= search.rate_change
        factor = min(max(factor, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
    return factor
