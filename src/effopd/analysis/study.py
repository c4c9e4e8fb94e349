"""What `effopd analyze` does: measures, writes tables and the page; goes on where it was."""

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from effopd.analysis.behavior_records import behavior_recipe, measure_behavior
from effopd.analysis.pool import default_workers, measured
from effopd.analysis.series import Inputs, find_inputs
from effopd.analysis.study_directory import AnalysisDirectory, Key
from effopd.analysis.study_tables import SOURCES, never_moved
from effopd.analysis.subspaces import DIRECTIONS
from effopd.analysis.tables import TOP
from effopd.analysis.units import MEASUREMENTS, CheckpointSeries
from effopd.errors import ConfigError
from effopd.models.loading import real_device
from effopd.models.updates import say_left_out
from effopd.records import Row, display_text
from effopd.reports.analysis import load_analysis
from effopd.reports.analysis_page import write_analysis, write_analysis_pngs
from effopd.reports.analysis_tables import table_1_text
from effopd.reports.table_files import write_table

WHAT = (*SOURCES, "behavior")
"""Everything that can be asked for, in the order in which it is measured."""


@dataclass(frozen=True, kw_only=True)
class AnalysisRequest:
    """What the command was asked for.

    Attributes:
        base: Model directory, or a run.
        checkpoints: Model directories, adapters, or a run.
        out: Directory of the analysis.
        final: What the series is compared with; None for its last checkpoint.
        what: Names of `WHAT` separated by commas; None for all that can be measured.
        device: Where spectra and directions are computed, and models run.
        workers: Units at a time; None for one per core, up to a limit.
        recipe: Problems and teacher for `behavior`; None for those of the run.
    """

    base: Path
    checkpoints: Sequence[Path]
    out: Path
    final: Path | None = None
    what: str | None = None
    device: str = "auto"
    workers: int | None = None
    recipe: Path | None = None


def analyze(request: AnalysisRequest) -> None:
    """Measures what is missing in the directory, then writes tables, page and pictures."""
    measure(request)
    show(request.out)


def measure(request: AnalysisRequest) -> None:
    """Measures what is missing, and writes the tables of what was asked for."""
    asked = parse_what(request.what)
    request = replace(request, device=real_device(request.device))
    inputs = find_inputs(request.base, request.checkpoints, request.final, print)
    recipe = behavior_recipe(asked, inputs.run, request.recipe, request.device)
    what = asked or [name for name in WHAT if name != "behavior" or recipe is not None]
    series = CheckpointSeries(inputs, request.device)
    _tell(series, what)
    with AnalysisDirectory(request.out) as directory:
        info = analysis_info(request, inputs, what)
        directory.describe(info | {"not_compared": series.not_compared})
        for name in what:
            if name in SOURCES:
                _measure(directory, series, name, request.workers or default_workers())
        if recipe is not None and "behavior" in what:
            measure_behavior(directory, inputs, recipe, draws_tsne=series.draws_tsne)


def parse_what(text: str | None) -> list[str]:
    """Names of `WHAT` in their order; none where nothing was said.

    Args:
        text: Names separated by commas.

    Returns:
        The names.

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    if text is None:
        return []
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in WHAT:
            close = difflib.get_close_matches(name, WHAT, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"--what {name}: expected among {', '.join(WHAT)}{hint}")
    if not names:
        raise ConfigError(f"--what is empty: give one or more of {', '.join(WHAT)}")
    return [name for name in WHAT if name in names]


def show(out: Path) -> None:
    """Draws the page and its PNG copies from the tables, and prints Table 1."""
    analysis = load_analysis(out)
    page = out / "report.html"
    write_analysis(analysis, page)
    pictures = write_analysis_pngs(analysis, out / "figures")
    if analysis.tables.get("table1"):
        print(f"\n{table_1_text(analysis)}\n")
    print(f"page: {page}\ntables: {out / 'tables'}\nfigures: {len(pictures)} in {out / 'figures'}")


def analysis_info(request: AnalysisRequest, inputs: Inputs, what: Sequence[str]) -> Row:
    """Content of `analysis.json`."""
    words = ["effopd", "analyze", str(request.base), *map(str, request.checkpoints)]
    options = {"final": request.final, "what": request.what, "recipe": request.recipe}
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    return {
        **inputs.record(),
        "options": {"directions": DIRECTIONS, "top": TOP},
        "what": what,
        "command": shlex.join([*words, "--out", str(request.out)]),
        "device": request.device,
        "versions": {name: version(name) for name in ("effopd", "torch", "numpy")},
    }


def _measure(
    directory: AnalysisDirectory, series: CheckpointSeries, name: str, workers: int
) -> None:
    """Measures and tabulates one of `SOURCES`."""
    measurements, tabulate = SOURCES[name]
    records: list[dict[Key, Row]] = [
        measured(series, each, MEASUREMENTS[each], directory, workers) for each in measurements
    ]
    for table, rows in tabulate(series, *records).items():
        write_table(directory.tables, table, rows)
    if name == "norms":
        still = [{"place": label} for label in never_moved(series, records[0])]
        write_table(directory.tables, "never_moved", still)
        print(f"{len(still)} of {len(series.places)} places never moved")


def _tell(series: CheckpointSeries, what: Sequence[str]) -> None:
    names = [checkpoint.label for checkpoint in series.labels]
    shown = ", ".join(names if len(names) <= 4 else [names[0], names[1], "...", names[-1]])
    print(display_text(f"{len(names)} checkpoints of {series.inputs.base}: {shown}"))
    for label, update in zip(names, series.updates, strict=True):
        say_left_out(update, lambda text: print(display_text(text)), f"{label}: ")
    if not series.draws_tsne and not {"trajectories", "behavior"}.isdisjoint(what):
        print("no t-SNE pictures: scikit-learn is missing (pip install 'effopd[analysis]')")
