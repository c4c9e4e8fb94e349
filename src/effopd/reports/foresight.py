"""Foresight as the monitor saw it: do successive stretches of training point the same way?"""

from collections.abc import Sequence

from effopd.records import Run
from effopd.reports.figures import Figure, base_layout, marked_line, plotly_text
from effopd.reports.series import Look, looks
from effopd.reports.style import Style, run_styles

HOVER = (
    "step_cosine",
    "inertia",
    "straightness",
    "allocation_entropy",
    "spectral_share",
    "alignment",
)
"""Fields of a look that are read out, in this order."""


def foresight_figure(runs: Sequence[Run]) -> Figure:
    """Cosine of each stretch of training with the one before it, against the step.

    A ring marks the look at which foresight was lost.

    Args:
        runs: Any runs.

    Returns:
        A plotly figure; runs that were not watched have no curve in it.
    """
    curves, rings = [], []
    for run, style in zip(runs, run_styles(runs), strict=True):
        points = [(look, look.step_cosine) for look in looks(run)]
        known = [(look, cosine) for look, cosine in points if cosine is not None]
        if known:
            places = [(look.step, cosine) for look, cosine in known]
            curves.append(marked_line(places, [_hover(look, style) for look, _ in known], style))
            rings += _rings([(look.step, y) for look, y in known if look.is_alarm], style)
    layout = base_layout("steps", "cosine of successive stretches", range=[-1.05, 1.05])
    return {"data": curves + rings, "layout": layout}


def _rings(places: Sequence[tuple[float, float]], style: Style) -> list[Figure]:
    if not places:
        return []
    line = {"color": style.color, "width": 2}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [x for x, _ in places],
            "y": [y for _, y in places],
            "marker": {"size": 17, "color": "rgba(0,0,0,0)", "symbol": "circle", "line": line},
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": plotly_text(style.label),
        }
    ]


def _hover(look: Look, style: Style) -> str:
    lines = [f"<b>{plotly_text(style.label)}</b>, step {look.step:g}"]
    for name in HOVER:
        value = getattr(look, name)
        if value is not None:
            lines.append(f"{name.replace('_', ' ')} {value:.3f}")
    if look.is_alarm:
        lines.append("foresight is lost")
    return "<br>".join(lines)
