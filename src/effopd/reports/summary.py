"""How soon each run came close to the teacher, and by what factor sooner than plain distillation.

Plain distillation is the method "opd". A ratio above 1 says how many times less a run needed.
"""

from collections.abc import Sequence
from typing import Any

from effopd.records import Run
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

COSTS = ("steps", "tokens", "seconds")
"""What reaching a share can cost: optimizer steps, sampled tokens, seconds of training."""

BASELINE = "opd"
"""Method that ratios are taken against."""

FIELD = {
    "steps": "step",
    "tokens": "sampled_tokens",
    "teacher_tokens": "teacher_tokens",
    "seconds": "elapsed_s",
}
"""Field of `Evaluation` that holds a cost."""

Summary = dict[str, float | None]


def method_summary(run: Run, teacher_accuracy: float | None) -> Summary:
    """Cost of reaching shares of the teacher's accuracy, and where the run ended.

    The cost of x % is taken at the first evaluation whose student accuracy is at least
    `x / 100 * teacher_accuracy`; tokens and seconds include validation.

    Args:
        run: The run to sum up.
        teacher_accuracy: Fraction in [0, 1]; None if it was never measured.

    Returns:
        `steps_to_80`, `tokens_to_80`, `seconds_to_80`, the same for 90, 95 and 99, and
        `final_accuracy`, `final_accuracy_se`, `final_reverse_kl`; None where not reached.
    """
    points = [point for point in evaluations(run) if point.accuracy is not None]
    summary: Summary = {}
    for percent in PERCENTS:
        point = first_at(points, percent, teacher_accuracy)
        for cost in COSTS:
            summary[f"{cost}_to_{percent}"] = getattr(point, FIELD[cost], None)
    last = points[-1] if points else None
    for name in ("accuracy", "accuracy_se", "reverse_kl"):
        summary[f"final_{name}"] = getattr(last, name, None)
    return summary


def first_at(
    points: Sequence[Evaluation], percent: int, teacher: float | None
) -> Evaluation | None:
    """The first of `points` at `percent` % of the teacher's accuracy; None if there is none."""
    if teacher is None:
        return None
    # The tolerance keeps 0.81 at 90 % of 0.9, whatever the rounding of the product.
    level = percent / 100 * teacher - 1e-12
    return next((p for p in points if p.accuracy is not None and p.accuracy >= level), None)


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """What `summary.json` holds: `{"base_accuracy", "teacher_accuracy", "methods": {label: ...}}`.

    Args:
        runs: Runs against the same teacher; labels that occur twice get a counter.

    Returns:
        JSON values; None where a number was not measured or a share not reached.
    """
    teacher = teacher_accuracy(runs)
    return {
        "base_accuracy": base_accuracy(runs),
        "teacher_accuracy": teacher,
        "methods": {
            label: method_summary(run, teacher)
            for label, run in zip(unique_labels(runs), runs, strict=True)
        },
    }


def baseline_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The "opd" run that `run` is compared with.

    One at the same learning rate is preferred, then one with the same seed, then the first.

    Args:
        run: Any run.
        runs: All runs of the comparison.

    Returns:
        A run whose method is "opd", `run` itself if it is one, or None if there is none.
    """
    if run.info.get("method") == BASELINE:
        return run
    plain = [other for other in runs if other.info.get("method") == BASELINE]

    def mismatches(other: Run) -> list[bool]:
        return [other.info.get(key) != run.info.get(key) for key in ("lr", "seed")]

    return min(plain, key=mismatches, default=None)


def ratios(run: Run, runs: Sequence[Run]) -> Summary:
    """How many times less `run` needed than its baseline, for `steps_to_80` and so on.

    Args:
        run: Any run.
        runs: All runs of the comparison.

    Returns:
        Baseline divided by run; None where either did not get there, the run needed nothing, or it
        is its own baseline.
    """
    teacher, baseline = teacher_accuracy(runs), baseline_of(run, runs)
    own = method_summary(run, teacher)
    other = method_summary(baseline, teacher) if baseline and baseline is not run else {}
    names = [f"{cost}_to_{percent}" for cost in COSTS for percent in PERCENTS]
    return {name: _ratio(other.get(name), own[name]) for name in names}


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


def _ratio(baseline: float | None, own: float | None) -> float | None:
    return None if baseline is None or not own else baseline / own
