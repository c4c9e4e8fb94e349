"""The training loop: sample, score, learn, observe, search, evaluate, checkpoint.

Every random number is a function of (seed, purpose, step, index), the data order is a function of
the step, and every log has a known length at every checkpoint. So a run that is killed at any
moment and resumed from its newest checkpoint writes the same weights, optimizer state and
`metrics.jsonl` as one that was never disturbed (on a CPU, with the same number of threads).
"""

import time
from collections.abc import Callable
from typing import Any

from effopd.errors import NonFiniteError
from effopd.evaluation.evaluator import EvaluationResult
from effopd.evaluation.rollout_sources import TrainingBatchRollouts
from effopd.methods import Learner
from effopd.models.checkpoints import prune, write_checkpoint
from effopd.models.policy import Policy
from effopd.records import best_step, checkpoint_path
from effopd.search.extrapolator import Search
from effopd.search.line_search import SearchResult
from effopd.search.scales import Trial
from effopd.search.validation import Validator
from effopd.training.collect import Collector
from effopd.training.monitor import monitor_of
from effopd.training.observer import Observer
from effopd.training.rows import (
    EMPTY_METRICS,
    Row,
    absorption,
    alarms,
    batch_statistics,
    relative_progress,
    rollout_rows,
    trial_row,
    with_advice,
)
from effopd.training.run_directory import RunDirectory
from effopd.training.settings import LoopSettings
from effopd.training.signals import StopRequest
from effopd.training.state import Progress, Saved, load_state, save_state
from effopd.training.teachers import StudentAverage
from effopd.training.update import Updater, extrapolator_of

PHASES = ("rollout_s", "teacher_s", "update_s", "monitor_s", "search_s")
COSTS = ("sampled_tokens", "teacher_tokens", "student_passes")
LAST_STEP = "last step"


class Trainer:
    """Trains one student; everything it needs is handed in.

    Evaluates the teacher once, before the first step. A search needs `validate`; with
    `batch_rollouts` it comes before its batch is trained on, else after the update.
    """

    def __init__(
        self,
        student: Policy,
        learner: Learner,
        collector: Collector,
        run: RunDirectory,
        *,
        settings: LoopSettings,
        evaluate: Callable[[], EvaluationResult] | None = None,
        evaluate_teacher: Callable[[], EvaluationResult] | None = None,
        search: Search | None = None,
        validate: Validator | None = None,
        average: StudentAverage | None = None,
        batch_rollouts: TrainingBatchRollouts | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.student, self.learner, self.collector = student, learner, collector
        self.average, self.engine = average, collector.writer.engine
        self.batch_rollouts = batch_rollouts
        self.run_directory, self.settings = run, settings
        self.observer = observer = observer or Observer()
        self._evaluate_student, self._evaluate_teacher = evaluate, evaluate_teacher
        self.updater = Updater(student, learner, settings)
        progress = self.progress = Progress()

        def on_trial(index: int, trial: Trial) -> None:  # without self, which it would keep alive
            observer.on_trial(progress.step, index, trial)
            run.write("search", trial_row(progress.step, index, trial))

        self.extrapolator = extrapolator_of(
            student, self.updater, settings, search=search, validate=validate, on_trial=on_trial
        )
        self.monitor = monitor_of(student, settings)
        self._history: list[Row] = []
        self._clock: dict[str, float] = {}

    def run(self, stop: StopRequest) -> bool:
        """Trains to the last step, or until the stop rule ends the run; whether it came there."""
        if self.progress.step == 0:
            if self._evaluate_teacher is not None:
                self._write_evaluation("teacher", self._evaluate_teacher())
            self._evaluate()
        reason = self._end()
        while reason is None:
            self._step()
            self._evaluate()
            reason = self._end()
            if reason is not None:
                self._evaluate(ended=True)
            due = self.progress.step % self.settings.checkpoint.every == 0
            if stop or due or reason is not None or self._best() == self.progress.step:
                self._save()
                if stop:  # inside: a signal after the first check must not skip the save
                    break
        if reason is not None:
            self.run_directory.finish(self.progress.step, reason)
        return reason is not None

    def _step(self) -> None:
        """One batch of rollouts with its updates, a search if due, and the rows."""
        progress = self.progress
        progress.step += 1
        passes, cpu_s = self.student.passes, time.process_time()
        self._clock = dict.fromkeys(PHASES, 0.0)
        row: Row = {"step": progress.step}
        try:
            # Sample: the student answers the prompts of the step.
            batch = self._timed("rollout_s", self.collector.collect, progress.step)
            progress.train_tokens += batch.written_tokens
            row |= batch_statistics(batch)
            # Search before learning, where candidates are scored on this very batch.
            if self.batch_rollouts is not None:
                self.batch_rollouts.reuse(batch.rollouts, are_cut=batch.horizon is not None)
                last = self._history[-1] if self._history else {}
                row |= self._timed("search_s", self._search, progress.step - 1, last)
            # Score: the teachers read the answers.
            factor = self.extrapolator.rate_factor if self.extrapolator is not None else 1.0
            row["lr"] = self.updater.set_lr_(progress.step, factor)
            progress.teacher_tokens += self._timed("teacher_s", self.learner.prepare, batch)
            # Learn: the optimizer moves the student.
            row |= self._timed("update_s", self.updater.update_, batch.rollouts, progress.step)
            row |= self.learner.metrics()
            row["skipped"], progress.skipped_in_a_row = None, 0
        except NonFiniteError as error:
            row |= self._skip(str(error))
        self.engine.sync_weights()
        # Observe the direction of training, before a search moves along it.
        self._timed("monitor_s", self._observe)
        # Search along the displacement.
        if self.batch_rollouts is None:
            row |= self._timed("search_s", self._search, progress.step, row)
        for average in (self.average, self.updater.average):
            if average is not None:
                average.update_()
        progress.student_passes += self.student.passes - passes
        progress.cpu_s += time.process_time() - cpu_s
        self._finish(row)

    def _skip(self, reason: str) -> Row:
        """Gives up this update; too many in a row end the run."""
        progress = self.progress
        self.updater.discard()
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        self.observer.on_message(f"step {progress.step}: update skipped, {reason}")
        if progress.skipped_in_a_row > self.settings.train.max_skipped_steps:
            raise NonFiniteError(
                f"{progress.skipped_in_a_row} updates in a row were skipped, last: {reason}. The "
                "checkpoints are good: check the teacher and resume, or start a new run (--out) "
                "with a lower optimizer.lr."
            )
        return {"skipped": reason}

    def _observe(self) -> None:
        if self.monitor is None:
            return
        step = self.progress.step
        try:
            row = self.monitor.observe(step)
        except NonFiniteError as error:
            self.observer.on_message(f"step {step}: not observed, {error}")
            return
        if row is not None:
            self.run_directory.write("monitor", row)
            for alarm in row["alarms"]:
                self.observer.on_message(f"step {step}: {with_advice(alarm)}")

    def _search(self, updates: int, last: Row) -> Row:
        """Searches if it is due after so many updates; its field of the metrics row."""
        result: SearchResult | None = None
        try:
            if self.extrapolator is not None:
                result = self.extrapolator.step(updates, relative_progress(last, self._history))
        except NonFiniteError as error:
            self.observer.on_message(f"step {self.progress.step}: search skipped, {error}")
        if result is None:
            return {"accepted_scale": None}
        self.progress.validation_tokens += result.tokens
        self.progress.teacher_tokens += result.teacher_tokens
        self.engine.sync_weights()
        if result.accepted_scale != 1.0 and self.monitor is not None:
            self.monitor.on_extrapolation()
        return {"accepted_scale": result.accepted_scale}

    def _finish(self, row: Row) -> None:
        """Completes and writes the step's rows."""
        progress = self.progress
        progress.elapsed_s += sum(self._clock.values())
        metrics = EMPTY_METRICS | row | absorption(row, self._history)
        counters = (*COSTS, "train_tokens", "validation_tokens", "skipped_steps")
        metrics |= {name: getattr(progress, name) for name in counters}
        metrics["alarms"] = alarms(metrics, self._history) if metrics["mean_length"] else []
        for alarm in metrics["alarms"]:
            self.observer.on_message(f"step {progress.step}: {with_advice(alarm)}")
        timing = {"step": progress.step, "elapsed_s": progress.elapsed_s, "cpu_s": progress.cpu_s}
        timing |= self._clock
        self._history.append(metrics)
        self.run_directory.write("metrics", metrics)
        self.run_directory.write("timing", timing)
        self.observer.on_step(metrics, timing)

    def _evaluate(self, *, ended: bool = False) -> None:
        """Evaluates the student on test problems if that is due, or at the end if it was not."""
        settings, step = self.settings.evaluation, self.progress.step
        due = settings.is_due(step, self.settings.train.steps)
        if self._evaluate_student is None or settings.problems == 0 or due == ended:
            return
        with self.updater.averaged_(self.engine.sync_weights):
            evaluation = self._evaluate_student()
        self._write_evaluation("student", evaluation)
        for row in rollout_rows(evaluation, settings.recorded, self.student.tokenizer):
            self.run_directory.write("rollouts", {"step": step, **row})

    def _write_evaluation(self, model: str, evaluation: EvaluationResult) -> None:
        row = {"step": self.progress.step, "model": model, **evaluation.row()}
        row |= {name: getattr(self.progress, name) for name in COSTS}
        self.run_directory.write("evals", row)
        self.observer.on_evaluation(row)

    def _end(self) -> str | None:
        """Why the run is over; a function of its records alone."""
        if self.progress.step >= self.settings.train.steps:
            return LAST_STEP
        rule = self.settings.train.stop
        evaluations = self.run_directory.rows("evals") if rule.is_active else []
        return rule.reason(evaluations, self._history) if rule.is_active else None

    def _save(self) -> None:
        self.progress.offsets = self.run_directory.offsets()
        parent = self.run_directory.checkpoints
        path = checkpoint_path(parent, self.progress.step)
        write_checkpoint(path, lambda new: save_state(new, self._saved(), self.progress))
        best = self._best()
        also = () if best is None else (checkpoint_path(parent, best),)
        prune(parent, self.settings.checkpoint.keep, also)

    def _best(self) -> int | None:
        """The step of the best evaluation so far, where its checkpoint is kept."""
        kept = self.settings.checkpoint.keep_best
        return best_step(self.run_directory.rows("evals")) if kept else None

    def _saved(self) -> Saved:
        """What a checkpoint holds."""
        return Saved(
            policy=self.student,
            optimizer=self.updater.optimizer,
            moved=self.updater.moved,
            masters=self.updater.masters,
            trained=self.updater,
            weight_average=self.updater.average,
            averaged=self.updater.averaged_,
            extrapolator=self.extrapolator,
            learner=self.learner,
            average=self.average,
            monitor=self.monitor,
        )

    def resume(self) -> bool:
        """Continues from the newest good checkpoint; False when there is none yet.

        Damaged newer checkpoints are reported to the observer and left in place. Records written
        after the checkpoint are cut off: they will be written again, identically.
        """
        directory, remarks = self.run_directory.resume_point(self.settings.checkpoint.every)
        for remark in remarks:
            self.observer.on_message(remark)
        if directory is not None:
            vars(self.progress).update(vars(load_state(directory, self._saved())))
        self.run_directory.rewind(self.progress.offsets, self.progress.step)
        self._history = self.run_directory.rows("metrics")
        self.engine.sync_weights()
        return directory is not None

    def _timed(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a phase and adds its wall time to the step's clock."""
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            self._clock[name] = time.perf_counter() - start
