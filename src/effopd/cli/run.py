"""What `effopd train` prints."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from effopd.cli.progress import progress_lines
from effopd.config.reading import to_toml
from effopd.doctor.smoke import smoke_run
from effopd.training.config import Config, load_config
from effopd.training.run import train
from effopd.training.signals import stop_on_signals


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
