"""Why a run is over: its last step, or the rule that ends it before."""

from collections.abc import Mapping, Sequence
from typing import Any

from effopd.training.settings import StopRule

LAST_STEP = "last step"


def stop_reason(evaluations: Sequence[Mapping[str, Any]], rule: StopRule) -> str | None:
    """What ends a run after these evaluations, None to go on.

    Args:
        evaluations: Rows of `evals.jsonl` so far.
        rule: The rule; accuracies that were not measured never end a run.

    Returns:
        A phrase for the user, or None.
    """
    student = [r["accuracy"] for r in evaluations if r["model"] == "student"]
    student = [accuracy for accuracy in student if accuracy is not None]
    teacher = [r["accuracy"] for r in evaluations if r["model"] == "teacher"]
    if student and teacher and _is_near(student[-1], teacher[0], rule.target):
        return f"accuracy {student[-1]:.3f} is {rule.target:.0%} of the teacher's"
    if rule.patience and len(student) > rule.patience and _is_stuck(student, rule.patience):
        return f"no better accuracy in {rule.patience} evaluations"
    return None


def _is_near(accuracy: float, teacher: float | None, target: float) -> bool:
    """The tolerance keeps 0.81 at 90 % of 0.9, whatever the rounding of the product."""
    return target > 0 and teacher is not None and accuracy >= target * teacher - 1e-12


def _is_stuck(accuracies: Sequence[float], patience: int) -> bool:
    return max(accuracies[-patience:]) <= max(accuracies[:-patience])
