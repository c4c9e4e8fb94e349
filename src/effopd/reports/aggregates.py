"""Many runs of a comparison as medians over seeds: one row per world, method and learning rate.

A seed that did not get somewhere counts as slower than all that did. Intervals are the smallest and
the largest value over seeds.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

from effopd.records import Run
from effopd.reports.series import Evaluation, evaluations, teacher_accuracy
from effopd.reports.summary import BASELINE, FIELD, PERCENTS, first_at

COMPARED_COSTS = tuple(FIELD)
"""What reaching a share can cost: steps, sampled tokens, tokens the teacher scored, seconds."""

COST_NAMES = tuple(f"{cost}_to_{percent}" for cost in COMPARED_COSTS for percent in PERCENTS)

SettingRow = dict[str, Any]

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run and its place in a comparison.

    Attributes:
        world: Name of the world it was trained in.
        method: Name of the method in the comparison.
        lr: Learning rate.
        seed: Seed.
        run: Its records.
        figure: Figure that a variant belongs to; None for a method of the main table.
        parent: Method of the main table that a variant is drawn beside.
    """

    world: str
    method: str
    lr: float
    seed: int
    run: Run
    figure: str | None = None
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Accuracy over seeds after one number of steps.

    Attributes:
        step: Optimizer updates.
        place: Median over seeds of what the axis measures.
        middle: Median accuracy, a fraction in [0, 1].
        low: Smallest accuracy.
        high: Largest accuracy.
    """

    step: float
    place: float
    middle: float
    low: float
    high: float


def comparison_summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """Content of `summary.json` of a comparison.

    Args:
        cells: Runs that were evaluated, in the order of the plan.

    Returns:
        `rows` (one per setting), `best` (each method of the main table at its best learning rate)
        and `robustness` (how much a method depends on the rate); JSON values.
    """
    rows = setting_rows(cells)
    base = baseline_method(cells)
    best = [row | _ratios(row, _row_of(best_rows(rows), row, base)) for row in best_rows(rows)]
    rows = [row | _ratios(row, _row_of(rows, row, base, same_lr=True)) for row in rows]
    return {"baseline": base, "rows": rows, "best": best, "robustness": robustness(rows)}


def setting_rows(cells: Sequence[Cell]) -> list[SettingRow]:
    """One row per (world, method, learning rate), in order of appearance; see docs/compare.md."""
    rows = []
    for world in unique(cell.world for cell in cells):
        members = [cell for cell in cells if cell.world == world]
        teacher = teacher_accuracy([cell.run for cell in members])
        horizon = max((_last_step(cell) for cell in members), default=0)
        for method, lr in unique((cell.method, cell.lr) for cell in members):
            chosen = [cell for cell in members if (cell.method, cell.lr) == (method, lr)]
            rows.append(_setting_row(chosen, teacher, horizon))
    return rows


def best_rows(rows: Sequence[SettingRow]) -> list[SettingRow]:
    """The row of each method of the main table at its best learning rate, world by world.

    Best is the smallest median of steps to 90 % of the teacher, then the smallest median of sampled
    tokens to it, then the largest median area under the accuracy curve.
    """
    main = [row for row in rows if row["figure"] is None]
    groups = unique((row["world"], row["method"]) for row in main)
    return [
        min((row for row in main if (row["world"], row["method"]) == group), key=_badness)
        for group in groups
    ]


def robustness(rows: Sequence[SettingRow]) -> list[dict[str, Any]]:
    """Largest over smallest median of steps to 90 %, over the learning rates of each method.

    Args:
        rows: What `setting_rows` returns; methods with a single rate are left out.

    Returns:
        Rows with `ratio` (None unless every rate got there) and `ratio_at_least`, where a rate that
        did not get there counts with the steps it ran.
    """
    found = []
    for best in best_rows(rows):
        world, method = best["world"], best["method"]
        members = [row for row in rows if (row["world"], row["method"]) == (world, method)]
        if len(members) < 2:
            continue
        reached = [row["median_steps_to_90"] for row in members]
        fastest = min((steps for steps in reached if steps is not None), default=None)
        ran = [
            row["steps"] if steps is None else steps
            for row, steps in zip(members, reached, strict=True)
        ]
        at_least = max(ran) / fastest if fastest else None
        found.append({
            "world": world,
            "method": method,
            "lrs": [row["lr"] for row in members],
            "lrs_at_90": sum(steps is not None for steps in reached),
            "best_lr": best["lr"],
            "ratio": None if None in reached else at_least,
            "ratio_at_least": at_least,
        })  # fmt: skip
    return found


def median_curve(cells: Sequence[Cell], cost: str) -> list[CurvePoint]:
    """Accuracy over seeds at every step where all of them are known.

    A run that ended early stays at its last value, in accuracy and in cost.

    Args:
        cells: The seeds of one setting.
        cost: What the axis measures, one of `COMPARED_COSTS`.

    Returns:
        Points in order of steps.
    """
    curves = [_evaluated(cell) for cell in cells]
    if not curves or not all(curves):
        return []
    points = []
    for step in sorted({point.step for curve in curves for point in curve}):
        found = [_at_step(curve, step) for curve in curves]
        known = [point for point in found if point is not None]
        places = [getattr(point, FIELD[cost]) for point in known]
        if len(known) < len(curves) or None in places:
            continue
        heights = [point.accuracy for point in known if point.accuracy is not None]
        points.append(
            CurvePoint(
                step=step,
                place=median(places),
                middle=median(heights),
                low=min(heights),
                high=max(heights),
            )
        )
    return points


def area_under_accuracy(points: Sequence[Evaluation], horizon: float) -> float | None:
    """Mean accuracy over the steps from 0 to `horizon`, by the trapezoidal rule.

    The last value is carried forward when a run ended before `horizon`.

    Args:
        points: Evaluations with an accuracy, in order of steps.
        horizon: Last step of the longest run of the world.

    Returns:
        A fraction in [0, 1]; None without an evaluation at step 0.
    """
    known = [(point.step, point.accuracy) for point in points if point.accuracy is not None]
    if not known or known[0][0] > 0 or horizon <= 0:
        return None
    known.append((horizon, known[-1][1]))
    return sum((b - a) * (y + z) / 2 for (a, y), (b, z) in pairwise(known)) / horizon


def baseline_method(cells: Sequence[Cell]) -> str | None:
    """The method that ratios are against: the one named "opd", else the first that trains so."""
    main = [cell for cell in cells if cell.figure is None]
    plain = [cell.method for cell in main if cell.run.info.get("method") == BASELINE]
    return BASELINE if any(cell.method == BASELINE for cell in main) else next(iter(plain), None)


def unique(items: Iterable[_Item]) -> list[_Item]:
    """Each item once, in order of appearance."""
    return list(dict.fromkeys(items))


def _setting_row(cells: Sequence[Cell], teacher: float | None, horizon: float) -> SettingRow:
    curves = [_evaluated(cell) for cell in cells]
    row: SettingRow = {
        "world": cells[0].world,
        "method": cells[0].method,
        "figure": cells[0].figure,
        "lr": cells[0].lr,
        "seeds": len(cells),
        "steps": max(_last_step(cell) for cell in cells),
        "horizon": horizon,
        "teacher_accuracy": teacher,
    }
    for percent in PERCENTS:
        firsts = [first_at(curve, percent, teacher) for curve in curves]
        row[f"reached_{percent}"] = sum(first is not None for first in firsts)
        for cost in COMPARED_COSTS:
            values = [getattr(first, FIELD[cost], None) for first in firsts]
            row |= _spread(f"{cost}_to_{percent}", values, worst=math.inf)
    finals = [curve[-1].accuracy if curve else None for curve in curves]
    row |= _spread("final_accuracy", finals, worst=-math.inf)
    areas = [area_under_accuracy(curve, horizon) for curve in curves]
    return row | _spread("area", areas, worst=-math.inf)


def _spread(name: str, values: Sequence[float | None], worst: float) -> SettingRow:
    """Median, smallest and largest; None counts as `worst`, and comes back as None."""
    filled = [worst if value is None else value for value in values]
    measures: dict[str, Callable[[list[float]], float]] = {
        "median": median,
        "low": min,
        "high": max,
    }
    found = {f"{key}_{name}": measure(filled) for key, measure in measures.items()}
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def _evaluated(cell: Cell) -> list[Evaluation]:
    return [point for point in evaluations(cell.run) if point.accuracy is not None]


def _at_step(curve: Sequence[Evaluation], step: float) -> Evaluation | None:
    """The evaluation at a step, the last one after the end of the run."""
    if step > curve[-1].step:
        return curve[-1]
    return next((point for point in curve if point.step == step), None)


def _last_step(cell: Cell) -> float:
    return max((point.step for point in evaluations(cell.run)), default=0)


def _badness(row: SettingRow) -> tuple[float, float, float]:
    steps, tokens = row["median_steps_to_90"], row["median_tokens_to_90"]
    return (
        math.inf if steps is None else steps,
        math.inf if tokens is None else tokens,
        -(row["median_area"] or 0.0),
    )


def _row_of(
    rows: Sequence[SettingRow], row: SettingRow, method: str | None, *, same_lr: bool = False
) -> SettingRow | None:
    """The row of `method` in the world of `row`, at its learning rate if asked."""
    keys = ("world", "lr") if same_lr else ("world",)
    wanted = {key: row[key] for key in keys} | {"method": method}
    return next((r for r in rows if wanted.items() <= r.items()), None)


def _ratios(row: SettingRow, baseline: SettingRow | None) -> SettingRow:
    """How many times less than the baseline, at the medians; None where that cannot be said."""
    found: SettingRow = {}
    for name in COST_NAMES:
        own, plain = row[f"median_{name}"], baseline and baseline[f"median_{name}"]
        itself = baseline is not None and baseline["method"] == row["method"]
        found[f"ratio_{name}"] = None if itself or not own or not plain else plain / own
    return found
