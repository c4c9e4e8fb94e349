"""`effopd.analyze`: measures a series of checkpoints, writes tables and a page; goes on."""

import difflib
import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from effopd.analysis.behavior_study import behavior_recipe, measure_behavior
from effopd.analysis.measurements import (
    MEASUREMENTS,
    CheckpointSeries,
    Measurement,
    Records,
    Unit,
)
from effopd.analysis.series import Source, find_inputs
from effopd.analysis.subspaces import DIRECTIONS
from effopd.analysis.tables import TOP
from effopd.errors import ConfigError
from effopd.models.loading import real_device
from effopd.models.updates import say_left_out
from effopd.progress import SILENT, Display
from effopd.records import SCHEMA, Row, read_json, write_json_atomic
from effopd.reports.analysis import Analysis, load_analysis
from effopd.reports.analysis_page import write_analysis, write_analysis_pngs
from effopd.reports.table_files import write_table
from effopd.workspace import Journal, Workspace

WHAT = (*MEASUREMENTS, "behavior")
"""Everything that can be asked for, in the order in which it is measured."""
MOST_WORKERS = 4
"""Workers by default, where there are as many cores: each holds two tensors in memory."""


def analyze(
    base: Source,
    checkpoints: Source | Sequence[Source] = (),
    what: str | Sequence[str] | None = None,
    *,
    out: Source | None = None,
    final: Source | None = None,
    recipe: Source | None = None,
    device: str = "auto",
    workers: int | None = None,
    display: Display = SILENT,
) -> Analysis:
    """Measures what training changed: norms, spectra, directions, trajectories and behavior.

    A source is a model directory, a LoRA adapter of the base, a run of `effopd train`, or a
    repository of the Hugging Face Hub. Tensors are read one at a time.

    Args:
        base: The model before training; of a run its base, and its checkpoints are the series.
        checkpoints: The series, or a single one.
        what: One or more of "norms", "spectra", "subspaces", "trajectories" and "behavior"; None
            for all that can be measured.
        out: Directory of tables, figures and page. What it holds already is not measured again.
            None keeps nothing on disk.
        final: What the series is compared with; None for its last checkpoint.
        recipe: Problems and teacher for "behavior"; None for those of the run.
        device: Where spectra and directions are computed, and models run.
        workers: Tensors measured at a time; None for one per core, 4 at most.
        display: Receives progress.

    Returns:
        The tables of everything that `out` holds now.

    Raises:
        ConfigError: An input is missing or cannot be used, or `out` holds the analysis of others.
        ParameterMismatchError: A checkpoint is no update of the base.
        NonFiniteError: A weight is NaN or infinite; the message names checkpoint and tensor.
        RunLockedError: Another process writes to `out`.
    """
    asked, device = parse_what(what), real_device(device)
    given = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    inputs = find_inputs(base, given, final, display.say)
    config = behavior_recipe(asked, inputs.run, recipe, device, display.say)
    names = asked or [name for name in WHAT if name != "behavior" or config is not None]
    series = CheckpointSeries(inputs, device)
    labels = [checkpoint.label for checkpoint in series.checkpoints]
    shown = ", ".join(labels if len(labels) <= 4 else [*labels[:2], "...", labels[-1]])
    display.say(f"{len(labels)} checkpoints of {inputs.base}: {shown}")
    for label, update in zip(labels, series.updates, strict=True):
        say_left_out(update, display.say, f"{label}: ")
    if not series.draws_tsne and not {"trajectories", "behavior"}.isdisjoint(names):
        display.say("no t-SNE pictures: scikit-learn is missing (pip install 'effopd[analysis]')")
    words = ["effopd", "analyze", str(base), *map(str, given)]
    options = {"final": final, "what": ",".join(asked) or None, "recipe": recipe, "out": out}
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    info: Row = {
        **inputs.record(),
        "options": {"directions": DIRECTIONS, "top": TOP},
        "what": names,
        "command": shlex.join(words),
        "device": device,
        "versions": {name: version(name) for name in ("effopd", "torch", "numpy")},
        "not_compared": {
            each.label: dict(update.left_out)
            for each, update in zip(series.checkpoints, series.updates, strict=True)
            if update.left_out
        },
    }
    kept = tempfile.TemporaryDirectory() if out is None else nullcontext(out)
    with kept as directory, Workspace(Path(directory), "analysis") as workspace:
        path = workspace.path
        _describe(workspace, info)
        for name in names:
            if name in MEASUREMENTS:
                _measure(path, series, name, workers, display)
        if config is not None:
            measure_behavior(path, inputs, config, display, draws_tsne=series.draws_tsne)
        found = load_analysis(path)
        if out is not None:
            write_analysis(found, path / "report.html")
            write_analysis_pngs(found, path / "figures")
    return found if out is not None else replace(found, directory=None)


def parse_what(what: str | Sequence[str] | None) -> list[str]:
    """Names of `WHAT` in their order, of a sequence or of text with commas; none for None."""
    if what is None:
        return []
    given = what.split(",") if isinstance(what, str) else what
    names = [name.strip() for name in given if name.strip()]
    for name in names:
        if name not in WHAT:
            close = difflib.get_close_matches(name, WHAT, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"what: {name!r} is not among {', '.join(WHAT)}{hint}")
    if not names:
        raise ConfigError(f"what is empty: give one or more of {', '.join(WHAT)}")
    return [name for name in WHAT if name in names]


def _describe(workspace: Workspace, info: Row) -> None:
    """Writes `analysis.json`, unless the directory is of other inputs."""
    path = workspace.path / "analysis.json"
    if not path.exists() and any(workspace.path.glob("*.json*")):
        raise ConfigError(f"{workspace.path} holds something else: choose another one (--out)")
    now = json.loads(json.dumps({"schema": SCHEMA, **info}))  # tuples become lists
    if path.exists():
        before = read_json(path)
        workspace.refuse(_changes(before, now))
        now["what"] = list(dict.fromkeys([*before["what"], *now["what"]]))
    write_json_atomic(path, now)


def _changes(before: Row, now: Row) -> Iterator[str]:
    """What may not change while an analysis goes on, and did, in words."""
    if before["base"] != now["base"]:
        yield f"its base is {before['base']['path']} as it was, now {now['base']['path']}"
    old, new = ([each["label"] for each in info["checkpoints"]] for info in (before, now))
    if old != new:
        yield f"its checkpoints are {', '.join(old)}, now {', '.join(new)}"
    for was, has in zip(before["checkpoints"], now["checkpoints"], strict=False):
        if old == new and was != has:
            yield f"checkpoint {was['label']} in {was['path']} is not what it was"
    if before["final"] != now["final"]:
        yield f"its final checkpoint is {before['final']['path']}, now {now['final']['path']}"
    if before["options"] != now["options"]:
        yield f"its options are {before['options']}, now {now['options']}"


def _measure(
    out: Path, series: CheckpointSeries, name: str, workers: int | None, display: Display
) -> None:
    """Measures what is missing of one of `MEASUREMENTS`, and writes its tables."""
    measurement = MEASUREMENTS[name]
    units = measurement.units(series)
    journal: Journal[Unit]
    path = out / "rows" / f"{name}.jsonl"
    with Journal(path, lambda row: (row["place"], row["checkpoint"])) as journal:
        stale = [unit for unit, row in journal.rows.items() if "found" not in row]
        for unit in stale:
            del journal.rows[unit]
        if stale:
            display.say(f"{name}: {len(stale)} rows of an older format are measured again")
        waiting = [unit for unit in units if unit not in journal.rows]
        with display.progress(name, len(units), done=len(units) - len(waiting)) as progress:
            for (module, checkpoint), found in _finishing(series, measurement, waiting, workers):
                journal.add({"place": module, "checkpoint": checkpoint, "found": found})
                progress.advance()
        records: Records = {unit: journal.rows[unit]["found"] for unit in units}
    tables = measurement.tabulate(series, records)
    for table, rows in tables.items():
        write_table(out / "tables", table, rows)
    if "never_moved" in tables:
        display.say(f"{len(tables['never_moved'])} of {len(series.modules)} modules never moved")


def _finishing(
    series: CheckpointSeries, measurement: Measurement, units: Sequence[Unit], workers: int | None
) -> Iterator[tuple[Unit, Row]]:
    """Units as they finish, in threads that share the cores; the first failure ends them all."""
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    workers = workers or min(cores, MOST_WORKERS)
    each = max(1, min(threads, cores // workers))
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(each))
    try:
        running = {pool.submit(measurement.measure, series, unit): unit for unit in units}
        for future in as_completed(running):
            yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
