"""Figures as plotly JSON: dicts of `data` and `layout` that the page and a notebook can draw.

Plotly reads a subset of HTML in every label, so text from records is escaped before it goes in.
Colours of text, grid and background are left to whoever draws, who knows if the page is dark.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

from effopd.records import Run
from effopd.reports.series import Evaluation, evaluations, plain, teacher_accuracy
from effopd.reports.style import Style, faded, run_styles
from effopd.reports.summary import first_at
from effopd.reports.tables import format_cost, format_percent

Figure = dict[str, Any]

AXES = {
    "steps": ("step", "optimizer steps"),
    "tokens": ("sampled_tokens", "sampled tokens, validation included"),
    "seconds": ("elapsed_s", "seconds of training, search included"),
}
"""What a curve can be drawn against: field of `Evaluation` and title of the axis."""


def accuracy_figure(runs: Sequence[Run], axis: str) -> Figure:
    """Accuracy of the student against what training cost, with the level of the teacher.

    Bands are one standard error to either side; a ring marks the first evaluation at 90 % of the
    teacher.

    Args:
        runs: Runs against the same teacher.
        axis: "steps", "tokens" or "seconds".

    Returns:
        A plotly figure.
    """
    teacher = teacher_accuracy(runs)
    bands, lines = [], []
    for run, style in zip(runs, run_styles(runs), strict=True):
        points = _placed(run, axis, "accuracy")
        bands += _band(points, axis, style)
        lines.append(_curve(points, axis, "accuracy", style))
        lines += _ring(points, axis, teacher, style)
    layout = base_layout(axis, "accuracy", tickformat=".0%", rangemode="tozero")
    mark_teacher(layout, teacher)
    return {"data": bands + lines, "layout": layout}


def reverse_kl_figure(runs: Sequence[Run], axis: str) -> Figure:
    """Reverse KL from the teacher in nats, on a logarithmic axis, against what training cost.

    Args:
        runs: Runs against the same teacher.
        axis: "steps", "tokens" or "seconds".

    Returns:
        A plotly figure; evaluations with a divergence of 0 or less are not on the axis.
    """
    curves = []
    for run, style in zip(runs, run_styles(runs), strict=True):
        points = [p for p in _placed(run, axis, "reverse_kl") if (p.reverse_kl or 0) > 0]
        curves.append(_curve(points, axis, "reverse_kl", style))
    ticks = decade_ticks([height for curve in curves for height in curve["y"]])
    names = [f"{tick:g}" for tick in ticks]
    layout = base_layout(axis, "reverse KL (nats)", type="log", tickvals=ticks, ticktext=names)
    return {"data": curves, "layout": layout}


def plotly_text(text: str) -> str:
    """`text` so that plotly shows it as it is: no markup, no control characters."""
    return html.escape(plain(text), quote=False)


def _placed(run: Run, axis: str, field: str) -> list[Evaluation]:
    """Evaluations that have both coordinates."""
    names = (AXES[axis][0], field)
    points = evaluations(run)
    return [point for point in points if all(getattr(point, name) is not None for name in names)]


def _curve(points: Sequence[Evaluation], axis: str, field: str, style: Style) -> Figure:
    places = [(getattr(point, AXES[axis][0]), getattr(point, field)) for point in points]
    return marked_line(places, [_hover(point, style) for point in points], style)


def marked_line(
    places: Sequence[tuple[float, float]], hovers: Sequence[str], style: Style
) -> Figure:
    """A line with marks; `hovers` hold plotly's markup, with text from records escaped."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plotly_text(style.label),
        "legendgroup": plotly_text(style.label),
        "x": [x for x, _ in places],
        "y": [y for _, y in places],
        "line": {"color": style.color, "width": 2.5, "dash": style.dash},
        "marker": {"color": style.color, "size": 7, "symbol": style.symbol},
        "hoverinfo": "text",
        "hovertext": list(hovers),
    }


def _band(points: Sequence[Evaluation], axis: str, style: Style) -> list[Figure]:
    """Accuracy plus and minus one standard error, as a closed outline."""
    edges = [
        (getattr(p, AXES[axis][0]), p.accuracy, p.accuracy_se)
        for p in points
        if p.accuracy is not None and p.accuracy_se is not None
    ]
    if len(edges) < 2:
        return []
    upper = [(x, middle + error) for x, middle, error in edges]
    lower = [(x, middle - error) for x, middle, error in reversed(edges)]
    return [outline(upper + lower, style)]


def outline(corners: Sequence[tuple[float, float]], style: Style) -> Figure:
    """A closed, faintly filled outline in the colour of a curve, named by nothing."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in corners],
        "y": [y for _, y in corners],
        "fill": "toself",
        "fillcolor": faded(style.color, 0.14),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": plotly_text(style.label),
    }


def _ring(
    points: Sequence[Evaluation], axis: str, teacher: float | None, style: Style
) -> list[Figure]:
    """A ring around the first evaluation at 90 % of the teacher."""
    first = first_at(points, 90, teacher)
    if first is None:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [getattr(first, AXES[axis][0])],
            "y": [first.accuracy],
            "marker": {
                "size": 17,
                "color": "rgba(0,0,0,0)",
                "symbol": "circle",
                "line": {"color": style.color, "width": 2},
            },
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": plotly_text(style.label),
        }
    ]


def _hover(point: Evaluation, style: Style) -> str:
    lines = [f"<b>{plotly_text(style.label)}</b>, step {point.step:g}"]
    if point.accuracy is not None:
        error = "" if point.accuracy_se is None else f" ± {format_percent(point.accuracy_se, 2)}"
        lines.append(f"accuracy {format_percent(point.accuracy, 2)}{error}")
    if point.reverse_kl is not None:
        lines.append(f"reverse KL {point.reverse_kl:.4g} nats")
    lines.append(f"{format_cost('tokens', point.sampled_tokens)} sampled tokens")
    lines.append(f"{format_cost('seconds', point.elapsed_s)} s")
    return "<br>".join(lines)


def base_layout(axis: str, title: str, **y_axis: object) -> Figure:
    """Layout with titled axes, no marks yet; `y_axis` are settings of the vertical axis."""
    return {
        "xaxis": {"title": {"text": AXES[axis][1]}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": title}, **y_axis},
        "shapes": [],
        "annotations": [],
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "showlegend": True,
    }


def mark_teacher(layout: Figure, teacher: float | None) -> None:
    """Adds the level of the teacher and of 90 % of it to a layout, if it is known."""
    for share, name in ((1.0, "teacher"), (0.9, "90 %")):
        if teacher is not None:
            layout["shapes"].append(_level_line(share * teacher, share == 1.0))
            layout["annotations"].append(_level_name(share * teacher, name))


def _level_line(height: float, strong: bool) -> Figure:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": height,
        "y1": height,
        "layer": "below",
        "line": {"width": 1.5 if strong else 1, "dash": "solid" if strong else "dot"},
    }


def _level_name(height: float, name: str) -> Figure:
    return {
        "text": name,
        "xref": "paper",
        "x": 1.01,
        "xanchor": "left",
        "y": height,
        "yanchor": "middle",
        "showarrow": False,
        "font": {"size": 11},
    }


def decade_ticks(heights: Sequence[float]) -> list[float]:
    """Ticks at 1, 2 and 5 times powers of ten, or at the powers alone if that is many."""
    if not heights:
        return []
    first, last = math.floor(math.log10(min(heights))), math.floor(math.log10(max(heights)))
    steps = (1, 2, 5) if last - first < 4 else (1,)
    return [step * 10.0**power for power in range(first, last + 2) for step in steps]
