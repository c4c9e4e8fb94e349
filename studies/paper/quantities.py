"""Numbers that the claims are about, each from the record of one seed.

A number that a record cannot give is `Untested`: a share of no gain, curves that do not overlap, a
search that never moved anything. `claims.md` names the functions; a path is such as `opd/kl/0.8`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from statistics import fmean
from typing import Any

from effopd.errors import RecordError
from effopd.records import Row


@dataclass(frozen=True)
class Untested:
    """Why what a claim is about did not happen."""

    reason: str


Number = float | Untested


# Norms and accuracies -----------------------------------------------------------------------------


def at_equal_norm(record: Row) -> Number:
    """Mean accuracy of OPD minus RL where both curves of accuracy against norm exist."""
    curves = {name: sorted(_points(record[name])) for name in ("grpo", "opd")}
    low = max(curve[0][0] for curve in curves.values())
    high = min(curve[-1][0] for curve in curves.values())
    if not low < high:
        return Untested("the norms of the two updates do not overlap")
    places = [low + (high - low) * (i + 0.5) / 10 for i in range(10)]
    return fmean(
        interpolated(curves["opd"], place) - interpolated(curves["grpo"], place) for place in places
    )


def at_every_size(record: Row) -> Number:
    """The least of `at_equal_norm` over sizes."""
    found = [at_equal_norm(each) for each in record["sizes"].values()]
    missing = [value for value in found if isinstance(value, Untested)]
    return (
        missing[0] if missing else min(value for value in found if not isinstance(value, Untested))
    )


def norm_saving(record: Row, other: str, ours: str) -> Number:
    """`log(norm of other / of ours)` where each first has 80% of the lower final accuracy."""
    asked = 0.8 * min(record[ours]["accuracy"][-1], record[other]["accuracy"][-1])
    norms, starts = [], []
    for name in (other, ours):
        accuracies = record[name]["accuracy"]
        first = next(i for i, accuracy in enumerate(accuracies) if accuracy >= asked)
        norms.append(record[name]["norm"][first])
        starts.append(first == 0)
    if all(starts):
        return Untested("both have 80% of the lower final accuracy at their first checkpoint")
    return math.log(norms[0] / norms[1])


def final_norm_saving(record: Row) -> Number:
    """`log(norm of RL / of OPD)` at the end, where OPD is within 0.05 of RL's accuracy."""
    gap = record["grpo"]["accuracy"][-1] - record["opd"]["accuracy"][-1]
    if gap > 0.05:
        return Untested(f"OPD ends {gap:.2f} below RL, which is not comparable accuracy")
    return math.log(record["grpo"]["norm"][-1] / record["opd"]["norm"][-1])


# Modules ------------------------------------------------------------------------------------------


def edge_excess(record: Row) -> float:
    """Share of the squared update that lies in the first and the last layer: RL minus OPD."""
    shares = []
    for name in ("grpo", "opd"):
        squares = [
            mlp**2 + attention**2
            for mlp, attention in zip(
                record[name]["norms"]["mlp"], record[name]["norms"]["attention"], strict=True
            )
        ]
        shares.append((squares[0] + squares[-1]) / sum(squares))
    return shares[0] - shares[1]


def mlp_over_attention(record: Row, name: str) -> float:
    """Mean accuracy over windows: MLP updates alone minus attention updates alone."""
    return fmean(record[name]["mlp"]) - fmean(record[name]["attention"])


def middle_over_edges(record: Row, name: str, which: str = "cut") -> Number:
    """Accuracy of the central MLP windows minus those around the first and the last layer.

    The central ones are the middle two, or the middle one of an odd number. Windows are cut at the
    edges, as equation 10 has it; "whole" leaves the cut ones out, and takes as central all but the
    outermost two.
    """
    heights, only_whole = record[name]["mlp"], which == "whole"
    if only_whole:
        heights = [h for h, whole in zip(heights, record["is_whole"], strict=True) if whole]
    if len(heights) < 3:
        return Untested("fewer than three windows")
    half = (len(heights) - 1) // 2
    central = heights[1:-1] if only_whole else heights[half : len(heights) - half]
    return fmean(central) - fmean([heights[0], heights[-1]])


def sensitivity_correlation(record: Row) -> Number:
    """Pearson correlation of RL's and OPD's accuracies over all windows of both blocks."""
    first, second = (record[name]["mlp"] + record[name]["attention"] for name in ("grpo", "opd"))
    means = fmean(first), fmean(second)
    pairs = [(a - means[0], b - means[1]) for a, b in zip(first, second, strict=True)]
    sizes = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / sizes if sizes else Untested("no window matters")


# Parts of the update ------------------------------------------------------------------------------


def kept(record: Row, name: str, part: str, whole: str = "full") -> Number:
    """Share of the accuracy gained by the whole update that a part of it gives."""
    return _share(record[name][part] - record["base"], record[name][whole] - record["base"])


def mean_over_ranks(record: Row) -> float:
    """Accuracy of OPD minus RL for the leading part of each rank, both at one norm: the mean."""
    return fmean(_over_ranks(record))


def least_over_ranks(record: Row) -> float:
    """The same at the worst rank."""
    return min(_over_ranks(record))


def _over_ranks(record: Row) -> list[float]:
    return [record["opd"]["top"][rank] - value for rank, value in record["grpo"]["top"].items()]


def flatness(record: Row) -> float:
    """How much less than 0.05 accuracy differs between beta = 0.8 and 1.2."""
    plateau = [record["opd"]["accuracy"][beta] for beta in ("0.8", "1.0", "1.2")]
    return 0.05 - (max(plateau) - min(plateau))


# Methods ------------------------------------------------------------------------------------------

SEARCHING = ("paper", "release", "effopd", "easy", "hard")
"""Rows whose method searches: they say nothing of a search that accepted no candidate."""


def sooner(record: Row, one: str, other: str, cost: str = "steps") -> Number:
    """`log(cost of other / cost of one)` to a level.

    A run that did not get there counts with its whole length, which errs towards no difference.
    """
    for name in (one, other):
        if name in SEARCHING and record[name]["accepted"] == 0:
            return Untested(f"the search of {name} accepted no candidate")
    if not (record[one]["reached"] or record[other]["reached"]):
        return Untested(f"neither {one} nor {other} got there")
    ours, theirs = record[one][cost], record[other][cost]
    return math.log(theirs / ours) if ours > 0 < theirs else Untested("it was there from the start")


def alike_within_2(record: Row) -> Number:
    """How much less than a factor of 2 easy and hard validation differ in steps, as a log."""
    for name in ("easy", "hard"):
        if not record[name]["reached"]:
            return Untested(f"the run with {name} validation did not get there")
    found = sooner(record, "easy", "hard")
    return found if isinstance(found, Untested) else math.log(2) - abs(found)


def of_search(record: Row, one: str, key: str, other: str) -> Number:
    """A number of a searching method minus that of another method."""
    if record[one]["accepted"] == 0:
        return Untested(f"the search of {one} accepted no candidate")
    return float(record[one][key] - record[other][key])


def largest_fall(accuracies: Sequence[float]) -> float:
    """How far accuracy falls below its best so far, at most."""
    best, fall = -math.inf, 0.0
    for accuracy in accuracies:
        best = max(best, accuracy)
        fall = max(fall, best - accuracy)
    return fall


# Arithmetic ---------------------------------------------------------------------------------------


def minus(record: Row, one: str, other: str, unit: str = "1") -> float:
    """The number at one path minus that at another, times `unit`."""
    return float(unit) * (_at(record, one) - _at(record, other))


def log_of(record: Row, one: str, other: str) -> Number:
    """Logarithm of the number at one path over that at another."""
    first, second = _at(record, one), _at(record, other)
    return math.log(first / second) if first > 0 < second else Untested("one of them is zero")


def share_of(record: Row, part: str, whole: str) -> Number:
    """The number at one path over that at another."""
    return _share(_at(record, part), _at(record, whole))


def _share(part: float, whole: float) -> Number:
    return part / whole if whole > 0 else Untested("there is no gain to have a share of")


def _points(series: Row) -> list[tuple[float, float]]:
    return list(zip(series["norm"], series["accuracy"], strict=True))


def interpolated(points: Sequence[tuple[float, float]], place: float) -> float:
    """Height of a polyline at a place between its ends."""
    for (left, low), (right, high) in pairwise(points):
        if left <= place <= right:
            return low if left == right else low + (high - low) * (place - left) / (right - left)
    raise RecordError(f"{place} is not between {points[0][0]} and {points[-1][0]}")


def _at(record: Row, path: str) -> float:
    found: Any = reduce(lambda value, key: value[key], path.split("/"), record)
    return float(found)
