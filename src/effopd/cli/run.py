"""What `effopd train` and `effopd eval` do."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from effopd.cli.progress import progress_lines
from effopd.config.reading import to_toml
from effopd.doctor.smoke import smoke_run
from effopd.errors import CheckpointError, ConfigError
from effopd.models.checkpoints import checkpoint_path, newest_good, verify_checkpoint
from effopd.records import display_text
from effopd.training.build import build_parts, started_from
from effopd.training.config import Config, load_config
from effopd.training.run import config_of_run, train
from effopd.training.signals import stop_on_signals
from effopd.training.state import load_tensors, state_file


def run_recipe(
    recipe: Path, overrides: Sequence[str], out: Path, *, print_config: bool = False
) -> bool:
    """Trains as `recipe` says into `out`, or only prints the resolved settings."""
    config = smoke_run(load_config(recipe, overrides), recipe)
    if print_config:
        print(to_toml(config), end="")
        return True
    command = ["effopd", "train", str(recipe), *overrides, "--out", str(out)]
    return run_config(config, out, resume_hint=shlex.join(command))


def run_config(config: Config, out: Path, *, resume_hint: str) -> bool:
    """Trains with progress on standard output; says how to resume when stopped."""
    transformers_logging.disable_progress_bar()
    with progress_lines(config.name, config.train.steps) as lines, stop_on_signals() as stop:
        finished = train(config, out, callbacks=[lines.observer], stop=stop).finished
    if not finished:
        print(f"stopped and saved; resume with: {resume_hint}")
    return finished


def evaluate_checkpoint(
    run: Path, step: int | None, problems: int | None, overrides: Sequence[str] = ()
) -> None:
    """Evaluates one checkpoint of a run and prints the result."""
    transformers_logging.disable_progress_bar()
    asked = [] if problems is None else [f"evaluation.problems={problems}"]
    config = config_of_run(run, [*overrides, *asked])
    if config.evaluation.problems < 1:
        raise ConfigError("there are no test problems to evaluate on: give --problems")
    directory = _checkpoint(run / "checkpoints", step)
    with closing(build_parts(started_from(config, directory), _say)) as parts:
        if parts.average is not None:
            parts.average.load_state(load_tensors(state_file(directory, "average")))
        row = parts.evaluate_student().row()
    print(f"{directory}")
    for name, value in row.items():
        print(f"  {name:16} {_shown(value)}")


def _say(text: str) -> None:
    """One line about names and messages that a model or a file brought along."""
    print(display_text(text))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return format(value, ".4g")


def _checkpoint(parent: Path, step: int | None) -> Path:
    if step is not None:
        directory = checkpoint_path(parent, step)
        verify_checkpoint(directory)
        return directory
    found, problems = newest_good(parent)
    for problem in problems:
        _say(f"skipping a damaged checkpoint: {problem}")
    if found is None:
        raise CheckpointError(f"{parent} holds no undamaged checkpoint: train first")
    return found
