"""Figures of run and analysis directories, for notebooks and papers.

    from effopd import figures

    figure = figures.accuracy(["runs/opd", "runs/effopd"], against="tokens")
    figures.save_png(figure, "accuracy.png")

A figure is a dict of `data` and `layout`, which `plotly.graph_objects.Figure(figure)` draws. A run
is a directory or what `effopd.records.load_run` gave, an analysis a directory that `effopd analyze`
wrote. Nothing here imports torch; plotly is not needed, matplotlib only by `save_png`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from effopd.errors import RecordError
from effopd.records import Run, checkpoint_step, load_run, read_json
from effopd.reports.analysis import load_analysis
from effopd.reports.analysis_page import analysis_figures
from effopd.reports.comparison import Comparison
from effopd.reports.figures import AXES, Figure, accuracy_figure, reverse_kl_figure
from effopd.reports.png import save_png
from effopd.reports.series import teacher_accuracy
from effopd.reports.timeline import foresight_figure, search_figure

__all__ = ["accuracy", "analysis", "foresight", "reverse_kl", "save_png", "search"]

Runs = Sequence[Run | Path | str] | Mapping[str, Sequence[Run | Path | str]]
"""Runs one by one, or name of a setting -> its seeds."""


def accuracy(runs: Runs, against: str = "steps", benchmark: str = "") -> Figure:
    """Accuracy of the student against what training cost, with the level of the teacher.

    A run has a band of one standard error and a ring at its first evaluation at 90% of the
    teacher; seeds of one setting are drawn as their median, banded by the smallest and the largest.

    Args:
        runs: Runs against the same teacher, or lists of seeds by name.
        against: "steps", "tokens", "teacher_tokens" or "seconds", validation included.
        benchmark: Draw the checkpoints that `effopd eval --run RUN --bench NAME` evaluated, in the
            place of the run's own test problems and without the teacher. Costs other than steps
            are known where the run was evaluated too.

    Returns:
        A plotly figure; accuracies are fractions in [0, 1].

    Raises:
        RecordError: There is no run, one cannot be read or was not evaluated on the benchmark, or
            `against` is none of these.
    """
    comparison = _comparison(runs, against)
    if benchmark:
        cells = [replace(cell, run=_on_benchmark(cell.run, benchmark)) for cell in comparison.cells]
        comparison = replace(comparison, cells=cells)
    curves = comparison.curves(comparison.rows(""))
    return accuracy_figure(curves, against, teacher_accuracy(comparison.runs))


def reverse_kl(runs: Runs, against: str = "steps") -> Figure:
    """Reverse KL from the teacher in nats a token, on a logarithmic axis.

    Estimates of 0 or less are left out. Arguments and errors are those of `accuracy`.
    """
    comparison = _comparison(runs, against)
    return reverse_kl_figure(comparison.curves(comparison.rows("")), against)


def search(run: Run | Path | str) -> Figure:
    """Every trial of a run's searches: step, scale, and colour for its gain over the incumbent.

    No traces for a run that did not search.

    Raises:
        RecordError: The run cannot be read.
    """
    return search_figure(_loaded(run))


def foresight(runs: Sequence[Run | Path | str]) -> Figure:
    """Cosine of each displacement by training with the one before it, as the monitor recorded it.

    Runs without the monitor have no curve.

    Raises:
        RecordError: A run cannot be read.
    """
    return foresight_figure([_loaded(run) for run in runs])


def analysis(directory: Path | str) -> dict[str, Figure]:
    """The figures of what an analysis measured, by name such as "norms" or "subspaces".

    Raises:
        RecordError: The directory holds no analysis, or a file is damaged.
    """
    return analysis_figures(load_analysis(Path(directory)))


def _comparison(runs: Runs, against: str) -> Comparison:
    if against not in AXES:
        raise RecordError(f"against must be one of {', '.join(AXES)}, got {against!r}")
    if isinstance(runs, Mapping):
        seeds = {name: [_loaded(run) for run in each] for name, each in runs.items()}
        return Comparison.of_settings(seeds)
    return Comparison.of_runs([_loaded(run) for run in runs], "figure")


def _on_benchmark(run: Run, name: str) -> Run:
    """The run with the accuracies of its checkpoints on a benchmark as its only evaluations."""
    own = {row.get("step"): row for row in run.evals if row.get("model") == "student"}
    rows = []
    for summary in (run.directory / "benchmarks").glob(f"step-*/{name}/summary.json"):
        step, average = checkpoint_step(summary.parents[1]), read_json(summary)["avg"]
        found = {"accuracy": average["mean"], "accuracy_se": average["standard_error"]}
        rows.append({**own.get(step, {}), "model": "student", "step": step, **found})
    if not rows:
        raise RecordError(
            f"{run.directory} was not evaluated on {name}: run effopd eval --run {run.directory} "
            f"--bench {name}"
        )
    return replace(run, evals=rows)


def _loaded(run: Run | Path | str) -> Run:
    return run if isinstance(run, Run) else load_run(run)
