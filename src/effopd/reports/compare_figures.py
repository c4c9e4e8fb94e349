"""Figures of a comparison as plotly JSON: medians over seeds, banded by the extremes."""

from collections.abc import Sequence
from typing import Any

from effopd.reports.aggregates import Cell, CurvePoint, SettingRow, median_curve
from effopd.reports.figures import (
    Figure,
    base_layout,
    decade_ticks,
    mark_teacher,
    marked_line,
    outline,
    plotly_text,
)
from effopd.reports.style import Style
from effopd.reports.tables import format_cost, format_lr, format_percent

COST_TITLES = {
    "steps": "optimizer steps",
    "tokens": "sampled tokens, validation included",
    "teacher_tokens": "tokens scored by the teacher, validation included",
    "seconds": "seconds of training, search included",
}
"""Axis titles of what a comparison is drawn against."""

Curves = Sequence[tuple[Style, Sequence[Cell]]]
"""What one figure shows: a style and the seeds of one setting for each curve."""


def curves_figure(curves: Curves, cost: str, teacher: float | None) -> Figure:
    """Median accuracy over seeds against a cost, banded from the smallest to the largest.

    Args:
        curves: Settings of one world.
        cost: One of `COST_TITLES`.
        teacher: Accuracy of the teacher; None if it was not measured.

    Returns:
        A plotly figure.
    """
    bands, lines = [], []
    for style, cells in curves:
        points = median_curve(cells, cost)
        if len(cells) > 1 and len(points) > 1:
            upper = [(point.place, point.high) for point in points]
            lower = [(point.place, point.low) for point in reversed(points)]
            bands.append(outline(upper + lower, style))
        places = [(point.place, point.middle) for point in points]
        lines.append(marked_line(places, [_hover(p, style, cost, cells) for p in points], style))
    layout = base_layout("steps", "accuracy", tickformat=".0%", rangemode="tozero")
    layout["xaxis"]["title"]["text"] = COST_TITLES[cost]
    mark_teacher(layout, teacher)
    return {"data": bands + lines, "layout": layout}


def rates_figure(rows: Sequence[SettingRow], styles: Sequence[Style]) -> Figure:
    """Median steps to 90 % of the teacher against the learning rate, both axes logarithmic.

    Bars go from the fastest to the slowest seed. A setting that did not get there is drawn as an
    open mark at the steps it ran, a lower bound.

    Args:
        rows: Settings of one world, of methods of the main table.
        styles: Style of each row's method, in order of `rows`.

    Returns:
        A plotly figure.
    """
    grouped: dict[str, list[SettingRow]] = {}
    looks = {style.label: style for style in styles}
    for row, style in zip(rows, styles, strict=True):
        grouped.setdefault(style.label, []).append(row)
    traces = [_rates_line(grouped[label], looks[label]) for label in grouped]
    rates = sorted({row["lr"] for row in rows})
    heights = [height for trace in traces for height in trace["y"]]
    layout = base_layout("steps", "steps to 90 % of the teacher", **_log_axis(heights))
    layout["xaxis"] = {
        "title": {"text": "learning rate"},
        "type": "log",
        "tickvals": rates,
        "ticktext": [format_lr(rate) for rate in rates],
    }
    return {"data": traces, "layout": layout}


def _rates_line(rows: Sequence[SettingRow], style: Style) -> Figure:
    rows = [row for row in rows if steps_drawn(row)]
    line = marked_line(
        [(row["lr"], steps_drawn(row)) for row in rows],
        [_rate_hover(row, style) for row in rows],
        style,
    )
    reached = [row["median_steps_to_90"] is not None for row in rows]
    line["marker"]["symbol"] = [f"{style.symbol}{'' if got else '-open'}" for got in reached]
    line["marker"]["size"] = [8 if got else 10 for got in reached]
    spans = [error_bar(row) for row in rows]
    line["error_y"] = {
        "type": "data",
        "symmetric": False,
        "array": [up for _, up in spans],
        "arrayminus": [down for down, _ in spans],
        "color": style.color,
        "thickness": 1,
        "width": 3,
    }
    return line


def steps_drawn(row: SettingRow) -> float:
    """Height of a setting in the figure of rates: its median steps to 90 %, else all it ran."""
    steps = row["median_steps_to_90"]
    return float(row["steps"] if steps is None else steps)


def error_bar(row: SettingRow) -> tuple[float, float]:
    """Length of the bar below and above; up to the last step when not every seed got there."""
    middle, low, high = (row[f"{name}_steps_to_90"] for name in ("median", "low", "high"))
    if middle is None or low is None:
        return 0.0, 0.0
    return middle - low, (row["steps"] if high is None else high) - middle


def _log_axis(heights: Sequence[float]) -> dict[str, Any]:
    ticks = decade_ticks(heights)
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _hover(point: CurvePoint, style: Style, cost: str, cells: Sequence[Cell]) -> str:
    lines = [
        f"<b>{plotly_text(style.label)}</b>, step {point.step:g}",
        f"accuracy {format_percent(point.middle)}",
    ]
    if len(cells) > 1:
        spread = f"{format_percent(point.low)} to {format_percent(point.high)}"
        lines.append(f"{spread} over {len(cells)} seeds")
    if cost != "steps":
        lines.append(f"{format_cost(cost, point.place)} {COST_TITLES[cost].split(',')[0]}")
    return "<br>".join(lines)


def _rate_hover(row: SettingRow, style: Style) -> str:
    steps = row["median_steps_to_90"]
    text = f"not in {row['steps']:g} steps" if steps is None else f"{steps:g} steps"
    reached = f"{row['reached_90']} of {row['seeds']} seeds got to 90 %"
    name = f"<b>{plotly_text(style.label)}</b>, learning rate {format_lr(row['lr'])}"
    return f"{name}<br>{text}<br>{reached}"
