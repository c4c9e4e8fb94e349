"""The search timeline: every trial of a run, when it was made, how far it went, how it scored."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from effopd.records import Run
from effopd.reports.figures import Figure, base_layout, plotly_text
from effopd.reports.series import Evaluation, Trial, evaluations, trials
from effopd.reports.style import BETTER, NEUTRAL, WORSE, blended
from effopd.reports.tables import format_cost, format_percent

MOST_JUMPS = 8
"""Accepted jumps listed one by one in a sentence."""


def search_figure(run: Run) -> Figure:
    """Every trial of a run: step, scale (logarithmic), and colour for its score.

    The colour is the score minus that of the incumbent of the same search, cut off at the largest
    gain so that a candidate that broke down does not wash out the others.

    Args:
        run: A run that searched.

    Returns:
        A plotly figure with no traces if there was no search.
    """
    found = list(trials(run))
    lowest = min((trial.scale for trial in found if trial.scale > 0), default=1.0)
    limit = advantage_limit(found)
    traces = []
    for name, marker, chosen in trial_kinds(found):
        traces.append(_trial_trace(name, marker, chosen, lowest / 2, limit))
    if found:
        traces.append(_color_bar(limit))
    ticks = scale_ticks(found)
    names = [f"{tick:g}" for tick in ticks]
    layout = base_layout("steps", "scale", type="log", tickvals=ticks, ticktext=names)
    last = max((row.get("step", 0) for row in [*run.evals, *run.search]), default=0)
    layout["xaxis"]["range"] = [0, last * 1.03]
    return {"data": traces, "layout": layout}


def advantage_limit(found: Sequence[Trial]) -> float:
    """Where the colour scale of a search ends, in units of the score; always above 0.

    It is the larger of the largest gain and the median size of all advantages.
    """
    values = [trial.advantage for trial in found if trial.advantage is not None]
    sizes = sorted(map(abs, values))
    limit = max([*values, sizes[len(sizes) // 2] if sizes else 0.0], default=0.0)
    return limit if limit > 0 else 1.0


def advantage_color(trial: Trial, limit: float) -> str:
    """Hexadecimal colour of a trial: vermillion is worse than its incumbent, blue is better.

    Args:
        trial: Any trial; incumbents and trials without a score are grey.
        limit: Advantage at the end of the scale, see `advantage_limit`.
    """
    if _incumbents(trial) or trial.score is None:
        return "#8A8A8A"
    share = max(-1.0, min(1.0, (trial.advantage or 0.0) / limit))
    return blended(NEUTRAL, BETTER if share > 0 else WORSE, abs(share))


def search_sentence(run: Run) -> str:
    """How often a run searched, what it accepted, and what share of its cost searching was."""
    found = list(trials(run))
    if not found:
        return "This run did not search."
    searches = len({trial.step for trial in found})
    accepted = _accepted_scales({t.step: t.scale for t in found if t.accepted})
    points = evaluations(run)
    shares = [
        f"{format_percent(spent / total, 0)} of the {thing}"
        for thing, spent, total in (
            ("sampled tokens", sum(t.tokens or 0 for t in found), _last(points, "sampled_tokens")),
            ("time", sum(t.seconds or 0 for t in found), _last(points, "elapsed_s")),
        )
        if total and spent <= total
    ]
    cost = f" Searching took {' and '.join(shares)}." if shares else ""
    return f"{_count(searches, 'search')}, {_count(len(found), 'trial')}; {accepted}.{cost}"


def _accepted_scales(ends: Mapping[float, float]) -> str:
    """Where searches ended, from step to the last accepted scale; summed up if there are many."""
    if not ends:
        return "no candidate was accepted"
    if len(ends) <= MOST_JUMPS:
        jumps = ", ".join(f"{scale:g} at step {step:g}" for step, scale in ends.items())
        return f"accepted scales: {jumps}"
    low, high = min(ends.values()), max(ends.values())
    middle = median(ends.values())
    return f"{len(ends)} ended beyond the tip, at scales {low:g} to {high:g} (median {middle:g})"


def _last(points: Sequence[Evaluation], name: str) -> float | None:
    return getattr(points[-1], name) if points else None


def _count(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("ch") else "s"
    return f"{count} {noun}{'' if count == 1 else plural}"


def trial_kinds(found: Sequence[Trial]) -> list[tuple[str, Figure, list[Trial]]]:
    """Name, marker and members of each kind of trial that occurs, the ones in front last."""
    edge = {"color": "rgba(120,120,120,0.9)", "width": 1}
    groups = (
        ("incumbent", {"symbol": "line-ew-open", "size": 14, "line": {"width": 2}}, _incumbents),
        ("retest", {"symbol": "circle-open", "size": 22, "line": {"width": 2}}, _retests),
        ("rejected", {"symbol": "circle", "size": 10, "line": edge}, _rejected),
        ("not finite", {"symbol": "x-thin-open", "size": 9, "line": {"width": 2}}, _broken),
        ("accepted", {"symbol": "star", "size": 18, "line": edge}, _accepted),
    )
    chosen = [(name, marker, [t for t in found if belongs(t)]) for name, marker, belongs in groups]
    return [group for group in chosen if group[2]]


def _incumbents(trial: Trial) -> bool:
    return trial.kind.endswith("incumbent")


def _accepted(trial: Trial) -> bool:
    return trial.accepted is True


def _retests(trial: Trial) -> bool:
    return trial.kind == "retest-candidate" and not trial.accepted


def _broken(trial: Trial) -> bool:
    return trial.kind == "candidate" and trial.score is None and not trial.accepted


def _rejected(trial: Trial) -> bool:
    kinds = (_incumbents, _accepted, _retests, _broken)
    return not any(belongs(trial) for belongs in kinds)


def _trial_trace(
    name: str, marker: Figure, chosen: Sequence[Trial], floor: float, limit: float
) -> Figure:
    """One kind of trial; a scale of 0 or less is drawn at `floor`."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [trial.step for trial in chosen],
        "y": [max(trial.scale, floor) for trial in chosen],
        "marker": {**marker, "color": [advantage_color(trial, limit) for trial in chosen]},
        "hoverinfo": "text",
        "hovertext": [_trial_hover(trial) for trial in chosen],
    }


def _color_bar(limit: float) -> Figure:
    """A trace without points that shows the scale of colours."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "hoverinfo": "skip",
        "showlegend": False,
        "marker": {
            "color": [0],
            "cmin": -limit,
            "cmax": limit,
            "colorscale": [[0, WORSE], [0.5, NEUTRAL], [1, BETTER]],
            "showscale": True,
            "colorbar": {"title": {"text": "gain"}, "thickness": 10, "outlinewidth": 0},
        },
    }


def _trial_hover(trial: Trial) -> str:
    error = "" if trial.score_se is None else f" ± {trial.score_se:.3g}"
    lines = [f"<b>step {trial.step:g}, scale {trial.scale:g}</b>", plotly_text(trial.kind)]
    if trial.score is not None:
        lines.append(f"score {trial.score:.4g}{error}")
    if trial.advantage is not None and not _incumbents(trial):
        lines.append(f"{trial.advantage:+.4g} against the incumbent")
    if trial.reason:
        text = trial.reason if len(trial.reason) <= 90 else trial.reason[:89] + "…"
        lines.append(plotly_text(text))
    cost = f"{format_cost('tokens', trial.tokens)} tokens, "
    lines.append(cost + f"{format_cost('seconds', trial.seconds)} s")
    return "<br>".join(lines)


def scale_ticks(found: Sequence[Trial]) -> list[float]:
    """Ticks at the scales that were tried, or at powers of two if those are more than eight."""
    scales = sorted({trial.scale for trial in found if trial.scale > 0})
    if len(scales) <= 8:
        return scales
    first, last = math.floor(math.log2(scales[0])), math.ceil(math.log2(scales[-1]))
    return [2.0**power for power in range(first, last + 1)]
