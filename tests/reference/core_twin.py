"""Plain twins of the search: the released code's arithmetic, the paper's letter, one lerp.

Written from the description of each, with none of the code under test. All tensors are float64
unless said otherwise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Point = dict[str, Tensor]


@dataclass
class Visit:
    """One scored point: where, how good, and whether it was taken (None for the tip itself)."""

    point: Point
    score: float
    accepted: bool | None


@dataclass
class Run:
    """A training run with searches: `visits[n]` belongs to the n-th search."""

    live: Point
    anchor: Point
    visits: list[list[Visit]] = field(default_factory=list)


def copied(point: Mapping[str, Tensor]) -> Point:
    return {name: tensor.detach().clone() for name, tensor in point.items()}


def released_factors() -> Iterator[float]:
    """2, 2/3, 2/5, 2/7, 2/9."""
    factor = 2.0
    for _ in range(5):
        yield factor
        factor = factor / (1 + factor)


def released_search(run: Run, scores: Sequence[float]) -> None:
    """Amplifies a moving point in place; strictly better or put back; the anchor follows.

    Every factor multiplies the distance of the point as it is now, already amplified, from the
    anchor. `scores[0]` is the tip's.
    """
    best = scores[0]
    visits = [Visit(copied(run.live), best, None)]
    backup = copied(run.live)
    for factor, score in zip(released_factors(), scores[1:], strict=True):
        for name, anchor in run.anchor.items():
            run.live[name] += factor * (run.live[name] - anchor)
        visits.append(Visit(copied(run.live), score, score > best))
        if not score > best:
            run.live = backup
            break
        best, backup = score, copied(run.live)
    run.anchor = copied(run.live)
    run.visits.append(visits)


def paper_search(run: Run, scores: Sequence[float]) -> None:
    """Equations 1 to 4 from the fixed tip; as good is good enough; the anchor is the raw tip."""
    tip = copied(run.live)
    update = {name: tip[name] - run.anchor[name] for name in tip}
    best, kept = scores[0], tip
    visits = [Visit(copied(tip), best, None)]
    for k, score in zip(range(1, 6), scores[1:], strict=True):
        candidate = {name: tip[name] + 2 * k * update[name] for name in tip}
        visits.append(Visit(candidate, score, score >= best))
        if not score >= best:
            break
        best, kept = score, candidate
    run.live, run.anchor = copied(kept), tip
    run.visits.append(visits)


def replay(
    search: Callable[[Run, Sequence[float]], None],
    start: Point,
    updates: Sequence[Point],
    scores: Sequence[Sequence[float]],
) -> Run:
    """Adds recorded updates and searches after number 1, 2, 4, 8, ... with recorded scores."""
    run = Run(live=copied(start), anchor=copied(start))
    due = [2**n for n in range(len(updates).bit_length())]
    for number, update in enumerate(updates, start=1):
        for name in run.live:
            run.live[name] += update[name]
        if number in due:
            search(run, scores[len(run.visits)])
    return run


def lerp_rounded_once(anchor: Tensor, tip: Tensor, scale: float) -> Tensor:
    """`anchor + scale * (tip - anchor)` in float64, to fp32, and once to the dtype given."""
    start, end = anchor.double(), tip.double()
    return (start + scale * (end - start)).float().to(anchor.dtype)


def bits(tensor: Tensor) -> list[int]:
    """The bit patterns in order: tells 0.0 from -0.0 and compares NaN."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(-1).view(width).tolist()
