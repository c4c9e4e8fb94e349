"""Spans of equal bytes by trying every pair of runs, shortest first; and what they are worth."""

import math
from collections.abc import Sequence


def spans(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[tuple[int, int, int, int]]:
    """Finest runs of equal bytes; what is left without bytes belongs to the last."""
    found: list[tuple[int, int, int, int]] = []
    a = c = 0
    while a < len(ours) and c < len(theirs):
        run = _shortest(ours, theirs, a, c)
        if run is None:
            break
        found.append((a, run[0], c, run[1]))
        a, c = run
    if found and (a < len(ours) or c < len(theirs)):
        a, _, c, _ = found.pop()
        found.append((a, len(ours), c, len(theirs)))
    return found


def _shortest(
    ours: Sequence[bytes], theirs: Sequence[bytes], a: int, c: int
) -> tuple[int, int] | None:
    for i in range(a + 1, len(ours) + 1):
        for j in range(c + 1, len(theirs) + 1):
            text = b"".join(ours[a:i])
            if text and text == b"".join(theirs[c:j]):
                return i, j
    return None


def advantages(
    runs: Sequence[tuple[int, int, int, int]], ours: Sequence[float], theirs: Sequence[float]
) -> list[float]:
    """Difference of summed log-probabilities on the last token of each run, 0 elsewhere.

    NaN where the teacher has no token to score.
    """
    found = [0.0] * len(ours)
    for a, b, c, d in runs:
        if c == d:
            found[a:b] = [math.nan] * (b - a)
        else:
            found[b - 1] = sum(theirs[c:d]) - sum(ours[a:b])
    return found
