"""Which directories an analysis looks at, and whether they are what they were."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.directory import find_model
from effopd.models.updates import Update, open_update
from effopd.records import Row, list_checkpoints
from effopd.training.build import base_settings
from effopd.training.config import load_config

RESERVED = {"base", "teacher"}
"""Labels that tables use for models that are no checkpoint of the series."""
_STEP = re.compile(r"(?:^|[-_.])(?:checkpoint|ckpt|steps?|iter|iteration)[-_.]?(\d+)$", re.I)
_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")

Source = str | Path
"""A model directory, an adapter, a run, or the name of a repository on the Hugging Face Hub."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model directory of the series: its unique label, its step if its name has one."""

    label: str
    step: int | None
    directory: Path

    @property
    def columns(self) -> Row:
        """First columns of a table that has a row for each checkpoint."""
        return {"checkpoint": self.label, "step": self.step}

    def record(self) -> Row:
        """Identity: where it is, and size and time of change of its files."""
        return {"label": self.label, "step": self.step, **_identity(self.directory)}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A base, checkpoints in the order of training, what they are compared with, and their run."""

    base: Path
    checkpoints: tuple[Checkpoint, ...]
    final: Checkpoint
    run: Path | None = None

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
    base: Source,
    checkpoints: Sequence[Source],
    final: Source | None,
    report: Callable[[str], None],
) -> Inputs:
    """Resolves run directories, names the checkpoints, and puts them in the order of training."""
    base_at, *given = (find_model(source) for source in (base, *checkpoints))
    runs = [path for path in (base_at, *given) if is_run(path)]
    if len(runs) > 1:
        raise ConfigError(
            f"{len(runs)} runs were given, {runs[0]} and {runs[1]}: an analysis follows one "
            "series; analyze each run with its own --out"
        )
    found: list[tuple[Path, Path]] = []
    for source, path in zip((base, *checkpoints), (base_at, *given), strict=True):
        if is_run(path):
            found += [(saved.resolve(), saved) for saved in _saved(path)]
        elif source is not base:
            found.append((_name(source, path), path))
    if not found:
        raise ConfigError("no checkpoint was given: name one or more after the base")
    series = _named(found)
    # In the order of their steps where every name has one, else as they were given.
    steps = [checkpoint.step for checkpoint in series if checkpoint.step is not None]
    if len(steps) == len(series):
        for step in steps:
            if steps.count(step) > 1:
                names = [checkpoint.label for checkpoint in series if checkpoint.step == step]
                raise ConfigError(
                    f"{' and '.join(names)} are both of step {step}: an analysis follows one "
                    "series; analyze each with its own --out"
                )
        if steps != sorted(steps):
            report("checkpoints are taken in the order of their steps")
        series.sort(key=lambda checkpoint: checkpoint.step or 0)
    if is_run(base_at):  # the model it started from
        base_at = find_model(base_settings(load_config(base_at / "config.toml"), report).path)
    return Inputs(
        base=base_at,
        checkpoints=tuple(series),
        final=series[-1] if final is None else _final(final, series),
        run=runs[0] if runs else None,
    )


def is_run(directory: Path) -> bool:
    """Whether `effopd train` wrote the directory."""
    return (directory / "config.toml").is_file() and (directory / "checkpoints").is_dir()


def _saved(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    found = list_checkpoints(run / "checkpoints")[::-1]
    if not found:
        raise ConfigError(f"{run} holds no checkpoint yet: train first")
    return found


def _named(found: Sequence[tuple[Path, Path]]) -> list[Checkpoint]:
    """Labels are as many trailing parts of the names as it takes to tell them apart."""
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} was given twice")
    for depth in count(1):
        labels = ["/".join(name.parts[-depth:]) for name in names]
        if len({*labels, *RESERVED}) == len(labels) + len(RESERVED):
            break
        if depth > max(len(name.parts) for name in names):
            raise ConfigError(f"no checkpoint may be called {' or '.join(sorted(RESERVED))}")
    return [
        Checkpoint(label=label, step=_step(name), directory=directory)
        for label, (name, directory) in zip(labels, found, strict=True)
    ]


def _step(path: Path) -> int | None:
    """The number in a name such as `step-00008`, `checkpoint-500` or `global_step_8/actor`."""
    found = (_STEP.search(part) for part in reversed(path.parts[-3:]))
    return next((int(match[1]) for match in found if match), None)


def _name(source: Source, path: Path) -> Path:
    """The path of a directory; of a repository its name, and not its place in the cache."""
    return path.resolve() if path == Path(source).expanduser() else Path(source)


def _final(source: Source, series: Sequence[Checkpoint]) -> Checkpoint:
    """One of the series, or a directory of its own."""
    found = find_model(source)
    directory = _saved(found)[-1] if is_run(found) else found
    for checkpoint in series:
        if checkpoint.directory.resolve() == directory.resolve():
            return checkpoint
    name = directory.resolve() if directory is not found else _name(source, found)
    return Checkpoint(label=f"final ({name.name})", step=_step(name), directory=directory)


def _identity(directory: Path) -> Row:
    found = sorted({path for pattern in _FILES for path in directory.glob(pattern)})
    stats = [(path.name, path.stat()) for path in found]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return {"path": str(directory.resolve()), "files": files}
