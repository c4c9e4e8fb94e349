"""From settings to a run: the only place where everything meets."""

import copy
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from effopd.config import RunConfig, changes, load_config, reasons, to_toml
from effopd.data.problem import Task
from effopd.data.world import TinyWorld
from effopd.demo.cache import world_models
from effopd.errors import CheckpointError, ConfigError
from effopd.evaluation.routing import Teacher, Teachers
from effopd.models.architecture import position_limit
from effopd.models.checkpoints import checkpoint_path, verify_checkpoint
from effopd.models.directory import ADAPTER_CONFIG
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.lora import without_adapters
from effopd.models.policy import Offloaded, Policy
from effopd.objectives import ExOPD
from effopd.rewards.build import verifier_for
from effopd.rollouts.prompts import lend_template_, prompt_remarks
from effopd.training.build import Parts
from effopd.training.devices import placed
from effopd.training.ending import LAST_STEP
from effopd.training.engines import served_teacher, student_engine
from effopd.training.loop import Observer, Trainer
from effopd.training.problems import counts_record, load_problems
from effopd.training.run_directory import RunDirectory, recorded_date
from effopd.training.signals import StopRequest, stop_on_signals
from effopd.training.teachers import StudentAverage, align_vocabularies, frozen, frozen_copy


def build_parts(config: RunConfig, report: Callable[[str], None]) -> Parts:
    """Loads task and models; trains the tiny world's models if they are not cached."""
    config = placed(config)
    torch.set_num_threads(config.threads)
    student_settings, teacher_settings = _model_settings(config, report)
    student = _policy(student_settings, config.device, report)
    served = served_teacher(config, student, report)
    teachers: dict[str, Policy] = {
        name: _scoring_policy(config, settings, report)
        for name, settings in teacher_settings.items()
    }
    reference = _reference(config, student, report)
    scoring = {f"teachers.{name}" if name else "the teacher": p for name, p in teachers.items()}
    others = scoring | ({"the reference": reference} if reference else {})
    for remark in align_vocabularies(student, others):
        report(remark)
    for name, policy in scoring.items():
        _report_templates(config, name, student.tokenizer, policy.tokenizer, report)
    average = None
    if config.self_teacher is not None:
        teachers = {"": teachers.get("") or frozen_copy(student)}
        average = StudentAverage(teachers[""], student, config.self_teacher.decay)
    everyone: dict[str, Teacher] = {**teachers, **({"": served} if served else {})}
    verifier = verifier_for(config.task, config.code)
    task = load_problems(config, student.tokenizer, verifier, report)
    _report_prompts(config, student, task, report)
    return Parts(
        config=config,
        task=task,
        verifier=verifier,
        student=student,
        teachers=_known_teachers(everyone, task) if everyone else None,
        reference=reference,
        average=average,
        engine=student_engine(config, student, student_settings.path, report),
    )


def config_of_run(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a run as it was trained, the date in its prompts included.

    Raises:
        ConfigError: The directory holds none.
    """
    if not (run / "config.toml").is_file():
        inside = run.parent.name == "checkpoints" and (run.parents[1] / "config.toml").is_file()
        hint = f"; it is a checkpoint of {run.parents[1]}: give that" if inside else ""
        raise ConfigError(f"{run} is no run directory: config.toml is missing{hint}")
    config = load_config(run / "config.toml", overrides)
    return _dated(config, recorded_date(run))


def _dated(config: RunConfig, day: str | None) -> RunConfig:
    """The settings with the day that prompts are to have, unless they name one themselves."""
    prompt = replace(config.prompt, date=config.prompt.date or day)
    return config.model_copy(update={"prompt": prompt})


def _report_templates(
    config: RunConfig, name: str, student: Any, teacher: Any, report: Callable[[str], None]
) -> None:
    """Lends a teacher the student's chat template if need be; tokenizers are given."""
    if config.prompt.chat and lend_template_(student, teacher):
        report(f"{name} has no chat template: its own evaluation uses the student's")
    elif unread := config.prompt.unread(teacher):
        report(
            f"the chat template of {name} never reads {', '.join(map(repr, unread))} "
            "(prompt.template_kwargs): in its own evaluation they have no effect"
        )


def _report_prompts(
    config: RunConfig, student: Policy, task: Task, report: Callable[[str], None]
) -> None:
    """Says what would go wrong with prompts and answers, and refuses tokens that are not shared."""
    for problem in (task.train[0], task.test[0]):
        student.check_known(config.prompt.encode(student.tokenizer, problem))
    for remark in prompt_remarks(
        config.prompt,
        student.tokenizer,
        [*task.train, *task.test],
        ends=student.end_ids,
        cap=config.sampling.max_new_tokens,
        positions=position_limit(student.model.config.to_dict()),
    ):
        report(remark)


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
        Whether the run is over.

    Raises:
        ConfigError: `out` holds a run with other settings.
    """
    config = placed(config)
    run = RunDirectory(out)
    try:
        changed = _allowed_changes(run, config)
        if (finished := _finished(run, config)) is not None:
            observer.on_message(
                f"{out} is finished ({finished}), nothing was changed. Raise train.steps to go "
                "on after the last step, or choose another directory (--out)."
            )
            return True
        dated = _dated(config, recorded_date(out) or str(date.today()))
        if config.rounds_updates:
            observer.on_message(
                f"bfloat16 weights round updates of {config.optimizer.lr:g} away: set "
                "memory.master_weights = true"
            )
        with closing(build_parts(dated, observer.on_message)) as parts:
            trainer = build_trainer(parts, run, observer)
            for line in changed:
                observer.on_message(f"goes on with {line}")
            trainer.resume()
            info = run_info(config) | counts_record(parts.task)
            info |= {"date": dated.prompt.date, "end_tokens": _end_tokens(parts.student)}
            info |= {"attention": _attention(parts.student)}
            run.describe(to_toml(config), info, trainer.progress.step, changed)
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
    teacher_is_measured = evaluates and config.evaluation.teacher and parts.teachers is not None
    return Trainer(
        parts.student,
        parts.learner(),
        parts.collector(),
        run,
        settings=config.loop,
        evaluate=parts.evaluate_student if evaluates else None,
        evaluate_teacher=parts.evaluate_teacher if teacher_is_measured else None,
        search=config.search if config.searches else None,
        validate=parts.validator(),
        average=parts.average,
        lent_answers=parts.lent_answers,
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
        "device": config.device,
        "versions": {package: version(package) for package in packages},
    }


def _end_tokens(student: Policy) -> dict[str, int]:
    """The tokens at which the student's answers end, by name."""
    return {student.tokenizer.convert_ids_to_tokens(i): i for i in student.end_ids}


def _allowed_changes(run: RunDirectory, config: RunConfig) -> Sequence[str]:
    """How the settings differ from the run's, where that does not change the run.

    Raises:
        ConfigError: Something changes it, or the run's settings are not known.
    """
    path = run.path / "config.toml"
    if not path.is_file():
        if run.holds_records:
            raise ConfigError(
                f"{run.path} holds records or checkpoints but no config.toml, so their settings "
                "are not known: restore the file, or choose another directory (--out)"
            )
        return ()
    done = len(run.rows("metrics"))
    try:
        found = changes(path.read_text(encoding="utf-8"), config, steps_done=done)
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged ({error}): restore it, or choose another directory (--out)"
        ) from None
    if found.refused:
        lines = [f"{run.path} holds a run with other settings:", *found.refused]
        why = " ".join(["", *reasons(found.refused, config, done)])
        others = ["\nThese may change:", *found.told] if found.allowed else []
        raise ConfigError(
            "\n  ".join(lines)
            + "\nContinue with the old settings, or start a new run in another directory (--out)."
            + why
            + "\n  ".join(others)
        )
    return found.told


def _finished(run: RunDirectory, config: RunConfig) -> str | None:
    """Why the run is over, if its last checkpoint is there undamaged; None if it is not.

    A run that its rule ended before the first step has no checkpoint.
    """
    finished = run.finished()
    if finished is None:
        return None
    more_asked = finished["reason"] == LAST_STEP and finished["step"] < config.train.steps
    try:
        if finished["step"] > 0:
            verify_checkpoint(checkpoint_path(run.checkpoints, finished["step"]))
    except CheckpointError:
        return None
    return None if more_asked else f"after step {finished['step']}: {finished['reason']}"


def base_settings(config: RunConfig, report: Callable[[str], None]) -> ModelSettings:
    """The model that a run starts from; the tiny world brings one, which is made if need be."""
    if config.student is not None:
        return config.student
    assert isinstance(config.task, TinyWorld)  # RunConfig checked it
    return ModelSettings(path=str(world_models(config.task, report).base))


def started_from(config: RunConfig, directory: Path) -> RunConfig:
    """The same settings with another model in the place of the student, loaded in the same way.

    The directory may be a checkpoint of a student with adapters, which holds those alone.
    """
    original = config.student or ModelSettings(path=str(directory))
    if original.lora is not None and (directory / ADAPTER_CONFIG).is_file():
        lora = replace(original.lora, adapter=str(directory))
        student = replace(original, lora=lora)
    else:
        student = replace(original, path=str(directory), revision=None, lora=None)
    return config.model_copy(update={"student": student})


def _model_settings(
    config: RunConfig, report: Callable[[str], None]
) -> tuple[ModelSettings, dict[str, ModelSettings]]:
    """The student's settings, and the teachers' by name; none for an average of the student."""
    named = dict(config.teachers)
    if config.teacher is not None:
        named[""] = config.teacher
    brings_teacher = not (named or config.self_teacher or config.teacher_server)
    if isinstance(config.task, TinyWorld) and brings_teacher:
        named[""] = ModelSettings(path=str(world_models(config.task, report).teacher))
    return base_settings(config, report), named


def _known_teachers(policies: dict[str, Teacher], task: Task) -> Teachers:
    """The teachers, each problem's own among them.

    Raises:
        ConfigError: A problem names a teacher that is not there.
    """
    teachers = Teachers(policies=policies)
    for problem in (*task.train, *task.test):
        teachers.name_for(problem)
    return teachers


def _attention(policy: Policy) -> str:
    """The implementation that a model runs with."""
    return str(policy.model.config._attn_implementation)


def _policy(settings: ModelSettings, device: str, report: Callable[[str], None]) -> Policy:
    return Policy(load_model(settings, device, report), load_tokenizer(settings))


def _scoring_policy(
    config: RunConfig, settings: ModelSettings, report: Callable[[str], None]
) -> Policy:
    """A model that only scores: on its device, or there only while it does."""
    device = config.teacher_device or config.device
    if not config.memory.teacher_offload:
        return frozen(_policy(settings, device, report))
    return _offloaded(load_model(settings, report=report), load_tokenizer(settings), device)


def _offloaded(model: Any, tokenizer: Any, device: str, size: int | None = None) -> Policy:
    """A policy whose model is on the device while it scores, and on the host otherwise."""
    model.requires_grad_(False)
    during = Offloaded(model, device)
    return Policy(model, tokenizer, vocabulary_size=size, during=during)


def _reference(config: RunConfig, student: Policy, report: Callable[[str], None]) -> Policy | None:
    """What the objective moves away from or holds on to; the untrained student by default."""
    objective = config.objective
    if not (isinstance(objective, ExOPD) or getattr(objective, "needs_reference", False)):
        return None
    if config.reference is not None:
        return _scoring_policy(config, config.reference, report)
    lora = config.student.lora if config.student is not None else None
    size = student.vocabulary_size
    if lora is not None and lora.adapter is None:
        during = partial(without_adapters, student.model)
        return Policy(student.model, student.tokenizer, vocabulary_size=size, during=during)
    if config.memory.teacher_offload:
        copied = copy.deepcopy(student.model).cpu()
        return _offloaded(copied, student.tokenizer, config.teacher_device or config.device, size)
    return frozen_copy(student)
