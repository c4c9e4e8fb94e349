"""PNG copies of the figures, drawn with matplotlib without a display."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from effopd.errors import MissingExtraError
from effopd.records import Run
from effopd.reports.figures import AXES, decade_ticks
from effopd.reports.series import Trial, evaluations, teacher_accuracy, trials
from effopd.reports.style import BETTER, NEUTRAL, WORSE, Style, run_styles
from effopd.reports.summary import first_at
from effopd.reports.timeline import advantage_color, advantage_limit, scale_ticks, trial_kinds

_DPI = 200
_INK, MUTED, _GRID, _THIN = "#1D1F22", "#5D6268", "#E5E2DB", "#8A8A8A"
_MARKS: dict[str, Any] = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "x": "X",
    "triangle-left": "<",
    "triangle-right": ">",
    "pentagon": "p",
    "hexagon": "h",
    "star": "*",
    "octagon": "8",
    "diamond-tall": "d",
    "hexagram": (6, 1, 0),
}
_LINES = {
    "solid": "-",
    "dash": (0, (5, 2)),
    "dot": (0, (1, 1.5)),
    "dashdot": "-.",
    "longdash": (0, (9, 2)),
}


def write_pngs(runs: Sequence[Run], directory: Path | str) -> list[Path]:
    """Write `accuracy_steps`, `accuracy_tokens`, `reverse_kl_steps` and `search` as PNG files.

    Args:
        runs: Runs against the same teacher, at least one.
        directory: Where the files go, 200 dots per inch; made if needed.

    Returns:
        The files written; `search.png` is among them only if a run searched.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    drawings: list[tuple[str, Callable[[Any], None], tuple[float, float]]] = [
        ("accuracy_steps", lambda figure: _accuracy(figure, runs, "steps"), (6.4, 4.0)),
        ("accuracy_tokens", lambda figure: _accuracy(figure, runs, "tokens"), (6.4, 4.0)),
        ("reverse_kl_steps", lambda figure: _reverse_kl(figure, runs), (6.4, 4.0)),
    ]
    searching = [
        (run, style) for run, style in zip(runs, run_styles(runs), strict=True) if any(trials(run))
    ]
    if searching:
        size = (6.4, 1.0 + 2.2 * len(searching))
        drawings.append(("search", lambda figure: _searches(figure, searching), size))
    paths = []
    for name, draw, size in drawings:
        path = directory / f"{name}.png"
        save_figure(path, draw, size)
        paths.append(path)
    return paths


def save_figure(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> None:
    """Draw on a fresh figure of `size` inches and store it as PNG, 200 dots per inch.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib, which is not installed: pip install 'effopd[report]'"
        ) from error
    look = {
        "font.size": 10,
        "text.color": _INK,
        "text.parse_math": False,  # a label may hold dollar signs
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "ytick.left": False,
        "ytick.minor.left": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(look), warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes; that is no reason to stop.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(path)


def _accuracy(figure: Any, runs: Sequence[Run], axis: str) -> None:
    axes = figure.subplots()
    field, title = AXES[axis]
    teacher = teacher_accuracy(runs)
    for run, style in zip(runs, run_styles(runs), strict=True):
        points = [p for p in evaluations(run) if None not in (p.accuracy, getattr(p, field))]
        heights = [p.accuracy or 0.0 for p in points]
        errors = [p.accuracy_se or 0.0 for p in points]
        places = [getattr(p, field) for p in points]
        lower = [height - error for height, error in zip(heights, errors, strict=True)]
        upper = [height + error for height, error in zip(heights, errors, strict=True)]
        axes.fill_between(places, lower, upper, color=style.color, alpha=0.15, linewidth=0)
        axes.plot(places, heights, **line_look(style))
        first = first_at(points, 90, teacher)
        if first is not None:
            _ring(axes, getattr(first, field), first.accuracy, style)
    accuracy_axis(axes, teacher)
    _finish(axes, title, "accuracy", axis)


def _reverse_kl(figure: Any, runs: Sequence[Run]) -> None:
    axes = figure.subplots()
    heights: list[float] = []
    for run, style in zip(runs, run_styles(runs), strict=True):
        points = [p for p in evaluations(run) if (p.reverse_kl or 0) > 0]
        axes.plot([p.step for p in points], [p.reverse_kl for p in points], **line_look(style))
        heights += [p.reverse_kl for p in points if p.reverse_kl]
    if heights:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ticks = [tick for tick in decade_ticks(heights) if low <= tick <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    _finish(axes, AXES["steps"][1], "reverse KL (nats)", "steps")


def _searches(figure: Any, searching: Sequence[tuple[Run, Style]]) -> None:
    """One panel per run, over the same steps."""
    looks: dict[str, dict[str, Any]] = {}
    panels = figure.subplots(len(searching), sharex=True, squeeze=False)[:, 0]
    for axes, (run, style) in zip(panels, searching, strict=True):
        found = list(trials(run))
        limit = advantage_limit(found)
        ticks = scale_ticks(found)
        lowest = min((trial.scale for trial in found if trial.scale > 0), default=1.0)
        axes.set_yscale("log", base=2)
        for name, _, members in trial_kinds(found):
            looks.setdefault(name, _trial_look(members[0], NEUTRAL))
            for trial in members:
                look = _trial_look(trial, advantage_color(trial, limit))
                axes.plot(trial.step, max(trial.scale, lowest / 2), ls="none", **look)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylabel("scale")
        axes.margins(y=0.12)
        axes.set_title(style.label, loc="left", fontsize=10, fontweight="bold")
        _scale_bar(figure, axes, limit)
    _search_legend(figure, looks)
    last = max((row.get("step", 0) for run, _ in searching for row in run.evals), default=0)
    panels[-1].set_xlim(0, max(last, *panels[-1].get_xlim()))
    panels[-1].set_xlabel(AXES["steps"][1])


def _trial_look(trial: Trial, color: str) -> dict[str, Any]:
    edge = {"markeredgecolor": "#777777", "markeredgewidth": 0.6, "markerfacecolor": color}
    if trial.kind.endswith("incumbent"):
        return {"marker": "_", "color": _THIN, "markersize": 9, "markeredgewidth": 1.6}
    if trial.accepted:
        return {"marker": "*", "markersize": 14, "zorder": 4, **edge}
    if trial.score is None:
        return {"marker": "x", "color": _THIN, "markersize": 6, "markeredgewidth": 1.6}
    if trial.kind.startswith("retest"):
        return {**edge, "marker": "o", "markersize": 15, "markerfacecolor": "none"}
    return {"marker": "o", "markersize": 6.5, "zorder": 3, **edge}


def _scale_bar(figure: Any, axes: Any, limit: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colors = LinearSegmentedColormap.from_list("gain", [WORSE, NEUTRAL, BETTER])
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), colors), ax=axes, aspect=18)
    bar.outline.set_visible(False)
    bar.ax.set_title("gain", fontsize=8, color=MUTED)
    bar.set_ticks([-limit, 0, limit], labels=[f"-{limit:.2g}", "0", f"+{limit:.2g}"])
    bar.ax.tick_params(labelsize=8, length=0)


def _search_legend(figure: Any, looks: dict[str, dict[str, Any]]) -> None:
    """Marks of the search panels, below the last one."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="none", label=name, **{**look, "zorder": 3})
        for name, look in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), markerscale=0.7)


def line_look(style: Style) -> dict[str, Any]:
    """Keywords of matplotlib for a marked line in a style."""
    return {
        "color": style.color,
        "marker": _MARKS[style.symbol],
        "linestyle": _LINES[style.dash],
        "linewidth": 1.8,
        "markersize": 4,
        # A leading underscore would hide the label from the legend.
        "label": style.label if not style.label.startswith("_") else f" {style.label}",
        "zorder": 3,
        "clip_on": False,
    }


def _ring(axes: Any, x: float, y: float | None, style: Style) -> None:
    axes.plot(x, y, "o", ms=11, mfc="none", mec=style.color, mew=1.4, zorder=4)


def accuracy_axis(axes: Any, teacher: float | None) -> None:
    """A vertical axis in percent from 0, with the level of the teacher and of 90 % of it."""
    for share, name in ((1.0, "teacher"), (0.9, "90 %")):
        if teacher is not None:
            solid = share == 1.0
            axes.axhline(share * teacher, color=MUTED, lw=0.9, ls="-" if solid else ":", zorder=1)
            _margin_note(axes, share * teacher, name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _margin_note(axes: Any, height: float, name: str) -> None:
    axes.annotate(
        name,
        (1.01, height),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8.5,
        color=MUTED,
        annotation_clip=False,
    )


def _finish(axes: Any, x_title: str, y_title: str, axis: str) -> None:
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    axes.set_xlim(left=0)
    if axis == "tokens":
        axes.xaxis.set_major_formatter(_engineering())
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)


def _engineering() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep=" ")
