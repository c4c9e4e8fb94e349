"""The page of a comparison: one HTML file that holds everything it shows and loads nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effopd.reports.aggregates import COMPARED_COSTS, SettingRow, unique
from effopd.reports.compare_figures import curves_figure, rates_figure
from effopd.reports.compare_tables import (
    METHOD_NOTES,
    cost_text,
    headline,
    highlights,
    interval_text,
    robustness_text,
    share_text,
    shown_lr,
)
from effopd.reports.comparison import BEST, Comparison, at_rate, sweep_curves, variant_rows
from effopd.reports.embedding import embedded, plotly_source, resource, write_page
from effopd.reports.series import plain
from effopd.reports.style import Style
from effopd.reports.summary import PERCENTS
from effopd.reports.tables import format_lr, format_percent, format_ratio

Json = dict[str, Any]


def write_comparison(comparison: Comparison, path: Path | str) -> None:
    """Write the page of a comparison, about 5 MB.

    Text from plan and records is embedded as JSON and placed as text; a content security policy
    lets no script run but the two of this package, and nothing be loaded.

    Args:
        comparison: What to show.
        path: The file to write, replaced in one step.
    """
    scripts = {
        "plotly": plotly_source(),
        "page": resource("plots.js") + resource("compare.js"),
    }
    write_page(path, "compare.html", {"data": embedded(comparison_data(comparison))}, scripts)


def comparison_data(comparison: Comparison) -> Json:
    """Everything the page shows, as JSON values."""
    summary = comparison.summary
    worlds = unique(cell.world for cell in comparison.cells)
    rates = sorted({row["lr"] for row in summary["rows"] if row["figure"] is None})
    return {
        "title": plain(comparison.name),
        "headline": headline(summary),
        "highlights": highlights(summary),
        "facts": _facts(comparison, summary),
        "worlds": [plain(world) for world in worlds],
        "choices": [*(format_lr(rate) for rate in rates), BEST],
        "chosen": format_lr(shown_lr(summary)),
        "main": [_main(comparison, summary, world) for world in worlds],
        "sweeps": [_sweep(comparison, summary, world) for world in worlds],
        "variants": _variants(comparison, summary, worlds),
        "against": _against(summary),
        "notes": [*METHOD_NOTES, *map(plain, comparison.notes)],
        "command": plain(comparison.command),
        "plan": plain(comparison.plan, lines=True),
    }


def _main(comparison: Comparison, summary: Mapping[str, Any], world: str) -> Json:
    """Figures and tables of a world by learning rate and cost."""
    rates = sorted({row["lr"] for row in summary["rows"] if row["figure"] is None})
    found = {}
    for choice in (*rates, BEST):
        rows = at_rate(summary, world, choice)
        name = BEST if choice == BEST else format_lr(choice)
        found[name] = _shown(comparison, rows)
    return found


def _shown(comparison: Comparison, rows: Sequence[SettingRow]) -> Json:
    teacher = next((row["teacher_accuracy"] for row in rows), None)
    curves = comparison.curves(rows)
    return {
        cost: {
            "figure": curves_figure(curves, cost, teacher),
            "table": _table(rows, comparison.styles, cost),
        }
        for cost in COMPARED_COSTS
    }


def _sweep(comparison: Comparison, summary: Mapping[str, Any], world: str) -> Json:
    rows = [r for r in summary["rows"] if r["world"] == world and r["figure"] is None]
    styles = comparison.styles
    teacher = next((row["teacher_accuracy"] for row in rows), None)
    return {
        "curves": curves_figure(sweep_curves(comparison, summary, world), "steps", teacher),
        "rates": rates_figure(rows, [styles[row["method"]] for row in rows]),
        "table": _rates_table(rows, summary, world, styles),
    }


def _variants(comparison: Comparison, summary: Mapping[str, Any], worlds: Sequence[str]) -> (
    list[Json]
):  # fmt: skip
    figures = unique(cell.figure for cell in comparison.cells if cell.figure is not None)
    return [
        {
            "name": plain(figure),
            "worlds": [
                _shown(comparison, variant_rows(summary, comparison, figure, world))
                for world in worlds
            ],
        }
        for figure in figures
    ]


def _table(rows: Sequence[SettingRow], styles: Mapping[str, Style], cost: str) -> Json:
    """Methods down; shares of the teacher, final accuracy and area across."""
    lines = []
    for row in rows:
        cells: list[Json] = [{"text": format_lr(row["lr"])}]
        for percent in PERCENTS:
            ratio = row[f"ratio_{cost}_to_{percent}"]
            cells.append({
                "text": cost_text(row, cost, percent),
                "interval": interval_text(row, cost, percent),
                "ratio": format_ratio(ratio),
                "gain": ratio is not None and ratio > 1,
                "missing": row[f"median_{cost}_to_{percent}"] is None,
            })  # fmt: skip
        for name in ("final_accuracy", "area"):
            text, interval = share_text(row, name)
            cells.append({"text": text, "interval": interval})
        style = styles[row["method"]]
        lines.append({"label": style.label, "color": style.color, "cells": cells})
    shares = [f"{percent} %" for percent in PERCENTS]
    return {"columns": ["to reach", "rate", *shares, "final", "area"], "rows": lines}


def _rates_table(
    rows: Sequence[SettingRow], summary: Mapping[str, Any], world: str, styles: Mapping[str, Style]
) -> Json:
    """Methods down, learning rates across: steps to 90 %, and worst over best."""
    rates = sorted({row["lr"] for row in rows})
    spreads = {r["method"]: r for r in summary["robustness"] if r["world"] == world}
    lines = []
    for method in unique(row["method"] for row in rows):
        at = {row["lr"]: row for row in rows if row["method"] == method}
        cells = [_rate_cell(at.get(rate)) for rate in rates]
        known = spreads.get(method)
        cells.append({"text": robustness_text(known) if known else "–"})
        style = styles[method]
        lines.append({"label": style.label, "color": style.color, "cells": cells})
    return {"columns": ["steps to 90 %", *map(format_lr, rates), "worst / best"], "rows": lines}


def _rate_cell(row: SettingRow | None) -> Json:
    if row is None:
        return {"text": "–"}
    return {
        "text": cost_text(row, "steps", 90),
        "interval": interval_text(row, "steps", 90),
        "missing": row["median_steps_to_90"] is None,
    }


def _against(summary: Mapping[str, Any]) -> str:
    base = summary["baseline"]
    if base is None:
        return "No factors: no method of the main table trains as plain distillation does."
    return f"Factors say how many times less than {plain(base)} was needed, in the same choice."


def _facts(comparison: Comparison, summary: Mapping[str, Any]) -> list[str]:
    levels = {row["world"]: row["teacher_accuracy"] for row in summary["rows"]}
    teachers = [
        f"teacher of {plain(world)} {format_percent(level)}"
        for world, level in levels.items()
        if level is not None
    ]
    seeds = {cell.seed for cell in comparison.cells}
    methods = {cell.method for cell in comparison.cells}
    counted = ((methods, "method"), (seeds, "seed"), (comparison.cells, "run"))
    return [
        *teachers,
        *(f"{len(of)} {name}{'s' if len(of) != 1 else ''}" for of, name in counted),
    ]
