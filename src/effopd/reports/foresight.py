"""Foresight as the monitor saw it: do successive displacements by training point the same way?"""

from collections.abc import Sequence

from effopd.records import Run
from effopd.reports.figures import Figure, base_layout, marked_line, plotly_text
from effopd.reports.series import observations
from effopd.reports.style import run_styles


def foresight_figure(runs: Sequence[Run]) -> Figure:
    """Plots the cosine of each displacement with the one before it against the step.

    A ring marks where foresight was lost; runs without the monitor have no curve.
    """
    curves, rings = [], []
    for run, style in zip(runs, run_styles(runs), strict=True):
        rows = [row for row in observations(run) if row.step_cosine is not None]
        if not rows:
            continue
        hovers = []
        for row in rows:
            lines = [f"<b>{plotly_text(style.label)}</b>, step {row.step:g}"]
            for name in ("step_cosine", "inertia", "straightness"):
                value = getattr(row, name)
                if value is not None:
                    lines.append(f"{name.replace('_', ' ')} {value:.3f}")
            hovers.append("<br>".join([*lines, *["foresight is lost"] * row.is_alarm]))
        points = [(row.step, row.step_cosine or 0.0) for row in rows]
        curves.append(marked_line(points, hovers, style))
        lost = [point for point, row in zip(points, rows, strict=True) if row.is_alarm]
        if lost:
            line = {"color": style.color, "width": 2}
            rings.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [x for x, _ in lost],
                    "y": [y for _, y in lost],
                    "marker": {"size": 17, "color": "rgba(0,0,0,0)", "line": line},
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": plotly_text(style.label),
                }
            )
    layout = base_layout("steps", "cosine of successive displacements", range=[-1.05, 1.05])
    return {"data": curves + rings, "layout": layout}
