"""What `effopd compare` prints. PyTorch is not imported where every run is finished."""

import shlex
import sys
from pathlib import Path

from effopd.comparison.ledger import is_finished
from effopd.comparison.plan import load_plan
from effopd.comparison.run import compare, directory_of
from effopd.progress import Terminal
from effopd.records import display_text
from effopd.training.signals import stop_on_signals


def run_compare(
    plan: Path, out: Path | None, *, workers: int | None, quick: bool, list_runs: bool
) -> str:
    """Compares, or lists the runs of a plan; prints how it ended and where the results are."""
    read = load_plan(plan, quick=quick)
    directory = out or directory_of(read, quick=quick)
    if list_runs:
        for cell in read.cells():
            print(f"{cell.name}{'  finished' if is_finished(directory / cell.name) else ''}")
        return "finished"
    with stop_on_signals() as stop:
        found = compare(
            plan, directory, workers=workers, quick=quick, display=Terminal(), stop=stop
        )
    for name, error in found.failed.items():
        print(display_text(f"failed: {name}: {error}"), file=sys.stderr)
    if found.ending == "stopped":
        words = ["effopd", "compare", str(plan), "--out", str(directory)]
        words += ["--quick"] * quick + (["--workers", str(workers)] if workers else [])
        print(f"stopped and saved; go on with: {shlex.join(words)}")
        return found.ending
    print(f"{found.table}\n")
    print(f"summary: {directory / 'summary.json'}\ntable: {directory / 'table.md'}")
    print(f"report: {directory / 'report.html'}\nfigures: {directory / 'figures'}")
    return found.ending
