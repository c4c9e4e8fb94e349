"""The training loop: sample, score, learn, search, evaluate, checkpoint.

Every random number is a function of (seed, purpose, step, index), the data order is a function of
the step, and every log has a known length at every checkpoint. So a run that is killed at any
moment and resumed from its newest checkpoint writes the same weights, optimizer state and
`metrics.jsonl` as one that was never disturbed (on a CPU, with the same number of threads).
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from effopd.core.extrapolator import Extrapolator, Search
from effopd.core.scales import Trial
from effopd.core.search import SearchResult
from effopd.core.validation import Validator
from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.evaluator import Evaluation
from effopd.models.checkpoints import checkpoint_path, prune, write_checkpoint
from effopd.models.policy import Policy
from effopd.rollouts.rollout import Rollout, Writer, total_tokens
from effopd.rollouts.seeds import derive_seed
from effopd.tasks.problem import Problem
from effopd.trainers.alarms import alarms
from effopd.trainers.batch import micro_batches, step_problems
from effopd.trainers.learning import Learner
from effopd.trainers.observer import Observer
from effopd.trainers.rows import (
    EMPTY_METRICS,
    Row,
    rollout_rows,
    rollout_statistics,
    trial_row,
    update_statistics,
)
from effopd.trainers.run_directory import RunDirectory
from effopd.trainers.settings import LoopSettings
from effopd.trainers.signals import StopRequest
from effopd.trainers.state import Progress, load_state, save_state

PHASES = ("rollout_s", "teacher_s", "update_s", "search_s")


class Trainer:
    """Trains one student; everything it needs is handed in.

    Args:
        student: The policy to train.
        learner: Objective and teacher.
        writer: The student's engine and sampling.
        problems: Training problems.
        run: Where records and checkpoints go.
        settings: How much, how fast, when to evaluate and save.
        evaluate: Evaluates the live student; None without test problems.
        evaluate_teacher: Evaluates the teacher, once, before the first step.
        search: Settings of the search; None trains without one.
        validate: Scores candidates; needed with a search.
        observer: Progress display.
    """

    def __init__(
        self,
        student: Policy,
        learner: Learner,
        writer: Writer,
        problems: Sequence[Problem],
        run: RunDirectory,
        *,
        settings: LoopSettings,
        evaluate: Callable[[], Evaluation] | None = None,
        evaluate_teacher: Callable[[], Evaluation] | None = None,
        search: Search | None = None,
        validate: Validator | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.student, self.learner, self.writer, self.problems = student, learner, writer, problems
        self.run_directory, self.settings = run, settings
        self.evaluate, self.evaluate_teacher = evaluate, evaluate_teacher
        self.observer = observer or Observer()
        self._trainable = [p for p in student.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trainable,
            betas=settings.optimizer.betas,
            eps=settings.optimizer.eps,
            weight_decay=settings.optimizer.weight_decay,
        )
        self.extrapolator = self._extrapolator(search, validate)
        self.progress = Progress()
        self._history: list[Row] = []
        self._clock: dict[str, float] = {}

    def _extrapolator(
        self, search: Search | None, validate: Validator | None
    ) -> Extrapolator | None:
        if search is None:
            return None
        if validate is None:
            raise ConfigError("a search needs a validator: pass validate=, or search=None")
        return Extrapolator(
            self.student.model,
            validate,
            search=search,
            optimizer=self.optimizer,
            on_trial=self._log_trial,
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
            self.progress = load_state(directory, self.student, self.optimizer, self.extrapolator)
        self.run_directory.rewind(self.progress.offsets, self.progress.step)
        self._history = self.run_directory.rows("metrics")
        self.writer.engine.sync_weights()
        return directory is not None

    def run(self, stop: StopRequest) -> bool:
        """Trains to the last step.

        Args:
            stop: Asked at the end of every step; a requested stop saves first.

        Returns:
            Whether the last step was reached.

        Raises:
            NonFiniteError: Too many updates in a row had a non-finite loss or gradient.
        """
        if self.progress.step == 0:
            self._evaluate_before_training()
        while self.progress.step < self.settings.train.steps:
            self._step()
            self._evaluate_if_due()
            step, last = self.progress.step, self.settings.train.steps
            if stop or step % self.settings.checkpoint.every == 0 or step == last:
                self._save()
                if stop:  # inside: a signal after the first look must not skip the save
                    return step == last
        return True

    def _step(self) -> None:
        """One update, a search if due, and the step's rows."""
        progress = self.progress
        progress.step += 1
        self._clock = dict.fromkeys(PHASES, 0.0)
        row: Row = {"step": progress.step, "lr": self._set_lr_()}
        try:
            rollouts = self._timed("rollout_s", self._sample)
            progress.train_tokens += total_tokens(rollouts)
            row |= rollout_statistics(rollouts)
            progress.teacher_tokens += self._timed("teacher_s", self.learner.prepare, rollouts)
            row |= self._timed("update_s", self._update, rollouts)
            row["skipped"], progress.skipped_in_a_row = None, 0
        except NonFiniteError as error:
            row |= self._skip(str(error))
        self.writer.engine.sync_weights()
        result = self._timed("search_s", self._search)
        row["accepted_scale"] = result.accepted_scale if result else None
        self._finish(row)

    def _set_lr_(self) -> float:
        lr = self.settings.optimizer.lr_at(self.progress.step, self.settings.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _sample(self) -> list[Rollout]:
        """The step's rollouts."""
        step, count = self.progress.step, self.settings.train.prompts_per_step
        problems = step_problems(self.problems, self.settings.seed, step, count)
        seeds = [derive_seed(self.settings.seed, "train", step, i) for i in range(count)]
        return self.writer.answer(problems, seeds)

    def _update(self, rollouts: Sequence[Rollout]) -> Row:
        """Accumulates the gradient over micro-batches and takes one clipped optimizer step."""
        tokens = total_tokens(rollouts)
        torch.manual_seed(derive_seed(self.settings.seed, "update", self.progress.step))  # dropout
        self.optimizer.zero_grad(set_to_none=True)
        self.student.model.train()
        parts = []
        for indices in micro_batches(rollouts, self.settings.train.micro_batch_tokens):
            part = self.learner.contribution(indices, tokens)
            part.loss.backward()
            parts.append(part)
        self.student.model.eval()
        norm = torch.nn.utils.clip_grad_norm_(self._trainable, self.settings.optimizer.clip_norm)
        statistics = update_statistics(parts, tokens, norm.item())
        self.optimizer.step()
        return statistics

    def _skip(self, reason: str) -> Row:
        """Gives up this update; too many in a row end the run."""
        progress = self.progress
        self.optimizer.zero_grad(set_to_none=True)
        self.student.model.eval()
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

    def _search(self) -> SearchResult | None:
        if self.extrapolator is None:
            return None
        try:
            result = self.extrapolator.step(self.progress.step)
        except NonFiniteError as error:
            self.observer.on_message(f"step {self.progress.step}: search skipped, {error}")
            return None
        if result is not None:
            self.progress.validation_tokens += result.tokens
            self.progress.teacher_tokens += result.teacher_tokens
            self.writer.engine.sync_weights()
        return result

    def _log_trial(self, index: int, trial: Trial) -> None:
        self.observer.on_trial(self.progress.step, index, trial)
        self.run_directory.write("search", trial_row(self.progress.step, index, trial))

    def _finish(self, row: Row) -> None:
        """Completes and writes the step's rows."""
        progress = self.progress
        progress.elapsed_s += sum(self._clock.values())
        metrics = EMPTY_METRICS | row
        for counter in ("train", "validation", "sampled", "teacher"):
            metrics[f"{counter}_tokens"] = getattr(progress, f"{counter}_tokens")
        metrics["skipped_steps"] = progress.skipped_steps
        metrics["alarms"] = alarms(metrics, self._history) if metrics["mean_length"] else []
        for alarm in metrics["alarms"]:
            self.observer.on_message(f"step {progress.step}: {alarm}")
        timing = {"step": progress.step, "elapsed_s": progress.elapsed_s, **self._clock}
        self._history.append(metrics)
        self.run_directory.write("metrics", metrics)
        self.run_directory.write("timing", timing)
        self.observer.on_step(metrics, timing)

    def _evaluate_before_training(self) -> None:
        if self.evaluate_teacher is not None:
            self._write_evaluation("teacher", self.evaluate_teacher())
        self._evaluate_if_due()

    def _evaluate_if_due(self) -> None:
        due = self.settings.evaluation.is_due(self.progress.step, self.settings.train.steps)
        if self.evaluate is None or not due:
            return
        evaluation = self.evaluate()
        self._write_evaluation("student", evaluation)
        for row in rollout_rows(
            evaluation, self.settings.evaluation.recorded, self.student.tokenizer
        ):
            self.run_directory.write("rollouts", {"step": self.progress.step, **row})

    def _write_evaluation(self, model: str, evaluation: Evaluation) -> None:
        progress = self.progress
        row = {"step": progress.step, "model": model, **evaluation.row()}
        row["sampled_tokens"] = progress.sampled_tokens
        row["teacher_tokens"] = progress.teacher_tokens
        self.run_directory.write("evals", row)
        self.observer.on_evaluation(row)

    def _save(self) -> None:
        self.progress.offsets = self.run_directory.offsets()
        parent = self.run_directory.checkpoints

        def write(directory: Path) -> None:
            save_state(directory, self.student, self.optimizer, self.extrapolator, self.progress)

        write_checkpoint(checkpoint_path(parent, self.progress.step), write)
        prune(parent, self.settings.checkpoint.keep)

    def _timed(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a phase and adds its wall time to the step's clock."""
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            self._clock[name] = time.perf_counter() - start
