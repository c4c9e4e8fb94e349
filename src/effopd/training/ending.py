"""Why a run is over: its last step, or the rule that ends it before."""

from collections.abc import Mapping, Sequence
from typing import Any

from effopd.records import reaches
from effopd.training.settings import StopRule

LAST_STEP = "last step"


def stop_reason(evaluations: Sequence[Mapping[str, Any]], rule: StopRule) -> str | None:
    """What ends a run after these evaluations, None to go on."""
    student = [r["accuracy"] for r in evaluations if r["model"] == "student"]
    student = [accuracy for accuracy in student if accuracy is not None]
    teacher = [r["accuracy"] for r in evaluations if r["model"] == "teacher"]
    if student and teacher and rule.target and reaches(student[-1], rule.target, teacher[0]):
        return f"accuracy {student[-1]:.3f} is {rule.target:.0%} of the teacher's"
    if rule.patience and len(student) > rule.patience and _is_stuck(student, rule.patience):
        return f"no better accuracy in {rule.patience} evaluations"
    return None


def _is_stuck(accuracies: Sequence[float], patience: int) -> bool:
    return max(accuracies[-patience:]) <= max(accuracies[:-patience])
