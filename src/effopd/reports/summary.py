"""How soon runs came close to the teacher, and by what factor sooner than plain distillation.

Over several seeds numbers are medians, with the smallest and the largest; a seed that did not get
somewhere counts as slower than all that did. A ratio above 1 says how many times less was needed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

from effopd.records import Run, reaches
from effopd.reports.series import (
    Evaluation,
    base_accuracy,
    evaluations,
    teacher_accuracy,
    teacher_levels,
    unique_labels,
)

PERCENTS = (80, 90, 95, 99)
"""Shares of the teacher's accuracy, in percent, that a run is timed to."""

FIELD = {
    "steps": "step", "tokens": "sampled_tokens", "teacher_tokens": "teacher_tokens",
    "passes": "student_passes", "seconds": "elapsed_s", "cpu": "cpu_s",
}  # fmt: skip
"""What reaching a share can cost -> field of `Evaluation` that holds it."""

CLOSER = "90_kl"
"""Name of the second measure: 90% of the reverse KL from the teacher are gone."""

COSTS = ("steps", "tokens", "seconds")
"""Those in the summary of one run."""

BASELINE = "opd"
"""Method that ratios are taken against."""

Summary = dict[str, float | None]
SettingRow = dict[str, Any]
Item = TypeVar("Item")


def unique(items: Iterable[Item]) -> list[Item]:
    """Each item once, in order of appearance."""
    return list(dict.fromkeys(items))


def teacher_of(rows: Sequence[SettingRow]) -> float | None:
    """Accuracy of the teacher of rows of one world."""
    return next((row["teacher_accuracy"] for row in rows), None)


# One run ------------------------------------------------------------------------------------------


def method_summary(run: Run, teacher: float | None) -> Summary:
    """`steps_to_80`, `tokens_to_80`, `seconds_to_80`, ... and `final_accuracy`, `..._se`, `..._kl`.

    The cost of x % is that of the first evaluation at x % of the teacher's accuracy, None if there
    is none; tokens and seconds include validation.
    """
    points = evaluated(run)
    summary: Summary = {}
    for percent in PERCENTS:
        point = first_at(points, percent, teacher)
        summary |= {f"{cost}_to_{percent}": getattr(point, FIELD[cost], None) for cost in COSTS}
    last = points[-1] if points else None
    names = ("accuracy", "accuracy_se", "reverse_kl")
    return summary | {f"final_{name}": getattr(last, name, None) for name in names}


def evaluated(run: Run) -> list[Evaluation]:
    """Evaluations with an accuracy, in order of steps."""
    return [point for point in evaluations(run) if point.accuracy is not None]


def first_at(
    points: Sequence[Evaluation], percent: int, teacher: float | None
) -> Evaluation | None:
    """The first of `points` at `percent` % of the teacher's accuracy; None if there is none."""
    return next((p for p in points if reaches(p.accuracy, percent / 100, teacher)), None)


def first_closer(points: Sequence[Evaluation], percent: int) -> Evaluation | None:
    """The first at which `1 - D / D_0` is `percent` %, D the reverse KL and D_0 that of step 0."""
    known = [(point, point.reverse_kl) for point in points if point.reverse_kl is not None]
    start = known[0][1] if known and known[0][0].step == 0 else 0.0
    limit = (1 - percent / 100) * start + 1e-12
    return next((point for point, nats in known if start > 0 and nats <= limit), None)


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the content of a demo's `summary.json`.

    It is `{"base_accuracy", "teacher_accuracy", "methods": {label: ...}}`; labels that occur twice
    get a counter, and what was not measured or not reached is None.
    """
    teacher = teacher_accuracy(runs)
    summaries = [method_summary(run, teacher) for run in runs]
    return {
        "base_accuracy": base_accuracy(runs),
        "teacher_accuracy": teacher,
        "methods": dict(zip(unique_labels(runs), summaries, strict=True)),
    }


def baseline_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The "opd" run to compare with: of the same learning rate, else the same seed, else the first.

    It is `run` itself if that is one, None if there is none.
    """
    if run.info.get("method") == BASELINE:
        return run
    plain = [other for other in runs if other.info.get("method") == BASELINE]

    def mismatches(other: Run) -> list[bool]:
        return [other.info.get(key) != run.info.get(key) for key in ("lr", "seed")]

    return min(plain, key=mismatches, default=None)


def notes(runs: Sequence[Run]) -> list[str]:
    """Sentences a reader of the tables must know: what ratios are against, and what is missing."""
    label_of = dict(zip(map(id, runs), unique_labels(runs), strict=True))
    against: dict[str, list[str]] = {}
    for run in runs:
        baseline = baseline_of(run, runs)
        if baseline is not None and baseline is not run:
            name = f"{label_of[id(baseline)]} (lr {baseline.info.get('lr')})"
            against.setdefault(name, []).append(label_of[id(run)])
    found = [
        f"Ratios of {', '.join(names)} are against {baseline}: how many times less was needed."
        for baseline, names in against.items()
    ]
    if not any(baseline_of(run, runs) for run in runs):
        found.append('No ratios: none of the runs has the method "opd".')
    levels = {level for level in teacher_levels(runs) if level is not None}
    if not levels:
        found.append("The teacher was not evaluated, so no share of its accuracy can be named.")
    if len(levels) > 1:
        listed = ", ".join(f"{level:.4f}" for level in sorted(levels))
        found.append(
            f"The runs measured different teacher accuracies ({listed}); "
            f"{teacher_accuracy(runs):.4f} is used."
        )
    return found


# Many runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run and its place in a comparison.

    A variant has the `figure` that it belongs to, and the method of the main table that it is drawn
    beside as its `parent`.
    """

    world: str
    method: str
    lr: float | None
    seed: int
    run: Run
    figure: str | None = None
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A measured quantity after a number of steps: median over seeds, and the ends of its band."""

    step: float
    place: float
    middle: float
    low: float
    high: float


def comparison_summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """Content of `summary.json` of a comparison; docs/compare.md describes it."""
    rows = setting_rows(cells)
    base = baseline_method(cells)
    rows = [row | tuned_columns(row, rows) for row in rows]
    best = best_rows(rows)
    best = [row | ratio_columns(row, row_of(best, row, base)) for row in best]
    rows = [row | ratio_columns(row, row_of(rows, row, base, same_lr=True)) for row in rows]
    return {"baseline": base, "rows": rows, "best": best, "robustness": robustness(rows)}


def setting_rows(cells: Sequence[Cell]) -> list[SettingRow]:
    """One row per (world, method, learning rate), in order of appearance."""
    rows = []
    for world in unique(cell.world for cell in cells):
        members = [cell for cell in cells if cell.world == world]
        teacher = teacher_accuracy([cell.run for cell in members])
        horizon = max(map(_last_step, members), default=0)
        for method, lr in unique((cell.method, cell.lr) for cell in members):
            chosen = [cell for cell in members if (cell.method, cell.lr) == (method, lr)]
            curves = [evaluated(cell.run) for cell in chosen]
            row: SettingRow = {
                "world": world, "method": method, "figure": chosen[0].figure, "lr": lr,
                "seeds": len(chosen), "steps": max(map(_last_step, chosen)), "horizon": horizon,
                "teacher_accuracy": teacher,
            }  # fmt: skip
            whole = [evaluations(cell.run) for cell in chosen]
            reached: dict[int | str, list[Evaluation | None]] = {
                percent: [first_at(curve, percent, teacher) for curve in curves]
                for percent in PERCENTS
            }
            reached[CLOSER] = [first_closer(curve, 90) for curve in whole]
            for cost, name in FIELD.items():
                ends = [getattr(curve[-1], name) if curve else None for curve in whole]
                row |= _spread(f"{cost}_at_end", ends, worst=math.inf)
            for percent, firsts in reached.items():
                row[f"reached_{percent}"] = sum(first is not None for first in firsts)
                for cost, name in FIELD.items():
                    values = [getattr(first, name, None) for first in firsts]
                    row |= _spread(f"{cost}_to_{percent}", values, worst=math.inf)
            finals = [curve[-1].accuracy if curve else None for curve in curves]
            row |= _spread("final_accuracy", finals, worst=-math.inf)
            areas = [area_under_accuracy(curve, horizon) for curve in curves]
            rows.append(row | _spread("area", areas, worst=-math.inf))
    return rows


def _spread(name: str, values: Sequence[float | None], worst: float) -> SettingRow:
    """Median, smallest and largest; None counts as `worst`, and comes back as None."""
    filled = [worst if value is None else value for value in values]
    found = {f"median_{name}": median(filled), f"low_{name}": min(filled)}
    found[f"high_{name}"] = max(filled)
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def _last_step(cell: Cell) -> float:
    return max((point.step for point in evaluations(cell.run)), default=0)


def best_rows(rows: Sequence[SettingRow]) -> list[SettingRow]:
    """The row of each method of the main table at its best learning rate, world by world.

    Best is the smallest median of steps to 90% of the teacher, then the smallest median of sampled
    tokens to it, then the largest median area under the accuracy curve.
    """
    main = [row for row in rows if row["figure"] is None]

    def badness(row: SettingRow) -> tuple[float, float, float]:
        costs = (row["median_steps_to_90"], row["median_tokens_to_90"])
        steps, tokens = (math.inf if cost is None else cost for cost in costs)
        return steps, tokens, -(row["median_area"] or 0.0)

    groups = unique((row["world"], row["method"]) for row in main)
    return [
        min((row for row in main if (row["world"], row["method"]) == group), key=badness)
        for group in groups
    ]


def tuned_columns(row: SettingRow, rows: Sequence[SettingRow]) -> SettingRow:
    """`tuned_COST_to_90`: what it cost to get there with all other rates tried to their own end.

    Medians; None where a part is not known, and the plain cost where there is one rate.
    """
    same = [(r["world"], r["method"]) == (row["world"], row["method"]) for r in rows]
    others = [r for r, is_same in zip(rows, same, strict=True) if is_same and r["lr"] != row["lr"]]
    found: SettingRow = {}
    for cost in FIELD:
        spent = [other[f"median_{cost}_at_end"] for other in others]
        for share in (90, CLOSER):
            own = row[f"median_{cost}_to_{share}"]
            is_known = own is not None and None not in spent
            found[f"tuned_{cost}_to_{share}"] = own + sum(spent) if is_known else None
    return found


def robustness(rows: Sequence[SettingRow]) -> list[dict[str, Any]]:
    """Largest over smallest median of steps to 90%, over the learning rates of each method.

    Methods with a single rate are left out. `ratio` is None unless every rate got there; in
    `ratio_at_least` one that did not get there counts with the steps it ran.
    """
    found = []
    for best in best_rows(rows):
        world, method = best["world"], best["method"]
        members = [row for row in rows if (row["world"], row["method"]) == (world, method)]
        if len(members) < 2:
            continue
        reached = [row["median_steps_to_90"] for row in members]
        fastest = min((steps for steps in reached if steps is not None), default=None)
        pairs = zip(members, reached, strict=True)
        slowest = max(row["steps"] if steps is None else steps for row, steps in pairs)
        at_least = slowest / fastest if fastest else None
        found.append({
            "world": world, "method": method, "lrs": [row["lr"] for row in members],
            "lrs_at_90": sum(steps is not None for steps in reached), "best_lr": best["lr"],
            "ratio": None if None in reached else at_least, "ratio_at_least": at_least,
        })  # fmt: skip
    return found


def median_curve(runs: Sequence[Run], cost: str, quantity: str = "accuracy") -> list[CurvePoint]:
    """A quantity over the seeds of one setting, at every step where all of them are known.

    A run that ended early stays at its last value, in the quantity and in cost. Bands go from the
    smallest to the largest seed; those of one run are one standard error of its accuracy.
    """
    curves = [[p for p in evaluations(run) if getattr(p, quantity) is not None] for run in runs]
    if not curves or not all(curves):
        return []
    points = []
    for step in sorted({point.step for curve in curves for point in curve}):
        found = [
            curve[-1] if step > curve[-1].step else next((p for p in curve if p.step == step), None)
            for curve in curves
        ]
        known = [point for point in found if point is not None]
        places = [getattr(point, FIELD[cost]) for point in known]
        if len(known) < len(curves) or None in places:
            continue
        heights = [getattr(point, quantity) for point in known]
        error = known[0].accuracy_se if len(runs) == 1 and quantity == "accuracy" else None
        ends = (min(heights) - (error or 0.0), max(heights) + (error or 0.0))
        middle = {"place": median(places), "middle": median(heights)}
        points.append(CurvePoint(step=step, low=ends[0], high=ends[1], **middle))
    return points


def area_under_accuracy(points: Sequence[Evaluation], horizon: float) -> float | None:
    """Mean accuracy over the steps from 0 to `horizon`, by the trapezoidal rule.

    The last value is carried forward to `horizon`; None without an evaluation at step 0.
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


def row_of(
    rows: Sequence[SettingRow], row: SettingRow, method: str | None, *, same_lr: bool = False
) -> SettingRow | None:
    """The row of `method` in the world of `row`, at its learning rate if asked."""
    keys = ("world", "lr") if same_lr else ("world",)
    wanted = {key: row[key] for key in keys} | {"method": method}
    return next((r for r in rows if wanted.items() <= r.items()), None)


def ratio_columns(row: SettingRow, baseline: Mapping[str, Any] | None) -> SettingRow:
    """How many times less than the baseline, at the medians; None where that cannot be said."""
    other = {} if baseline is None or baseline["method"] == row["method"] else baseline
    found: SettingRow = {}
    shares = (*PERCENTS, CLOSER)
    names = [(f"median_{c}_to_{p}", f"{c}_to_{p}") for c in FIELD for p in shares]
    names += [(f"tuned_{c}_to_{p}", f"tuned_{c}_to_{p}") for c in FIELD for p in (90, CLOSER)]
    for key, name in names:
        own, plain = row.get(key), other.get(key)
        found[f"ratio_{name}"] = plain / own if plain and own else None
    return found
