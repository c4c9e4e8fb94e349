"""From settings to a run: the only place where everything meets."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import date
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from effopd.config.reading import raw_of, read, settings_of, to_toml
from effopd.data.dataset import DatasetTask
from effopd.data.problem import Verifier, is_path
from effopd.errors import CheckpointError, ConfigError, see
from effopd.models.checkpoints import verify_checkpoint
from effopd.records import Run, checkpoint_path, load_run, run_of_checkpoint
from effopd.rewards.functions import Reward, as_verifier
from effopd.rollouts.environment import Environment, Reply, as_environment
from effopd.training.build import Given, Parts, build_parts
from effopd.training.config import Config, load_config, make_config, placed
from effopd.training.continuing import changes, reasons
from effopd.training.engines import policy_of
from effopd.training.loop import LAST_STEP, Trainer
from effopd.training.observer import Observer, joined
from effopd.training.rows import counts_record
from effopd.training.run_directory import RunDirectory, recorded_date
from effopd.training.signals import StopRequest
from effopd.training.tracking import Tracking


def config_of_run(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of a run as it was trained, the date in its prompts included.

    Raises:
        ConfigError: The directory holds none.
    """
    if not (run / "config.toml").is_file():
        whole = run_of_checkpoint(run)
        hint = f"; it is a checkpoint of {whole}: give that" if whole else ""
        raise ConfigError(f"{run} is no run directory: config.toml is missing{hint}")
    config = load_config(run / "config.toml", overrides)
    return _dated(config, recorded_date(run))


def _dated(config: Config, day: str | None) -> Config:
    """The settings with the day that prompts are to have, unless they name one themselves."""
    named = {
        name: getattr(config, name) for name in ("prompt", "teacher_prompt", "reference_prompt")
    }
    dated = {name: replace(p, date=p.date or day) for name, p in named.items() if p is not None}
    others = {n: replace(p, date=p.date or day) for n, p in config.teacher_prompts.items()}
    return config.model_copy(update=dated | {"teacher_prompts": others})


def train(
    config: Config | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    model: Any = None,
    teacher: Any = None,
    problems: Any = None,
    reward: Reward | Verifier | str | None = None,
    environment: Environment | Reply | str | None = None,
    callbacks: Sequence[Observer] = (),
    stop: StopRequest | None = None,
) -> Run:
    """Trains, or continues a run that was interrupted; leaves a finished one alone.

    Prints nothing, installs no signal handler, and leaves PyTorch as many threads as before. What
    is given here takes the place of what the settings name, and is given again to continue: a run
    is continued exactly where models, problems, reward and environment are the same.

    Args:
        config: Settings, a mapping of them, or a recipe.
        out: Run directory.
        model: Student: a directory, a repository of the hub, a Hugging Face model, or a pair of
            model and tokenizer. A model object is trained in place, on its device.
        teacher: The same of the teacher; a model object is frozen.
        problems: Training problems: a path, a list of mappings or a `datasets.Dataset`, of which
            some are held out; or a mapping with "train" and "test".
        reward: A function (problem, answer text) -> number in [0, 1], a `Verifier`, or
            "package.module:function".
        environment: What replies to the student's turns: an `Environment`, a function (problem,
            answer text) -> reply or None, or "package.module:Class" (docs/turns.md). The same
            problem and answer have to get the same reply.
        callbacks: Told what goes on.
        stop: Asked at the end of every step; the run is saved when it is true.

    Returns:
        The records of the run, `finished` among them.

    Raises:
        ConfigError: A setting is wrong, or `out` holds the run of other settings.
        RunLockedError: Another process writes to `out`.
    """
    if isinstance(config, str | Path):
        config = load_config(config)
    elif not isinstance(config, Config):
        config = make_config(config)
    config, given = _with_objects(config, model, teacher, problems, reward, environment)
    config, observer = placed(config), joined(callbacks)
    run, threads = RunDirectory(Path(out)), torch.get_num_threads()
    try:
        tracking = Tracking(config.tracking, run.path, config.name, observer.on_message)
        changed = _allowed_changes(run, config)
        if (finished := _finished(run, config)) is not None:
            observer.on_message(
                f"{out} is finished ({finished}), nothing was changed. Raise train.steps to go "
                "on after the last step, or choose another directory (--out)."
            )
            return load_run(run.path)
        dated = _dated(config, recorded_date(run.path) or str(date.today()))
        if config.rounds_updates:
            observer.on_message(
                f"bfloat16 weights round updates of {config.optimizer.lr:g} away: set "
                "memory.master_weights = true"
            )
        with closing(build_parts(dated, observer.on_message, given)) as parts, tracking:
            trainer = build_trainer(parts, run, joined([*callbacks, tracking.observer]))
            for line in changed:
                observer.on_message(f"goes on with {line}")
            trainer.resume()
            student = parts.student
            name_of = student.tokenizer.convert_ids_to_tokens
            info = run_info(config) | counts_record(parts.task)
            info |= {"date": dated.prompt.date}
            info |= {"end_tokens": {name_of(token): token for token in student.end_ids}}
            info |= {"attention": str(student.model.config._attn_implementation)}
            run.describe(to_toml(config), info, trainer.progress.step, changed)
            tracking.start(settings_of(raw_of(config)))
            trainer.run(StopRequest() if stop is None else stop)
    except torch.OutOfMemoryError as error:
        error.add_note(
            f"The run fits no longer: `effopd doctor {run.path}/config.toml --gpu auto` names the "
            f"settings that make it fit; the same command goes on{see('out-of-memory')}"
        )
        raise
    finally:
        run.close()
        torch.set_num_threads(threads)
    return load_run(run.path)


def _with_objects(
    config: Config, model: Any, teacher: Any, problems: Any, reward: Any, environment: Any
) -> tuple[Config, Given]:
    """Settings that name what was given, and the objects among it."""
    raw, given = raw_of(config), Given()
    for name, source in (("student", model), ("teacher", teacher)):
        if source is None:
            continue
        if isinstance(source, str | Path):
            path = str(source)
        else:
            policy, is_student = policy_of(source), name == "student"
            if is_student and not any(p.requires_grad for p in policy.model.parameters()):
                raise ConfigError(
                    "the model has no parameter that trains: call model.requires_grad_() first, or "
                    "add adapters to it"
                )
            given = replace(given, student=policy) if is_student else replace(given, teacher=policy)
            path = str(policy.model.name_or_path) or "model in memory"
            device = str(policy.model.device)
            raw |= {"device": device} if is_student else {"teacher_device": device}
        raw[name] = (raw.get(name) or {}) | {"path": path}
    if reward is not None and not isinstance(reward, str):
        given = replace(given, verifier=as_verifier(reward))
        reward = _name_of(reward, "__main__:reward")
    if environment is not None:
        name = environment
        if not isinstance(environment, str):
            given = replace(given, environment=as_environment(environment))
            named = environment if callable(environment) else type(environment)
            name = _name_of(named, "__main__:environment")
        raw["environment"] = (raw.get("environment") or {}) | {"name": name}
    if problems is not None:
        task, loaded = _task_of(problems, raw["task"], reward or "math")
        raw["task"], given = task, replace(given, task=loaded)
    elif reward is not None and raw["task"]["type"] == "dataset":
        raw["task"] |= {"verifier": reward}
    elif reward is not None and given.verifier is None:
        raise ConfigError("reward takes a name only with problems of a data set")
    return Config(**raw), given


def _name_of(given: Any, otherwise: str) -> str:
    """How settings name an object by its module; what they cannot name has to be given again."""
    path = f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', '')}"
    return path if is_path(path) else otherwise


def _task_of(problems: Any, named: dict[str, Any], verifier: str) -> tuple[dict[str, Any], Any]:
    """Settings of a task, and its problems where they are in memory."""
    parts = dict(problems) if isinstance(problems, Mapping) else {"train": problems}
    if not {"train"} <= parts.keys() <= {"train", "test"}:
        raise ConfigError(f"problems has the parts {sorted(parts)}, expected train and test")
    is_dataset = named["type"] == "dataset"
    kept: dict[str, Any] = named if is_dataset else {"type": "dataset", "verifier": verifier}
    settings = {key: value for key, value in kept.items() if key != "train"}
    rows: dict[str, Any] = {}
    for name, source in parts.items():
        fields: dict[str, Any] = dict(kept.get(name) or kept.get("train") or {})
        if isinstance(source, str | Path):
            settings[name] = fields | {"path": str(source)}
            continue
        rows[name] = list(source)
        digest = blake2b(repr(rows[name]).encode(), digest_size=8).hexdigest()
        settings[name] = fields | {"path": f"{len(rows[name])} problems in memory ({digest})"}
    if settings.get("test") is None and "train" in rows:
        settings["test_size"] = min(settings.get("test_size", 256), max(1, len(rows["train"]) // 5))
    if not rows:
        return settings, None
    task = read(DatasetTask, settings)
    return settings, task.of_rows(rows.get("train"), rows.get("test"))


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
        batch_rollouts=parts.batch_rollouts,
        observer=observer,
    )


def run_info(config: Config) -> dict[str, Any]:
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


def _allowed_changes(run: RunDirectory, config: Config) -> Sequence[str]:
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
    hint = "".join(f" {why}" for why in reasons(found.refused, config, done))
    if found.allowed:
        hint += "\n  ".join(["\nThese may change:", *found.told])
    run.refuse(found.refused, hint)
    return found.told


def _finished(run: RunDirectory, config: Config) -> str | None:
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
