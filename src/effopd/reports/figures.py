"""Figures of runs as plotly JSON: dicts of `data` and `layout` that pages and notebooks can draw.

Plotly reads a subset of HTML in every label, so text from records is escaped before it goes in.
Colours of text, grid and background are left to whoever draws, who knows if the page is dark.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

from effopd.records import Run
from effopd.reports.series import plain
from effopd.reports.style import Style, faded
from effopd.reports.summary import FIELD, CurvePoint, SettingRow, evaluated, first_at, median_curve
from effopd.reports.tables import format_cost, format_lr, format_percent

Figure = dict[str, Any]

AXES = {
    "steps": "optimizer steps",
    "tokens": "sampled tokens, validation included",
    "teacher_tokens": "tokens scored by the teacher, validation included",
    "seconds": "seconds of training, search included",
}
"""What a curve can be drawn against, and title of the axis."""

Curves = Sequence[tuple[Style, Sequence[Run]]]
"""What one figure shows: a style and the seeds of one setting for each curve."""


def accuracy_figure(curves: Curves, cost: str, teacher: float | None) -> Figure:
    """Accuracy against what training cost, with the level of the teacher.

    Bands are one standard error of one run, and the smallest and largest of several seeds, whose
    median is drawn. A ring marks the first evaluation of one run at 90% of the teacher.
    """
    bands, lines = [], []
    for style, runs in curves:
        points = median_curve(runs, cost)
        if len(points) > 1 and any(point.low < point.high for point in points):
            upper = [(point.place, point.high) for point in points]
            bands.append(outline(upper + [(p.place, p.low) for p in reversed(points)], style))
        lines.append(_curve(points, cost, "accuracy", style, runs))
        first = first_at(evaluated(runs[0]), 90, teacher) if len(runs) == 1 else None
        place = getattr(first, FIELD[cost], None)
        if first is not None and place is not None:
            lines.append(ring([(place, first.accuracy or 0.0)], style))
    layout = base_layout(cost, "accuracy", tickformat=".0%", rangemode="tozero")
    for share, name in ((1.0, "teacher"), (0.9, "90%")):
        if teacher is not None:
            height, line = share * teacher, {"width": 1, "dash": "dot"}
            line = {"width": 1.5, "dash": "solid"} if share == 1.0 else line
            ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height}
            layout["shapes"].append({"type": "line", "layer": "below", "line": line, **ends})
            where = {"xref": "paper", "x": 1.01, "xanchor": "left", "y": height}
            text = {"text": name, "yanchor": "middle", "showarrow": False, "font": {"size": 11}}
            layout["annotations"].append(where | text)
    return {"data": bands + lines, "layout": layout}


def reverse_kl_figure(curves: Curves, cost: str) -> Figure:
    """Reverse KL from the teacher in nats on a logarithmic axis; 0 or less is left out."""
    lines = []
    for style, runs in curves:
        points = [point for point in median_curve(runs, cost, "reverse_kl") if point.middle > 0]
        lines.append(_curve(points, cost, "reverse KL", style, runs))
    axis = log_axis([height for line in lines for height in line["y"]])
    return {"data": lines, "layout": base_layout(cost, "reverse KL (nats)", **axis)}


def _curve(
    points: Sequence[CurvePoint], cost: str, quantity: str, style: Style, runs: Sequence[Run]
) -> Figure:
    hovers = []
    for point in points:
        lines = [f"<b>{plotly_text(style.label)}</b>, step {point.step:g}"]
        if quantity == "accuracy":
            lines.append(f"accuracy {format_percent(point.middle, 2)}")
            if len(runs) > 1:
                spread = f"{format_percent(point.low)} to {format_percent(point.high)}"
                lines.append(f"{spread} over {len(runs)} seeds")
            elif point.high > point.low:
                lines[-1] += f" ± {format_percent(point.high - point.middle, 2)}"
        else:
            lines.append(f"{quantity} {point.middle:.4g} nats")
        if cost != "steps":
            lines.append(f"{format_cost(cost, point.place)} {AXES[cost].split(',')[0]}")
        hovers.append("<br>".join(lines))
    return marked_line([(point.place, point.middle) for point in points], hovers, style)


def rates_figure(rows: Sequence[SettingRow], styles: Sequence[Style]) -> Figure:
    """Median steps to 90% of the teacher against the learning rate, both axes logarithmic.

    Bars go from the fastest to the slowest seed. A setting that did not get there is drawn as an
    open mark at the steps it ran, a lower bound.
    """
    grouped: dict[Style, list[tuple[SettingRow, float]]] = {}
    for row, style in zip(rows, styles, strict=True):
        steps = row["median_steps_to_90"]
        if height := row["steps"] if steps is None else steps:
            grouped.setdefault(style, []).append((row, float(height)))
    lines = []
    for style, drawn in grouped.items():
        hovers, ends, reached = [], [], []
        for row, height in drawn:
            low, high = row["low_steps_to_90"], row["high_steps_to_90"]
            reached.append(row["median_steps_to_90"] is not None)
            slowest = row["steps"] if high is None else high
            ends.append((height - low, slowest - height) if reached[-1] else (0.0, 0.0))
            hovers.append(
                f"<b>{plotly_text(style.label)}</b>, learning rate {format_lr(row['lr'])}<br>"
                f"{'' if reached[-1] else 'not in '}{height:g} steps<br>"
                f"{row['reached_90']} of {row['seeds']} seeds got to 90%"
            )
        line = marked_line([(row["lr"], height) for row, height in drawn], hovers, style)
        line["marker"]["symbol"] = [f"{style.symbol}{'' if got else '-open'}" for got in reached]
        line["marker"]["size"] = [8 if got else 10 for got in reached]
        line["error_y"] = {
            "type": "data", "symmetric": False, "array": [up for _, up in ends],
            "arrayminus": [down for down, _ in ends], "color": style.color, "thickness": 1,
            "width": 3,
        }  # fmt: skip
        lines.append(line)
    heights = [height for line in lines for height in line["y"]]
    layout = base_layout("steps", "steps to 90% of the teacher", **log_axis(heights))
    rates = sorted({row["lr"] for row in rows})
    ticks = {"tickvals": rates, "ticktext": [format_lr(rate) for rate in rates]}
    layout["xaxis"] = {"title": {"text": "learning rate"}, "type": "log", **ticks}
    return {"data": lines, "layout": layout}


# Parts of figures ---------------------------------------------------------------------------------


def plotly_text(text: str) -> str:
    """`text` so that plotly shows it as it is: no markup, no control characters."""
    return html.escape(plain(text), quote=False)


def marked_line(
    places: Sequence[tuple[float, float]], hovers: Sequence[str], style: Style
) -> Figure:
    """A line with marks; `hovers` hold plotly's markup, with text from records escaped."""
    name = plotly_text(style.label)
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": name,
        "x": [x for x, _ in places], "y": [y for _, y in places],
        "line": {"color": style.color, "width": 2.5, "dash": style.dash},
        "marker": {"color": style.color, "size": 7, "symbol": style.symbol},
        "hoverinfo": "text", "hovertext": list(hovers), "cliponaxis": False,
    }  # fmt: skip


def _silent(mode: str, places: Sequence[tuple[float, float]], style: Style) -> Figure:
    """A trace that belongs to a curve and is named by nothing."""
    return {
        "type": "scatter", "mode": mode, "x": [x for x, _ in places], "y": [y for _, y in places],
        "hoverinfo": "skip", "showlegend": False, "legendgroup": plotly_text(style.label),
    }  # fmt: skip


def outline(corners: Sequence[tuple[float, float]], style: Style) -> Figure:
    """A closed, faintly filled outline in the colour of a curve."""
    fill = {"fill": "toself", "fillcolor": faded(style.color, 0.14), "line": {"width": 0}}
    return _silent("lines", corners, style) | fill


def ring(places: Sequence[tuple[float, float]], style: Style) -> Figure:
    """Rings around points of a curve."""
    line = {"color": style.color, "width": 2}
    marker = {"size": 17, "color": "rgba(0,0,0,0)", "symbol": "circle", "line": line}
    return _silent("markers", places, style) | {"marker": marker}


def base_layout(axis: str, title: str, **y_axis: object) -> Figure:
    """Layout over one of `AXES`, from 0; `y_axis` are settings of the vertical axis."""
    return titled_layout(AXES[axis], title, {"rangemode": "tozero"}, y_axis)


def titled_layout(x: str, y: str, x_axis: Figure | None = None, y_axis: Figure | None = None) -> (
    Figure
):  # fmt: skip
    """Layout with titled axes and no marks."""
    return {
        "xaxis": {"title": {"text": x}, **(x_axis or {})},
        "yaxis": {"title": {"text": y}, **(y_axis or {})},
        "shapes": [], "annotations": [], "hovermode": "closest", "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    }  # fmt: skip


def log_axis(heights: Sequence[float]) -> Figure:
    """A logarithmic axis with plain numbers."""
    ticks = decade_ticks(heights)
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def decade_ticks(heights: Sequence[float]) -> list[float]:
    """Ticks at 1, 2 and 5 times powers of ten, or at the powers alone if that is many."""
    if not heights:
        return []
    first, last = math.floor(math.log10(min(heights))), math.floor(math.log10(max(heights)))
    steps = (1, 2, 5) if last - first < 4 else (1,)
    return [step * 10.0**power for power in range(first, last + 2) for step in steps]
