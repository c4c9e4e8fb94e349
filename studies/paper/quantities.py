"""Numbers that the claims are about, each from the record of one seed.

A number that a record leaves undefined is None: a share of no gain, curves that do not overlap.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from effopd.errors import RecordError
from effopd.records import Row


def at_equal_norm(record: Row) -> float | None:
    """Mean accuracy of OPD minus RL where both curves of accuracy against norm exist."""
    curves = {name: sorted(_points(record[name])) for name in ("grpo", "opd")}
    low = max(curve[0][0] for curve in curves.values())
    high = min(curve[-1][0] for curve in curves.values())
    if not low < high:
        return None
    places = [low + (high - low) * (i + 0.5) / 10 for i in range(10)]
    return fmean(
        [
            interpolated(curves["opd"], place) - interpolated(curves["grpo"], place)
            for place in places
        ]
    )


def norm_saving(record: Row, other: str, level: float) -> float:
    """`log(norm of other / of OPD)` where each first has a share of the lower final accuracy."""
    asked = level * min(record["opd"]["accuracy"][-1], record[other]["accuracy"][-1])
    norms = []
    for name in (other, "opd"):
        curve = zip(record[name]["norm"], record[name]["accuracy"], strict=True)
        norms.append(next(norm for norm, accuracy in curve if accuracy >= asked))
    return math.log(norms[0] / norms[1])


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


def middle_over_edges(record: Row, name: str) -> float | None:
    """Accuracy of MLP windows that are whole, the central ones minus the outermost two."""
    whole = [
        a for a, is_whole in zip(record[name]["mlp"], record["is_whole"], strict=True) if is_whole
    ]
    if len(whole) < 3:
        return None
    return fmean(whole[1:-1]) - fmean([whole[0], whole[-1]])


def kept(record: Row, name: str, part: float) -> float | None:
    """Share of the accuracy gained by the whole update that a part of it gives."""
    return share(part - record["base"], record[name]["full"] - record["base"])


def more_kept(record: Row, top: str) -> float | None:
    """`kept` of the leading part: OPD minus RL."""
    ours, theirs = (kept(record, name, record[name]["top"][top]) for name in ("opd", "grpo"))
    return None if ours is None or theirs is None else ours - theirs


def recovered(record: Row, name: str) -> float | None:
    """Share of the final gain that the early checkpoint gives once it has the final norms."""
    found, base = record[name], record["base"]
    return share(found["rescaled"] - base, found["final"] - base)


def sooner(record: Row, one: str, other: str, cost: str = "steps") -> float | None:
    """`log(cost of other / cost of one)` to a level.

    A run that did not get there counts with its whole length, which errs towards no difference.
    None where neither got there, or one had it from the start.
    """
    if not (record[one]["reached"] or record[other]["reached"]):
        return None
    ours, theirs = record[one][cost], record[other][cost]
    return math.log(theirs / ours) if ours > 0 and theirs > 0 else None


def alike_within_2(record: Row) -> float | None:
    """How much less than a factor of 2 easy and hard validation differ in steps, as a log.

    None where one of them did not get there, or either had it from the start.
    """
    found = sooner(record, "easy", "hard")
    both = record["easy"]["reached"] and record["hard"]["reached"]
    return math.log(2) - abs(found) if both and found is not None else None


def share(part: float, whole: float) -> float | None:
    """`part / whole`; None where the whole is no gain at all."""
    return part / whole if whole > 0 else None


def _points(series: Row) -> list[tuple[float, float]]:
    return list(zip(series["norm"], series["accuracy"], strict=True))


def interpolated(points: Sequence[tuple[float, float]], place: float) -> float:
    """Height of a polyline at a place between its ends."""
    for (left, low), (right, high) in pairwise(points):
        if left <= place <= right:
            return low if left == right else low + (high - low) * (place - left) / (right - left)
    raise RecordError(f"{place} is not between {points[0][0]} and {points[-1][0]}")


def difference(record: Row, path: str, more: str, less: str) -> float:
    """The number at `path` of one method minus that of another."""
    return _at(record[more], path) - _at(record[less], path)


def _at(record: Mapping[str, Any], path: str) -> float:
    value: Any = record
    for key in path.split("."):
        value = value[key]
    return float(value)
