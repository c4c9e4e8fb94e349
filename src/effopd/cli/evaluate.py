"""What `effopd eval` prints."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effopd.errors import CheckpointError, ConfigError
from effopd.evaluation.benchmarks.results import comparison_text
from effopd.evaluation.benchmarks.run import SELF_CHECK, evaluate
from effopd.models.checkpoints import newest_good, verify_checkpoint
from effopd.progress import Terminal
from effopd.records import checkpoint_path, checkpoint_step, list_checkpoints, write_json_atomic
from effopd.training.build import build_parts, started_from
from effopd.training.run import config_of_run
from effopd.training.signals import stop_on_signals
from effopd.training.state import load_tensors


def evaluate_benchmarks(
    target: str | None,
    settings: Sequence[str],
    *,
    bench: str,
    samples: int,
    files: Sequence[str],
    out: Path | None,
    run: Path | None,
    every: int,
    limit: int | None,
    against: Path | None,
    self_check: bool,
) -> bool:
    """Evaluates a model, or the checkpoints of a run; False when asked to stop."""
    if target is not None and "=" in target and (run or self_check):
        settings = [target, *settings]  # it is no model
        target = None
    if (target is not None) + (run is not None) + self_check != 1:
        raise ConfigError("give one of MODEL, --run and --self-check")
    pairs = [text.partition("=") for text in files]
    if wrong := [name for name, _, path in pairs if not (name and path)]:
        raise ConfigError(f"--data must be NAME=FILE, got {wrong[0]!r}")
    if run is None:
        model = target or SELF_CHECK
        models = {model: out or Path("runs") / f"eval-{Path(model).name}"}
    else:
        parent = out or run / "benchmarks"
        models = {str(path): parent / path.name for path in checkpoints_of(run, every)}
    terminal = Terminal()
    with stop_on_signals() as stop:
        for model, directory in models.items():
            if len(models) > 1:
                terminal.say(f"{Path(model).name}:")
            found = evaluate(
                model, bench.split(","), samples, out=directory,
                data={name: path for name, _, path in pairs}, limit=limit, settings=settings,
                against=against, display=terminal, stop=stop,
            )  # fmt: skip
            if not found.finished:
                return False
            terminal.say(found.text())
            if against is not None:
                compared = found.compare(against)
                rows = {name: asdict(each) for name, each in compared.items()}
                path = directory / f"against-{against.resolve().name}.json"
                write_json_atomic(path, {"schema": 1, "comparisons": rows})
                terminal.say(comparison_text(compared, str(against)))
    return True


def checkpoints_of(run: Path, every: int) -> list[Path]:
    """The checkpoints of a run at multiples of so many steps, all of them undamaged."""
    config_of_run(run)  # refuses what is no run
    found = [
        path
        for path in reversed(list_checkpoints(run / "checkpoints"))
        if checkpoint_step(path) % every == 0
    ]
    if not found:
        raise ConfigError(f"{run} has no checkpoint at a multiple of {every} steps")
    for path in found:
        verify_checkpoint(path)
    return found


def evaluate_checkpoint(
    run: Path, step: int | None, problems: int | None, overrides: Sequence[str] = ()
) -> None:
    """Evaluates one checkpoint of a run on its test problems and prints the result."""
    terminal = Terminal()
    asked = [] if problems is None else [f"evaluation.problems={problems}"]
    config = config_of_run(run, [*overrides, *asked])
    if config.evaluation.problems < 1:
        raise ConfigError("there are no test problems to evaluate on: give --problems")
    if step is not None:
        directory = checkpoint_path(run / "checkpoints", step)
        verify_checkpoint(directory)
    else:
        newest, damaged = newest_good(run / "checkpoints")
        for problem in damaged:
            terminal.say(f"skipping a damaged checkpoint: {problem}")
        if newest is None:
            raise CheckpointError(
                f"{run / 'checkpoints'} holds no undamaged checkpoint: train first"
            )
        directory = newest
    with closing(build_parts(started_from(config, directory), terminal.say)) as parts:
        if parts.average is not None:
            parts.average.load_state(load_tensors(directory, "average"))
        row = parts.evaluate_student().row()
    terminal.say(f"{directory}")
    for name, value in row.items():
        terminal.say(f"  {name:16} {_shown(value)}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return format(value, ".4g")
