"""`effopd.compare`: the runs of a plan, in parallel, and the tables they add up to."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from effopd.comparison.plan import Plan, PlannedCell, load_plan, parent_of
from effopd.comparison.pool import Job, Outcome, Pool
from effopd.errors import ConfigError, RunLockedError
from effopd.progress import SILENT, Display, Progress
from effopd.records import MANIFEST, checkpoint_path, load_run, write_json_atomic, write_text_atomic
from effopd.training.signals import StopRequest
from effopd.workspace import Workspace

if TYPE_CHECKING:
    from effopd.data.dataset import DatasetTask
    from effopd.data.smollm2 import World
    from effopd.training.config import Config

MOST_LISTED = 12
"""Runs named one by one in a message."""
ORPHANS_S = 30.0
"""How long the processes of a comparison that was killed are waited for."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison came to.

    Attributes:
        directory: Runs, `summary.json`, `table.md`, `report.html` and figures.
        ending: "finished"; "stopped" when asked to, and the same call goes on; "failed" if a run
            failed, and the tables hold the others.
        failed: Name of a failed run -> why.
        table: Each method at its best learning rate, as text; "" before the end.
    """

    directory: Path
    ending: Literal["finished", "stopped", "failed"]
    failed: Mapping[str, str]
    table: str = ""

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`: the `rows`, and the tables made of them; empty before the end."""
        path = self.directory / "summary.json"
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a method, world and learning rate."""
        return list(self.summary.get("rows", []))

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`."""
        from pandas import DataFrame

        return DataFrame(self.rows)


def directory_of(plan: Plan, *, quick: bool = False) -> Path:
    """Where runs and results go by default; a quick comparison has a directory of its own."""
    return Path("runs") / f"compare-{plan.name}{'-quick' if quick else ''}"


def compare(
    plan: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    quick: bool = False,
    display: Display = SILENT,
    stop: StopRequest | None = None,
) -> Comparison:
    """Trains every method of a plan in every world, then writes tables, a page and figures.

    Runs that are finished are not trained again. The runs are trained in new processes: a script
    that calls this does so below `if __name__ == "__main__":`.

    Args:
        plan: A TOML file, or its content.
        out: Where runs and results go; `runs/compare-NAME` by default.
        workers: Most processes at a time; one per core by default.
        quick: Apply the plan's `[quick]` section.
        display: Receives progress.
        stop: When it becomes true, runs are saved and the comparison ends.

    Raises:
        ConfigError: The plan, or the settings of a run, are wrong, or not those of a run that is
            already there. Nothing was started then.
    """
    read = load_plan(plan, quick=quick)
    name = "PLAN.toml" if isinstance(plan, Mapping) else str(plan)
    out, cells = Path(out) if out else directory_of(read, quick=quick), read.cells()
    words = ["effopd", "compare", name, "--out", str(out)]
    command = shlex.join(words + ["--quick"] * quick)
    with Workspace(out, "comparison"):
        ledger = Ledger(out)
        failed: list[Outcome] = []
        if not all(map(ledger.is_settled, cells)):
            configs = _resolve(cells, out, ledger)
            left = [cell for cell in cells if not is_finished(out / cell.name)]
            _outlive_orphans(out, left)
            most = min(workers or os.cpu_count() or 1, len(left) or 1)
            asked = StopRequest() if stop is None else stop  # false until it is asked
            outcomes = _train(out, left, configs, ledger, most, display, asked)
            failed = [outcome for outcome in outcomes if outcome.ending == "failed"]
            if len(outcomes) < len(left) or any(o.ending == "stopped" for o in outcomes):
                return Comparison(directory=out, ending="stopped", failed={})
        table = _write_results(command, read, out, ledger.known["workers"])
    return Comparison(
        directory=out,
        ending="failed" if failed else "finished",
        failed={outcome.job.name: outcome.error for outcome in failed},
        table=table,
    )


def is_finished(directory: Path) -> bool:
    """Whether a run says that it is over and has its last checkpoint, which is not verified."""
    try:
        step = json.loads((directory / "run.json").read_bytes())["finished"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return step == 0 or (checkpoint_path(directory / "checkpoints", step) / MANIFEST).is_file()


class Ledger:
    """Settings that the runs of a comparison were checked under, and how many ran at a time.

    A finished run whose settings in the plan are those of the ledger, and whose `config.toml` is
    the one they resolved to, needs no second look.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._path = out, out / "cells.json"
        self.known: dict[str, Any] = {"version": version("effopd"), "cells": {}, "workers": []}
        try:
            known = json.loads(self._path.read_bytes())
            self.known["workers"] = known["workers"]
            if known["version"] == version("effopd"):
                self.known["cells"] = known["cells"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # missing or damaged: every run is checked in full, and it is written anew

    def is_settled(self, cell: PlannedCell) -> bool:
        """Whether a run is finished under the settings that the plan gives it."""
        entry = self.known["cells"].get(cell.name)
        directory = self._out / cell.name
        if entry is None or entry["settings"] != cell.settings or not is_finished(directory):
            return False
        written = (directory / "config.toml").read_bytes()
        return bool(entry["config"] == sha256(written).hexdigest())

    def enter(self, cells: Sequence[PlannedCell], resolved: Mapping[str, str]) -> None:
        """Stores the settings of all runs and the `config.toml` that each resolves to."""
        for cell in cells:
            config = sha256(resolved[cell.name].encode()).hexdigest()
            self.known["cells"][cell.name] = {"settings": cell.settings, "config": config}
        self._write()

    def count_workers(self, workers: int) -> None:
        """Remembers that runs were trained by `workers` processes at a time."""
        self.known["workers"] = sorted({*self.known["workers"], workers})
        self._write()

    def _write(self) -> None:
        write_json_atomic(self._path, {"schema": 1, **self.known})


def _resolve(cells: Sequence[PlannedCell], out: Path, ledger: Ledger) -> "dict[str, Config]":
    """Checked settings by run, all of them those of the runs that are already there."""
    from effopd.config.reading import to_toml
    from effopd.training.config import make_config, placed
    from effopd.training.continuing import changes

    configs, mistakes = {}, dict[str, list[str]]()
    for cell in cells:
        try:
            configs[cell.name] = placed(make_config(cell.settings))
        except ConfigError as error:
            mistakes.setdefault(str(error), []).append(cell.name)
    if mistakes:
        raise ConfigError(_listed(mistakes))
    changed: dict[str, list[str]] = {}
    for name, config in configs.items():
        path = out / name / "config.toml"
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            lines = changes(text, config, steps_done=0).of_comparisons
        except ValueError as error:
            lines = [f"config.toml is damaged ({error}): restore it, or remove the run"]
        if lines:
            changed.setdefault("\n".join(lines), []).append(name)
    if changed:
        raise ConfigError(
            f"{out} holds runs with other settings than the plan:\n{_listed(changed)}\n"
            "Go back to the old plan, or start in another directory (--out)."
        )
    ledger.enter(cells, {name: to_toml(config) for name, config in configs.items()})
    return configs


def _outlive_orphans(out: Path, cells: Sequence[PlannedCell]) -> None:
    """Waits for the runs of a comparison that was killed: its processes end a moment after it.

    A run that something else writes to fails later, with a message.
    """
    for cell in cells:
        if (run := out / cell.name).is_dir():
            with suppress(RunLockedError), Workspace(run, "run", wait_s=ORPHANS_S):
                pass


def _train(
    out: Path,
    cells: Sequence[PlannedCell],
    configs: "Mapping[str, Config]",
    ledger: Ledger,
    workers: int,
    display: Display,
    stop: StopRequest,
) -> list[Outcome]:
    """Makes the worlds, then trains the longest runs first; how each started run ended."""
    work = {cell.name: _work(configs[cell.name]) for cell in cells}
    outcomes: list[Outcome] = []
    total = len(configs)
    with (
        display.progress("runs", total, done=total - len(cells), work=sum(work.values())) as shown,
        Pool(workers, on_message=lambda name, text: display.say(f"{name}: {text}")) as pool,
    ):

        def take(outcome: Outcome) -> None:
            outcomes.append(outcome)
            what = f"failed: {outcome.error}" if outcome.error else outcome.ending
            shown.advance(
                f"{outcome.job.name} {what}",
                work=work[outcome.job.name],
                counts=outcome.ending == "finished",
            )

        lost = _make_worlds(pool, cells, configs, stop, shown)
        ledger.count_workers(workers)
        shown.restart()
        jobs = []
        for cell in sorted(cells, key=lambda cell: -work[cell.name]):
            job = Job(name=cell.name, kind="cell", settings=cell.settings, out=str(out / cell.name))
            if (task := configs[cell.name].task) in lost:
                take(Outcome(job=job, ending="failed", error=lost[task]))
            else:
                jobs.append(job)
        pool.run(jobs, stop, take, shown.refresh)
    return outcomes


def _make_worlds(
    pool: Pool,
    cells: Sequence[PlannedCell],
    configs: "Mapping[str, Config]",
    stop: StopRequest,
    shown: Progress,
) -> "dict[World | DatasetTask, str]":
    """Makes base and teacher of each tiny world once; the tasks where that failed, and why."""
    jobs: dict[str, Job] = {}
    tasks = {}
    for cell in cells:
        config = configs[cell.name]
        teacher = config.teacher or config.teachers or config.self_teacher
        brings_models = config.student is not None and teacher
        if config.task.type != "dataset" and not brings_models and config.task not in tasks:
            name = f"world of {cell.name}"
            tasks[config.task] = name
            jobs[name] = Job(name=name, kind="world", settings=cell.settings)
    outcomes: list[Outcome] = []
    pool.run(list(jobs.values()), stop, outcomes.append, shown.refresh)
    errors = {o.job.name: o.error for o in outcomes if o.ending == "failed"}
    return {
        task: f"the models of its world could not be made: {errors[name]}"
        for task, name in tasks.items()
        if name in errors
    }


def _work(config: "Config") -> float:
    """Estimated work of a run in prompts: what it learns from and what its searches score."""
    searched = config.validation.prompts if config.searches else 0
    learnt = config.train.prompts_per_step * config.train.responses_per_prompt
    return config.train.steps * (learnt + searched)


def _write_results(command: str, plan: Plan, out: Path, workers: Sequence[int]) -> str:
    """Writes `summary.json`, `table.md`, `report.html` and the figures; the short table."""
    from effopd.reports.comparison import Comparison as Page
    from effopd.reports.comparison import markdown_report, summary_table
    from effopd.reports.page import write_comparison
    from effopd.reports.png import write_comparison_pngs
    from effopd.reports.summary import Cell
    from effopd.reports.tables import text_table

    there = [cell for cell in plan.cells() if is_finished(out / cell.name)]
    comparison = Page(
        name=plan.name,
        cells=[
            Cell(
                world=cell.world,
                method=cell.method,
                lr=cell.lr,
                seed=cell.seed,
                run=load_run(out / cell.name),
                figure=plan.methods[cell.method].figure,
                parent=parent_of(plan, cell.method),
            )
            for cell in there
        ],
        command=command,
        notes=_notes(plan, there, workers),
        plan=plan.text,
    )
    write_json_atomic(out / "summary.json", comparison.summary)
    write_text_atomic(out / "table.md", markdown_report(comparison))
    write_comparison(comparison, out / "report.html")
    write_comparison_pngs(comparison, out / "figures")
    return text_table(summary_table(comparison))


def _notes(plan: Plan, there: Sequence[PlannedCell], workers: Sequence[int]) -> list[str]:
    """How the runs were made, and which are missing."""
    most = max(workers, default=1)
    shared = (
        "The runs were trained one at a time."
        if most == 1
        else f"Up to {most} runs were trained at a time on one machine; seconds are as they were "
        "measured then, slower than alone."
    )
    names = {cell.name for cell in there}
    missing = [cell.name for cell in plan.cells() if cell.name not in names]
    return [shared, *([f"Missing, because they failed: {_some(missing)}."] if missing else [])]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _listed(runs: Mapping[str, Sequence[str]]) -> str:
    """Each text below the runs that it is about."""
    indented = {text.replace("\n", "\n  "): names for text, names in runs.items()}
    return "\n".join(f"{_some(names)}:\n  {text}" for text, names in indented.items())
