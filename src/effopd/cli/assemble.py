"""From settings to objects: the only place where everything meets."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from effopd.config import RunConfig, differences, to_toml
from effopd.core.validation import Validator
from effopd.demo.cache import world_models
from effopd.demo.world import TinyWorld
from effopd.errors import CheckpointError, ConfigError
from effopd.evaluation.evaluator import Evaluation, Evaluator
from effopd.evaluation.validators import (
    AccuracyValidation,
    RolloutValidator,
    accuracy_measure,
    teacher_kl_measure,
)
from effopd.models.checkpoints import checkpoint_path, verify_checkpoint
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.policy import Policy
from effopd.objectives import ExOPD, FullVocabularyKL
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.rollout import Writer
from effopd.tasks.problem import Task
from effopd.trainers.learning import FullVocabularyLearner, Learner, SampledTokenLearner
from effopd.trainers.loop import Observer, Trainer
from effopd.trainers.run_directory import RunDirectory
from effopd.trainers.signals import StopRequest, stop_on_signals
from effopd.trainers.teachers import LocalTeacher, align_vocabularies

EVALUATION_SEED = 0
"""The same held-out sampling for every run, so that runs are compared on equal terms."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects of one run."""

    config: RunConfig
    task: Task
    student: Policy
    teacher: LocalTeacher
    reference: LocalTeacher | None

    def writer(self, policy: Policy) -> Writer:
        """Writes with `policy` as the settings say."""
        size = self.config.train.rollout_batch
        return Writer(
            engine=HFEngine(
                policy.model,
                policy.tokenizer,
                batch_size=size,
                vocabulary_size=policy.vocabulary_size,
            ),
            tokenizer=policy.tokenizer,
            template=self.config.prompt,
            sampling=self.config.sampling,
        )

    def evaluator(self) -> Evaluator:
        """Evaluates on the first test problems."""
        problems = self.task.test[: self.config.evaluation.problems]
        return Evaluator(problems=problems, verifier=self.task.verifier, seed=EVALUATION_SEED)

    def evaluate_student(self) -> Evaluation:
        """The student as it is now, with its divergence to the teacher."""
        return self.evaluator().evaluate(
            self.writer(self.student), student=self.student, teacher=self.teacher.policy
        )

    def evaluate_teacher(self) -> Evaluation:
        """The teacher on the same problems."""
        return self.evaluator().evaluate(self.writer(self.teacher.policy))

    def learner(self) -> Learner:
        """The objective, applied to this student and teacher."""
        objective = self.config.objective
        if isinstance(objective, FullVocabularyKL):
            return FullVocabularyLearner(objective, self.student, self.teacher)
        return SampledTokenLearner(objective, self.student, self.teacher, self.reference)

    def validator(self) -> Validator | None:
        """Scores the search's candidates; None without a search.

        Raises:
            ConfigError: Accuracy is asked for but the task has no verifier.
        """
        settings = self.config.validation
        if self.config.method == "opd":
            return None
        by_accuracy = isinstance(settings, AccuracyValidation)
        if by_accuracy and self.task.verifier is None:
            raise ConfigError(
                "validation.type = 'accuracy' needs a task with a verifier; use 'teacher_kl'"
            )
        if isinstance(settings, AccuracyValidation) and self.task.verifier is not None:
            measure = accuracy_measure(self.task.verifier)
        else:
            reduce = getattr(settings, "reduce", "token")
            measure = teacher_kl_measure(self.student, self.teacher.policy, reduce)
        return RolloutValidator(
            writer=self.writer(self.student),
            problems=self.task.train,
            measure=measure,
            prompts=settings.prompts,
            resample=settings.resample,
            seed=self.config.seed,
            scores_with_teacher=not by_accuracy,
        )


def build_parts(config: RunConfig, report: Callable[[str], None]) -> Parts:
    """Loads task and models; trains the tiny world's models if they are not cached."""
    torch.set_num_threads(config.threads)
    student_settings, teacher_settings = _model_settings(config, report)
    student = _policy(student_settings, config.device)
    teacher = _policy(teacher_settings, config.teacher_device or config.device)
    reference = _reference(config, student)
    others = [teacher] if reference is None else [teacher, reference]
    align_vocabularies(student, *others)
    return Parts(
        config=config,
        task=config.task.load(),
        student=student,
        teacher=LocalTeacher(teacher),
        reference=None if reference is None else LocalTeacher(reference),
    )


def train(
    config: RunConfig,
    out: Path,
    observer: Observer,
    *,
    stop: StopRequest | None = None,
) -> bool:
    """Trains, or continues a run that was interrupted; leaves a finished one alone.

    Args:
        config: Settings.
        out: Run directory.
        observer: Progress display.
        stop: Asked at the end of every step; None reacts to signals.

    Returns:
        Whether the last step was reached.

    Raises:
        ConfigError: `out` holds a run with other settings.
    """
    run = RunDirectory(out)
    try:
        _check_same_config(run, config)
        if _is_finished(run, config):
            observer.on_message(
                f"{out} is finished: its {config.train.steps} steps are done, nothing was changed. "
                "Raise train.steps to go on, or choose another directory (--out)."
            )
            return True
        parts = build_parts(config, observer.on_message)
        trainer = build_trainer(parts, run, observer)
        run.describe(to_toml(config), run_info(config))
        trainer.resume()
        if stop is not None:
            return trainer.run(stop)
        with stop_on_signals() as request:
            return trainer.run(request)
    finally:
        run.close()


def build_trainer(parts: Parts, run: RunDirectory, observer: Observer) -> Trainer:
    """The trainer of a run."""
    config = parts.config
    evaluates = config.evaluation.problems > 0
    return Trainer(
        parts.student,
        parts.learner(),
        parts.writer(parts.student),
        parts.task.train,
        run,
        settings=config.loop,
        evaluate=parts.evaluate_student if evaluates else None,
        evaluate_teacher=parts.evaluate_teacher
        if evaluates and config.evaluation.teacher
        else None,
        search=None if config.method == "opd" else config.search,
        validate=parts.validator(),
        observer=observer,
    )


def run_info(config: RunConfig) -> dict[str, Any]:
    """Content of `run.json`."""
    packages = ("effopd", "torch", "transformers", "safetensors", "numpy")
    return {
        "label": config.name,
        "method": config.method_name,
        "preset": config.preset,
        "lr": config.optimizer.lr,
        "seed": config.seed,
        "versions": {package: version(package) for package in packages},
    }


def _check_same_config(run: RunDirectory, config: RunConfig) -> None:
    """A run continues under its own settings; only more steps at a constant rate are allowed."""
    path = run.path / "config.toml"
    if not path.is_file():
        if run.holds_records:
            raise ConfigError(
                f"{run.path} holds records or checkpoints but no config.toml, so their settings "
                "are not known: restore the file, or choose another directory (--out)"
            )
        return
    try:
        changed = differences(path.read_text(encoding="utf-8"), to_toml(config))
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged ({error}): restore it, or choose another directory (--out)"
        ) from None
    if config.optimizer.decay == "none":
        changed = [line for line in changed if not _is_longer(line)]
    if changed:
        raise ConfigError(
            f"{run.path} holds a run with other settings:\n  "
            + "\n  ".join(changed)
            + "\nContinue with the old settings, or start a new run in another directory (--out)."
        )


def _is_longer(difference: str) -> bool:
    """Whether `train.steps: OLD -> NEW` asks for more steps."""
    steps = re.fullmatch(r"train\.steps: (\d+) -> (\d+)", difference)
    return steps is not None and int(steps[1]) < int(steps[2])


def _is_finished(run: RunDirectory, config: RunConfig) -> bool:
    """Whether the checkpoint of the last step is there, undamaged."""
    last = checkpoint_path(run.checkpoints, config.train.steps)
    try:
        verify_checkpoint(last)
    except CheckpointError:
        return False
    return True


def _model_settings(
    config: RunConfig, report: Callable[[str], None]
) -> tuple[ModelSettings, ModelSettings]:
    if config.student is not None and config.teacher is not None:
        return config.student, config.teacher
    assert isinstance(config.task, TinyWorld)  # RunConfig checked it
    models = world_models(config.task, report)
    return (
        config.student or ModelSettings(path=str(models.base)),
        config.teacher or ModelSettings(path=str(models.teacher)),
    )


def _policy(settings: ModelSettings, device: str) -> Policy:
    return Policy(load_model(settings, device), load_tokenizer(settings))


def _reference(config: RunConfig, student: Policy) -> Policy | None:
    """ExOPD's reference: the named model, else a copy of the untrained student."""
    if not isinstance(config.objective, ExOPD):
        return None
    if config.reference is not None:
        return _policy(config.reference, config.teacher_device or config.device)
    return Policy(copy.deepcopy(student.model), student.tokenizer)
