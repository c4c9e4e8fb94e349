"""What `effopd compare` does: the runs of a plan, in parallel, and the tables they add up to."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from effopd.comparison.ledger import Ledger, is_finished, locked
from effopd.comparison.plan import Plan, PlannedCell, load_plan, parent_of
from effopd.comparison.pool import Job, Outcome, Pool
from effopd.comparison.progress import CompareProgress, compare_progress
from effopd.errors import ConfigError
from effopd.records import display_text, load_run, write_json_atomic, write_text_atomic
from effopd.training.signals import StopRequest, stop_on_signals

if TYPE_CHECKING:
    from effopd.config import RunConfig
    from effopd.data.dataset import DatasetTask
    from effopd.data.files import JsonlTask
    from effopd.data.world import TinyWorld

Ending = Literal["finished", "stopped", "failed"]

MOST_LISTED = 12
"""Runs named one by one in a message."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line.

    Attributes:
        plan: The plan, a TOML file.
        out: Directory of runs and results; None for runs/compare-NAME.
        workers: Most processes at a time; None for one per core.
        quick: Whether to apply the plan's `[quick]` section.
        debug: Whether processes show the traceback of an error.
    """

    plan: Path
    out: Path | None = None
    workers: int | None = None
    quick: bool = False
    debug: bool = False

    def directory(self, plan: Plan) -> Path:
        """Where runs and results go; a quick comparison has a directory of its own."""
        return self.out or Path("runs") / f"compare-{plan.name}{'-quick' if self.quick else ''}"

    def command(self, plan: Plan, *, with_workers: bool = False) -> str:
        """The command line that goes on with this comparison, or draws it again."""
        words = ["effopd", "compare", str(self.plan), "--out", str(self.directory(plan))]
        words += ["--quick"] if self.quick else []
        words += ["--workers", str(self.workers)] if with_workers and self.workers else []
        return shlex.join(words)


def list_cells(request: Request) -> None:
    """Prints every run of the plan, and which of them are finished."""
    plan = load_plan(request.plan, quick=request.quick)
    out = request.directory(plan)
    for cell in plan.cells():
        print(f"{cell.name}{'  finished' if is_finished(out / cell.name) else ''}")


def run_compare(request: Request) -> Ending:
    """Trains what is not finished, then writes table, page and figures.

    Returns:
        "finished"; "stopped" after a signal, when the same command goes on; "failed" if a run
        failed, when the tables hold the others.

    Raises:
        ConfigError: The plan, or the settings of a run, are wrong, or not those of a run that is
            already there. Nothing was started then.
    """
    plan = load_plan(request.plan, quick=request.quick)
    out, cells = request.directory(plan), plan.cells()
    with locked(out):
        ledger = Ledger(out)
        failed: list[Outcome] = []
        if not all(map(ledger.is_settled, cells)):
            configs = _resolve(cells, out, ledger)
            left = [cell for cell in cells if not is_finished(out / cell.name)]
            outcomes = _train(request, out, left, configs, ledger) if left else []
            failed = [outcome for outcome in outcomes if outcome.ending == "failed"]
            _print_failures(failed)
            if len(outcomes) < len(left) or any(o.ending == "stopped" for o in outcomes):
                print(f"stopped and saved; go on with: {request.command(plan, with_workers=True)}")
                return "stopped"
        _write_results(request.command(plan), plan, out, ledger.workers)
    return "failed" if failed else "finished"


def _resolve(cells: Sequence[PlannedCell], out: Path, ledger: Ledger) -> "dict[str, RunConfig]":
    """Checked settings by run, all of them those of the runs that are already there."""
    from effopd.config import make_config, to_toml
    from effopd.training.devices import placed

    configs, mistakes = {}, dict[str, list[str]]()
    for cell in cells:
        try:
            configs[cell.name] = placed(make_config(cell.settings))
        except ConfigError as error:
            mistakes.setdefault(str(error), []).append(cell.name)
    if mistakes:
        raise ConfigError(
            "\n".join(f"{_some(names)}:\n  {_indented(text)}" for text, names in mistakes.items())
        )
    resolved = {name: to_toml(config) for name, config in configs.items()}
    _refuse_other_settings(configs, out)
    ledger.enter(cells, resolved)
    return configs


def _refuse_other_settings(configs: "Mapping[str, RunConfig]", out: Path) -> None:
    from effopd.config import changes

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
        found = "\n".join(f"{_some(names)}:\n  {_indented(t)}" for t, names in changed.items())
        raise ConfigError(
            f"{out} holds runs with other settings than the plan:\n{found}\n"
            "Go back to the old plan, or start in another directory (--out)."
        )


def _train(
    request: Request,
    out: Path,
    cells: Sequence[PlannedCell],
    configs: "Mapping[str, RunConfig]",
    ledger: Ledger,
) -> list[Outcome]:
    """Makes the worlds, then trains the longest runs first.

    Returns:
        How each run that was started ended.
    """
    workers = min(request.workers or os.cpu_count() or 1, len(cells))
    work = {cell.name: _work(configs[cell.name]) for cell in cells}
    outcomes: list[Outcome] = []
    with (
        stop_on_signals() as stop,
        compare_progress(len(configs), len(cells), sum(work.values())) as progress,
        Pool(workers, debug=request.debug, on_message=progress.say) as pool,
    ):

        def take(outcome: Outcome) -> None:
            progress.count(outcome, work[outcome.job.name])
            outcomes.append(outcome)

        lost = _make_worlds(pool, cells, configs, stop, progress)
        ledger.count_workers(workers)
        progress.begin()
        jobs = []
        for cell in sorted(cells, key=lambda cell: -work[cell.name]):
            job = Job(name=cell.name, kind="cell", settings=cell.settings, out=str(out / cell.name))
            if (task := configs[cell.name].task) in lost:
                take(Outcome(job=job, ending="failed", error=lost[task]))
            else:
                jobs.append(job)
        pool.run(jobs, stop, take, progress.refresh)
    return outcomes


def _make_worlds(
    pool: Pool,
    cells: Sequence[PlannedCell],
    configs: "Mapping[str, RunConfig]",
    stop: StopRequest,
    progress: CompareProgress,
) -> "dict[TinyWorld | JsonlTask | DatasetTask, str]":
    """Makes base and teacher of each tiny world once, so that no two runs do.

    Returns:
        The tasks whose models could not be made, and why.
    """
    jobs: dict[str, Job] = {}
    tasks = {}
    for cell in cells:
        config = configs[cell.name]
        teacher = config.teacher or config.teachers or config.self_teacher
        brings_models = config.student is not None and teacher
        if config.task.type == "tiny_world" and not brings_models and config.task not in tasks:
            name = f"world of {cell.name}"
            tasks[config.task] = name
            jobs[name] = Job(name=name, kind="world", settings=cell.settings)
    outcomes: list[Outcome] = []
    pool.run(list(jobs.values()), stop, outcomes.append, progress.refresh)
    errors = {o.job.name: o.error for o in outcomes if o.ending == "failed"}
    return {
        task: f"the models of its world could not be made: {errors[name]}"
        for task, name in tasks.items()
        if name in errors
    }


def _work(config: "RunConfig") -> float:
    """Estimated work of a run in prompts: what it learns from and what its searches score."""
    searched = config.validation.prompts if config.searches else 0
    learnt = config.train.prompts_per_step * config.train.responses_per_prompt
    return config.train.steps * (learnt + searched)


def _write_results(command: str, plan: Plan, out: Path, workers: Sequence[int]) -> None:
    """Writes `summary.json`, `table.md`, `report.html` and the figures, and says where they are."""
    from effopd.reports.comparison import Comparison, markdown_report, summary_table
    from effopd.reports.page import write_comparison
    from effopd.reports.png import write_comparison_pngs
    from effopd.reports.summary import Cell
    from effopd.reports.tables import text_table

    there = [cell for cell in plan.cells() if is_finished(out / cell.name)]
    comparison = Comparison(
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
    print(text_table(summary_table(comparison)))
    write_comparison(comparison, out / "report.html")
    write_comparison_pngs(comparison, out / "figures")
    print(f"\nsummary: {out / 'summary.json'}\ntable: {out / 'table.md'}")
    print(f"report: {out / 'report.html'}\nfigures: {out / 'figures'}")


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


def _print_failures(failed: Sequence[Outcome]) -> None:
    for outcome in failed:
        text = f"failed: {outcome.job.name}: {outcome.error}"
        print(display_text(text), file=sys.stderr)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
