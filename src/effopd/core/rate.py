"""A learning rate that follows the search.

A search that ends at scale s says that the last displacement should have been s times as long. The
next ones are made with a learning rate s times as large, so that the search need not find that out
again. Where it ends at the tip the rate grows a little all the same: a search sees one step ahead
and prefers steps that are short in the steepest directions, while longer ones make way along all
the others. A search that goes back shortens the rate by the root of s, for the same reason.
"""

from collections.abc import Sequence

from effopd.core.past import PastSearch

GROWTH = 1.5
"""Factor after a search that ended at the tip; 1.25 and 1.5 were tried (LOG.md)."""
LARGEST_FACTOR = 1024.0
"""Bound of the factor, and of its inverse."""


def rate_factor(past: Sequence[PastSearch]) -> float:
    """What the learning rate is multiplied by after these searches; 1 before the first.

    `prod_i f(s_i)` with `f(s) = s` above 1, `GROWTH` at 1 and `s ** 0.5` below, kept within the
    bounds after each search.
    """
    factor = 1.0
    for search in past:
        scale = max(search.accepted_scale, 1 / LARGEST_FACTOR)  # the anchor itself is scale 0
        factor *= GROWTH if search.is_rejection else max(scale, scale**0.5)
        factor = min(max(factor, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
    return factor
