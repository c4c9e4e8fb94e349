"""Which directories `effopd analyze` looks at, and whether they are what they were."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.checkpoints import list_checkpoints
from effopd.models.directory import no_such_directory
from effopd.models.updates import Update, open_update
from effopd.records import Row
from effopd.training.build import base_settings
from effopd.training.config import load_config

RESERVED = {"base", "teacher"}
"""Labels that tables use for models that are no checkpoint of the series."""
_STEP = re.compile(r"(?:^|[-_.])(?:checkpoint|ckpt|steps?|iter|iteration)[-_.]?(\d+)$", re.I)
_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model directory of the series.

    Attributes:
        label: Its name in tables, different from the others'.
        step: Optimizer updates done, from its name; None where the name says nothing.
        directory: With weights, or an adapter of the base.
    """

    label: str
    step: int | None
    directory: Path

    def record(self) -> Row:
        """Identity: where it is, and size and time of change of its files."""
        return {"label": self.label, "step": self.step, **_identity(self.directory)}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A base and its checkpoints in the order of training.

    Attributes:
        base: Model directory before training.
        checkpoints: The series, at least one.
        final: What the series is compared with; mostly its last checkpoint.
        run: The run directory that the series is from, if it is from one.
    """

    base: Path
    checkpoints: tuple[Checkpoint, ...]
    final: Checkpoint
    run: Path | None = None

    def __post_init__(self) -> None:
        """Refuses a series that tables could not tell apart."""
        labels = [checkpoint.label for checkpoint in self.checkpoints]
        if not labels or len({*labels, *RESERVED}) < len(labels) + len(RESERVED):
            raise ConfigError(
                f"checkpoints {labels}: expected at least one, with labels that differ from one "
                f"another and from {' and '.join(sorted(RESERVED))}"
            )

    def record(self) -> Row:
        """Identity of everything that is read."""
        return {
            "base": _identity(self.base),
            "checkpoints": [checkpoint.record() for checkpoint in self.checkpoints],
            "final": self.final.record(),
        }

    def updates(self) -> list[Update]:
        """Update of every checkpoint, then that of the final one, opened and not yet read."""
        found = []
        for checkpoint in (*self.checkpoints, self.final):
            try:
                found.append(open_update(self.base, checkpoint.directory))
            except ParameterMismatchError as error:
                raise ParameterMismatchError(f"checkpoint {checkpoint.label}: {error}") from None
        return found


def find_inputs(
    base: Path, checkpoints: Sequence[Path], final: Path | None, report: Callable[[str], None]
) -> Inputs:
    """Resolves run directories, names the checkpoints, and puts them in the order of training."""
    base, *checkpoints = (path.expanduser() for path in (base, *checkpoints))
    final = final.expanduser() if final else None
    for path in (base, *checkpoints, *([final] if final else [])):
        if not path.is_dir():
            raise ConfigError(
                f"{no_such_directory(path, 'directory')}. Give a model directory, an adapter or a "
                "run; a model of the Hugging Face Hub has to be downloaded first"
            )
    runs = [path for path in (base, *checkpoints) if is_run(path)]
    if len(runs) > 1:
        raise ConfigError(
            f"{len(runs)} runs were given, {runs[0]} and {runs[1]}: an analysis follows one "
            "series; analyze each run with its own --out"
        )
    given = ([base] if is_run(base) else []) + list(checkpoints)
    directories = [found for path in given for found in _expanded(path)]
    if not directories:
        raise ConfigError("no checkpoint was given: name one or more after the base")
    series = in_order(_named(directories), report)
    return Inputs(
        base=run_base(base, report) if is_run(base) else base,
        checkpoints=series,
        final=series[-1] if final is None else _final(final, series),
        run=runs[0] if runs else None,
    )


def is_run(directory: Path) -> bool:
    """Whether `effopd train` wrote the directory."""
    return (directory / "config.toml").is_file() and (directory / "checkpoints").is_dir()


def run_base(run: Path, report: Callable[[str], None]) -> Path:
    """The model that a run started from."""
    base = Path(base_settings(load_config(run / "config.toml"), report).path)
    if not base.is_dir():
        raise ConfigError(
            f"{run} started from {base}, which is no directory here: download it and give it as "
            f"BASE, before {run}"
        )
    return base


def in_order(series: Sequence[Checkpoint], report: Callable[[str], None]) -> tuple[Checkpoint, ...]:
    """The checkpoints by step where every name has one, else as they were given."""
    steps = [checkpoint.step for checkpoint in series if checkpoint.step is not None]
    if len(steps) < len(series):
        return tuple(series)
    if len(set(steps)) < len(steps):
        twice = next(step for step in steps if steps.count(step) > 1)
        names = [checkpoint.label for checkpoint in series if checkpoint.step == twice]
        raise ConfigError(
            f"{' and '.join(names)} are both of step {twice}: an analysis follows one series; "
            "analyze each with its own --out"
        )
    if steps != sorted(steps):
        report("checkpoints are taken in the order of their steps")
    return tuple(sorted(series, key=lambda checkpoint: checkpoint.step or 0))


def _expanded(path: Path) -> list[Path]:
    """A run's checkpoints, oldest first, or the directory itself."""
    if not is_run(path):
        return [path]
    found = list_checkpoints(path / "checkpoints")[::-1]
    if not found:
        raise ConfigError(f"{path} holds no checkpoint yet: train first")
    return found


def _named(directories: Sequence[Path]) -> list[Checkpoint]:
    """Labels are as many trailing parts of the paths as it takes to tell them apart."""
    paths = [directory.resolve() for directory in directories]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path} was given twice")
    for depth in count(1):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len({*labels, *RESERVED}) == len(labels) + len(RESERVED):
            break
    return [
        Checkpoint(label=label, step=_step(path), directory=directory)
        for label, path, directory in zip(labels, paths, directories, strict=True)
    ]


def _step(path: Path) -> int | None:
    """The number in a name such as `step-00008`, `checkpoint-500` or `global_step_8/actor`."""
    found = (_STEP.search(part) for part in reversed(path.parts[-3:]))
    return next((int(match[1]) for match in found if match), None)


def _final(path: Path, series: Sequence[Checkpoint]) -> Checkpoint:
    """One of the series, or a directory of its own."""
    directory = _expanded(path)[-1]
    for checkpoint in series:
        if checkpoint.directory.resolve() == directory.resolve():
            return checkpoint
    label = f"final ({directory.resolve().name})"
    return Checkpoint(label=label, step=_step(directory.resolve()), directory=directory)


def _identity(directory: Path) -> Row:
    found = sorted({path for pattern in _FILES for path in directory.glob(pattern)})
    stats = [(path.name, path.stat()) for path in found]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return {"path": str(directory.resolve()), "files": files}
