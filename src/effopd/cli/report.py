"""What `effopd report` does."""

from collections.abc import Sequence
from pathlib import Path

from effopd.records import load_run
from effopd.reports.comparison import Comparison, summary_table
from effopd.reports.page import write_report
from effopd.reports.png import write_pngs
from effopd.reports.tables import text_table


def report_runs(directories: Sequence[Path], page: Path) -> None:
    """Writes the page and its PNG copies, and prints the comparison table."""
    runs = [load_run(directory) for directory in directories]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_report(runs, page)
    pictures = write_pngs(runs, page.parent / "figures")
    print(text_table(summary_table(Comparison.of_runs(runs, "report"))))
    print(f"\nreport: {page}\nfigures: {', '.join(str(p) for p in pictures)}")
