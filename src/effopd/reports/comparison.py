"""What a comparison shows: its runs, how they are drawn, and which of them share a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effopd.errors import RecordError
from effopd.reports.aggregates import Cell, SettingRow, comparison_summary
from effopd.reports.compare_figures import Curves
from effopd.reports.compare_tables import compared_method, shown_lr
from effopd.reports.style import Style, method_styles, rate_styles
from effopd.reports.tables import format_lr

BEST = "best"
"""Choice of the learning-rate control that shows each method at its own best rate."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a page of many runs is made from.

    Attributes:
        name: Title.
        cells: The runs, in the order of the plan; at least one.
        command: Command line that makes this comparison, page and figures.
        notes: Sentences about how it was made: processes, what is missing.
        plan: Text of the plan.
    """

    name: str
    cells: Sequence[Cell]
    command: str
    notes: Sequence[str] = ()
    plan: str = ""

    def __post_init__(self) -> None:
        if not self.cells:
            raise RecordError(
                f"no run of {self.name!r} has finished, so there is nothing to compare: look at "
                "the errors of the runs and start the command again."
            )

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        return comparison_summary(self.cells)

    @property
    def styles(self) -> dict[str, Style]:
        """Method -> how it is drawn."""
        methods = {cell.method: str(cell.run.info.get("method")) for cell in self.cells}
        styles = method_styles(list(methods), list(methods.values()))
        return dict(zip(methods, styles, strict=True))

    def seeds(self, row: SettingRow) -> list[Cell]:
        """The runs of a row of the summary."""
        wanted = (row["world"], row["method"], row["lr"])
        return [cell for cell in self.cells if (cell.world, cell.method, cell.lr) == wanted]

    def curves(self, rows: Sequence[SettingRow]) -> Curves:
        """One curve per row, in the style of its method."""
        styles = self.styles
        return [(styles[row["method"]], self.seeds(row)) for row in rows]


def at_rate(summary: Mapping[str, Any], world: str, choice: float | str) -> list[SettingRow]:
    """Rows of the main table of a world: at one learning rate, or each at its `BEST`."""
    rows = summary["best" if choice == BEST else "rows"]
    main = [row for row in rows if row["world"] == world and row["figure"] is None]
    return [row for row in main if choice in (BEST, row["lr"])]


def sweep_rows(summary: Mapping[str, Any], world: str) -> list[SettingRow]:
    """The baseline at every learning rate, and the method of interest at the one shown."""
    main = [r for r in summary["rows"] if r["world"] == world and r["figure"] is None]
    base = [row for row in main if row["method"] == summary["baseline"]]
    method = compared_method(summary)
    ours = [row for row in main if (row["method"], row["lr"]) == (method, shown_lr(summary))]
    return [*base, *(row for row in ours if row not in base)]


def sweep_curves(comparison: Comparison, summary: Mapping[str, Any], world: str) -> Curves:
    """Curves of `sweep_rows`: the baseline from light to dark, the other in its own colour."""
    rows = sweep_rows(summary, world)
    swept = [row for row in rows if row["method"] == summary["baseline"]]
    styles = rate_styles([f"{row['method']} {format_lr(row['lr'])}" for row in swept])
    for row in rows[len(swept) :]:
        look = comparison.styles[row["method"]]
        label = f"{look.label} {format_lr(row['lr'])}"
        styles.append(Style(label=label, color=look.color, symbol=look.symbol, dash=look.dash))
    return [(style, comparison.seeds(row)) for style, row in zip(styles, rows, strict=True)]


def variant_rows(summary: Mapping[str, Any], comparison: Comparison, figure: str, world: str) -> (
    list[SettingRow]
):  # fmt: skip
    """Rows of a figure in a world: the variants, each parent before its first one."""
    rows = [row for row in summary["rows"] if row["world"] == world]
    parents = {cell.method: cell.parent for cell in comparison.cells if cell.figure == figure}
    found: list[SettingRow] = []
    for row in rows:
        if row["figure"] != figure:
            continue
        beside = (parents[row["method"]], row["lr"])
        found += [r for r in rows if (r["method"], r["lr"]) == beside and r not in found]
        found.append(row)
    return found
