"""Figures against the steps of a run: its trials of scales, and foresight as the monitor saw it."""

import math
from collections.abc import Sequence
from statistics import median

from effopd.records import Run
from effopd.reports.figures import Figure, base_layout, marked_line, plotly_text, ring
from effopd.reports.series import Trial, evaluations, number, plain, required, trials
from effopd.reports.style import BETTER, NEUTRAL, WORSE, blended, run_styles
from effopd.reports.tables import format_cost, format_percent

MOST_JUMPS = 8
"""Accepted jumps listed one by one in a sentence."""

HEALTH_AXES: dict[str, tuple[str, Figure]] = {
    "overlap": ("overlap of the likeliest tokens", {"range": [0, 1.05], "tickformat": ".0%"}),
    "entropy_gap": ("entropy, student minus teacher (nats)", {}),
}
"""Title and vertical axis of each figure of a distillation's health."""

STEP_AXES: dict[str, tuple[str, Figure]] = {
    "reverse_kl": ("reverse KL (nats)", {}),
    "reward": ("mean reward", {}),
    "loss": ("loss", {}),
    "mean_length": ("tokens in an answer", {"rangemode": "tozero"}),
    "truncated_share": ("share of truncated answers", {"range": [0, 1.05], "tickformat": ".0%"}),
    "entropy": ("entropy of the student (nats)", {}),
    "grad_norm": ("norm of the gradient", {"rangemode": "tozero"}),
    "lr": ("learning rate", {"tickformat": ".1e"}),
}
"""Title and vertical axis of the quantities of a training step that a page offers."""

MOST_POINTS = 500
"""Steps of a curve of every training step; of longer runs, evenly spaced ones are drawn."""

MOST_ALARMS = 20

_EDGE = {"color": "rgba(120,120,120,0.9)", "width": 1}
_MARKERS: dict[str, Figure] = {
    "incumbent": {"symbol": "line-ew-open", "size": 14, "line": {"width": 2}},
    "rejected": {"symbol": "circle", "size": 10, "line": _EDGE},
    "not scored": {"symbol": "x-thin-open", "size": 9, "line": {"width": 2}},
    "accepted": {"symbol": "star", "size": 18, "line": _EDGE},
}
"""How each kind of trial is drawn, the ones in front last."""


def search_figure(run: Run) -> Figure:
    """Every trial of a run: step, scale (logarithmic), and colour for its score.

    The colour is the score minus that of the incumbent of the same search, cut off at the largest
    gain so that a candidate that broke down does not wash out the others. A scale of 0 or less is
    drawn at half the lowest. No traces if there was no search.
    """
    found = list(trials(run))
    floor = min((trial.scale for trial in found if trial.scale > 0), default=1.0) / 2
    limit = advantage_limit(found)
    traces: list[Figure] = []
    for kind, marker in _MARKERS.items():
        if chosen := [trial for trial in found if _kind(trial) == kind]:
            traces.append({
                "type": "scatter", "mode": "markers", "name": kind,
                "x": [trial.step for trial in chosen],
                "y": [max(trial.scale, floor) for trial in chosen],
                "marker": {**marker, "color": [advantage_color(t, limit) for t in chosen]},
                "hoverinfo": "text", "hovertext": list(map(_hover, chosen)),
            })  # fmt: skip
    if found:  # a trace without points that shows the scale of colours
        bar = {"title": {"text": "gain"}, "thickness": 10, "outlinewidth": 0}
        colors = [[0, WORSE], [0.5, NEUTRAL], [1, BETTER]]
        scale: Figure = {"color": [0], "cmin": -limit, "cmax": limit, "colorscale": colors}
        traces.append({
            "type": "scatter", "mode": "markers", "x": [None], "y": [None], "hoverinfo": "skip",
            "showlegend": False, "marker": {**scale, "showscale": True, "colorbar": bar},
        })  # fmt: skip
    ticks = scale_ticks(found)
    names = [f"{tick:g}" for tick in ticks]
    layout = base_layout("steps", "scale", type="log", tickvals=ticks, ticktext=names)
    last = max((row.get("step", 0) for row in [*run.evals, *run.search]), default=0)
    layout["xaxis"]["range"] = [0, last * 1.03]
    return {"data": traces, "layout": layout}


def _kind(trial: Trial) -> str:
    if trial.kind.endswith("incumbent"):
        return "incumbent"
    if trial.accepted:
        return "accepted"
    return "not scored" if trial.kind == "candidate" and trial.score is None else "rejected"


def advantage_limit(found: Sequence[Trial]) -> float:
    """The larger of the largest gain and the median size of all advantages; always above 0."""
    values = [trial.advantage for trial in found if trial.advantage is not None]
    sizes = sorted(map(abs, values))
    limit = max([*values, sizes[len(sizes) // 2] if sizes else 0.0], default=0.0)
    return limit if limit > 0 else 1.0


def advantage_color(trial: Trial, limit: float) -> str:
    """Vermillion is worse than the incumbent, blue is better; what has no advantage is grey."""
    if _kind(trial) == "incumbent" or trial.score is None:
        return "#8A8A8A"
    share = max(-1.0, min(1.0, (trial.advantage or 0.0) / limit))
    return blended(NEUTRAL, BETTER if share > 0 else WORSE, abs(share))


def scale_ticks(found: Sequence[Trial]) -> list[float]:
    """Ticks at the scales that were tried, or at powers of two if those are more than eight."""
    scales = sorted({trial.scale for trial in found if trial.scale > 0})
    if len(scales) <= 8:
        return scales
    first, last = math.floor(math.log2(scales[0])), math.ceil(math.log2(scales[-1]))
    return [2.0**power for power in range(first, last + 1)]


def _hover(trial: Trial) -> str:
    error = "" if trial.score_se is None else f" ± {trial.score_se:.3g}"
    lines = [f"<b>step {trial.step:g}, scale {trial.scale:g}</b>", plotly_text(trial.kind)]
    if trial.score is not None:
        lines.append(f"score {trial.score:.4g}{error}")
    if trial.advantage is not None and _kind(trial) != "incumbent":
        lines.append(f"{trial.advantage:+.4g} against the incumbent")
    if trial.reason:
        text = trial.reason if len(trial.reason) <= 90 else trial.reason[:89] + "…"
        lines.append(plotly_text(text))
    cost = f"{format_cost('tokens', trial.tokens)} tokens, "
    return "<br>".join([*lines, cost + f"{format_cost('seconds', trial.seconds)} s"])


def search_sentence(run: Run) -> str:
    """How often a run searched, what it accepted, and what share of its cost searching was."""
    found = list(trials(run))
    if not found:
        return "This run did not search."
    searches = len({trial.step for trial in found})
    ends = {trial.step: trial.scale for trial in found if trial.accepted}
    jumps = ", ".join(f"{scale:g} at step {step:g}" for step, scale in ends.items())
    accepted = f"accepted scales: {jumps}" if ends else "no candidate was accepted"
    if len(ends) > MOST_JUMPS:
        low, middle, high = min(ends.values()), median(ends.values()), max(ends.values())
        scales = f"at scales {low:g} to {high:g} (median {middle:g})"
        accepted = f"{len(ends)} ended beyond the tip, {scales}"
    points = evaluations(run)
    spent = {"sampled tokens": sum(trial.tokens or 0 for trial in found)}
    spent["time"] = sum(trial.seconds or 0 for trial in found)
    totals = (points[-1].sampled_tokens, points[-1].elapsed_s) if points else (None, None)
    shares = [
        f"{format_percent(part / total, 0)} of the {thing}"
        for (thing, part), total in zip(spent.items(), totals, strict=True)
        if total and part <= total
    ]
    cost = f" Searching took {' and '.join(shares)}." if shares else ""
    many = f"{searches} search{'' if searches == 1 else 'es'}, "
    return f"{many}{len(found)} trial{'' if len(found) == 1 else 's'}; {accepted}.{cost}"


def foresight_figure(runs: Sequence[Run]) -> Figure:
    """The cosine of each displacement by training with the one before it, against the step.

    A ring marks where foresight was lost; runs without the monitor have no curve.
    """
    curves, rings = [], []
    for run, style in zip(runs, run_styles(runs), strict=True):
        points, hovers, lost = [], [], []
        for row in run.monitor:
            step, cosine = required(row, "step", run), number(row, "step_cosine", run)
            if cosine is None:
                continue
            lines = [f"<b>{plotly_text(style.label)}</b>, step {step:g}"]
            for name in ("step_cosine", "inertia", "straightness"):
                if (value := number(row, name, run)) is not None:
                    lines.append(f"{name.replace('_', ' ')} {value:.3f}")
            if row.get("alarms"):
                lines.append("foresight is lost")
                lost.append((step, cosine))
            points.append((step, cosine))
            hovers.append("<br>".join(lines))
        curves += [marked_line(points, hovers, style)] if points else []
        rings += [ring(lost, style)] if lost else []
    layout = base_layout("steps", "cosine of successive displacements", range=[-1.05, 1.05])
    return {"data": curves + rings, "layout": layout}


def step_figure(runs: Sequence[Run], quantity: str) -> Figure:
    """A quantity of `STEP_AXES` or `HEALTH_AXES` of every training step; no curve where unknown.

    Where a point is pointed at, it says the quantity by tenths of the answers' length if recorded.
    """
    curves = []
    for run, style in zip(runs, run_styles(runs), strict=True):
        points, hovers = [], []
        known = [row for row in run.metrics if number(row, quantity, run) is not None]
        stride = math.ceil(len(known) / MOST_POINTS)
        for row in known[(len(known) - 1) % stride :: stride] if known else []:  # the last one too
            value = required(row, quantity, run)
            step, tenths = required(row, "step", run), row.get(f"{quantity}_by_decile")
            lines = [f"<b>{plotly_text(style.label)}</b>, step {step:g}"]
            lines.append(f"{quantity.replace('_', ' ')} {value:.3g}")
            if isinstance(tenths, list):
                texts = ["-" if tenth is None else f"{tenth:.2g}" for tenth in tenths]
                lines.append(plotly_text(f"by tenths {' '.join(texts)}"))
            points.append((step, value))
            hovers.append("<br>".join(lines))
        curves += [marked_line(points, hovers, style)] if points else []
    title, axis = (HEALTH_AXES | STEP_AXES)[quantity]
    return {"data": curves, "layout": base_layout("steps", title, **axis)}


def alarms(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What runs gave alarm about, the latest step first: look, label, step and text of each."""
    found: list[tuple[float, dict[str, str]]] = []
    for run, style in zip(runs, run_styles(runs), strict=True):
        for row in [*run.metrics, *run.monitor]:
            said = row.get("alarms")
            texts = [str(text) for text in said] if isinstance(said, list) else []
            texts += [f"update skipped: {row['skipped']}"] if row.get("skipped") else []
            step = required(row, "step", run) if texts else 0.0
            look = {"label": style.label, "color": style.color, "step": f"{step:g}"}
            found += [(step, look | {"text": plain(text)}) for text in texts]
    return [alarm for _, alarm in sorted(found, key=lambda each: -each[0])]
