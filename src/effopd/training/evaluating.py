"""When the student is evaluated, and what is recorded of it."""

from collections.abc import Callable

from effopd.evaluation.evaluator import Evaluation
from effopd.models.policy import Policy
from effopd.training.observer import Observer
from effopd.training.rows import rollout_rows
from effopd.training.run_directory import RunDirectory
from effopd.training.settings import LoopSettings
from effopd.training.state import Progress


class Evaluations:
    """The evaluations of a run.

    Args:
        student: Whose tokenizer the recorded rollouts are written with.
        run: Where records go.
        settings: When to evaluate, what to record.
        evaluate: Evaluates the live student; None without test problems.
        evaluate_teacher: Evaluates the teacher, once; None leaves it out.
        observer: Progress display.
    """

    def __init__(
        self,
        student: Policy,
        run: RunDirectory,
        settings: LoopSettings,
        *,
        evaluate: Callable[[], Evaluation] | None,
        evaluate_teacher: Callable[[], Evaluation] | None,
        observer: Observer,
    ) -> None:
        self._student, self._run, self._observer = student, run, observer
        self._settings, self._steps = settings.evaluation, settings.train.steps
        self._evaluate, self._evaluate_teacher = evaluate, evaluate_teacher

    def before_training(self, progress: Progress) -> None:
        """Teacher and untrained student."""
        if self._evaluate_teacher is not None:
            self._write("teacher", self._evaluate_teacher(), progress)
        self.if_due(progress)

    def if_due(self, progress: Progress) -> None:
        """The student after a step."""
        due = self._settings.is_due(progress.step, self._steps)
        if self._evaluate is None or not due:
            return
        evaluation = self._evaluate()
        self._write("student", evaluation, progress)
        for row in rollout_rows(evaluation, self._settings.recorded, self._student.tokenizer):
            self._run.write("rollouts", {"step": progress.step, **row})

    def _write(self, model: str, evaluation: Evaluation, progress: Progress) -> None:
        row = {"step": progress.step, "model": model, **evaluation.row()}
        row["sampled_tokens"] = progress.sampled_tokens
        row["teacher_tokens"] = progress.teacher_tokens
        self._run.write("evals", row)
        self._observer.on_evaluation(row)
