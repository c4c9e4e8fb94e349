"""PNG figures of a comparison, one panel per world."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from effopd.reports.aggregates import SettingRow, median_curve, unique
from effopd.reports.compare_figures import COST_TITLES, Curves, error_bar, steps_drawn
from effopd.reports.compare_tables import shown_lr
from effopd.reports.comparison import Comparison, at_rate, sweep_curves, variant_rows
from effopd.reports.figures import decade_ticks
from effopd.reports.png import accuracy_axis, line_look, save_figure
from effopd.reports.series import plain
from effopd.reports.style import Style
from effopd.reports.tables import format_lr

_PANEL_WIDTH, _PANEL_HEIGHT = 6.4, 4.2


def write_comparison_pngs(comparison: Comparison, directory: Path | str) -> list[Path]:
    """Write `accuracy_steps`, `accuracy_seconds`, `lr_sweep` and one file per figure of variants.

    Args:
        comparison: What to draw.
        directory: Where the files go; made if needed.

    Returns:
        The files written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    worlds = unique(cell.world for cell in comparison.cells)
    drawings: dict[str, Callable[[Any], None]] = {
        f"accuracy_{cost}": partial(_main, comparison=comparison, worlds=worlds, cost=cost)
        for cost in ("steps", "seconds")
    }
    for name in unique(cell.figure for cell in comparison.cells if cell.figure is not None):
        file = f"variants_{re.sub(r'[^A-Za-z0-9._-]', '-', name)[:60]}"
        while file in drawings:
            file += "-"
        drawings[file] = partial(_variants, comparison=comparison, worlds=worlds, name=name)
    paths = []
    for file, draw in drawings.items():
        paths.append(directory / f"{file}.png")
        save_figure(paths[-1], draw, (_PANEL_WIDTH * len(worlds), _PANEL_HEIGHT))
    paths.append(directory / "lr_sweep.png")
    size = (2 * _PANEL_WIDTH, _PANEL_HEIGHT * len(worlds))
    save_figure(paths[-1], lambda figure: _sweeps(figure, comparison, worlds), size)
    return paths


def _main(figure: Any, comparison: Comparison, worlds: Sequence[str], cost: str) -> None:
    summary = comparison.summary
    rate = shown_lr(summary)
    panels = figure.subplots(1, len(worlds), squeeze=False)[0]
    for axes, world in zip(panels, worlds, strict=True):
        rows = at_rate(summary, world, rate)
        _curves(axes, comparison.curves(rows), cost, _teacher(rows))
        _title(axes, f"{plain(world)}, learning rate {format_lr(rate)}")


def _variants(figure: Any, comparison: Comparison, worlds: Sequence[str], name: str) -> None:
    summary = comparison.summary
    panels = figure.subplots(1, len(worlds), squeeze=False)[0]
    for axes, world in zip(panels, worlds, strict=True):
        rows = variant_rows(summary, comparison, name, world)
        _curves(axes, comparison.curves(rows), "steps", _teacher(rows))
        _title(axes, f"{plain(world)}, {plain(name)}")


def _sweeps(figure: Any, comparison: Comparison, worlds: Sequence[str]) -> None:
    summary, styles = comparison.summary, comparison.styles
    panels = figure.subplots(len(worlds), 2, squeeze=False)
    for (left, right), world in zip(panels, worlds, strict=True):
        rows = [r for r in summary["rows"] if r["world"] == world and r["figure"] is None]
        _curves(left, sweep_curves(comparison, summary, world), "steps", _teacher(rows))
        _title(left, plain(world))
        _rates(right, rows, [styles[row["method"]] for row in rows])
        _title(right, plain(world))


def _curves(axes: Any, curves: Curves, cost: str, teacher: float | None) -> None:
    for style, cells in curves:
        points = median_curve(cells, cost)
        places = [point.place for point in points]
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(places, low, high, color=style.color, alpha=0.15, linewidth=0)
        axes.plot(places, [point.middle for point in points], **_look(style))
    accuracy_axis(axes, teacher)
    axes.set_xlim(left=0)
    axes.set_xlabel(COST_TITLES[cost])
    axes.set_ylabel("accuracy")
    if curves:
        axes.legend(loc="lower right", fontsize=8.5)


def _rates(axes: Any, rows: Sequence[SettingRow], styles: Sequence[Style]) -> None:
    axes.set_xlabel("learning rate")
    axes.set_ylabel("steps to 90 % of the teacher (open: not reached)")
    drawn = [(row, style) for row, style in zip(rows, styles, strict=True) if steps_drawn(row)]
    if not drawn:
        return
    _rate_axes(axes, [row for row, _ in drawn])
    for style in {style.label: style for _, style in drawn}.values():
        own = [row for row, each in drawn if each == style]
        rates, heights = [row["lr"] for row in own], [steps_drawn(row) for row in own]
        bars = list(zip(*(error_bar(row) for row in own), strict=True))
        look = _look(style)
        axes.errorbar(rates, heights, yerr=bars, elinewidth=0.8, capsize=2, **look)
        for row in own:
            if row["median_steps_to_90"] is None:
                face = {"markerfacecolor": "white", "markersize": 6, "zorder": 4}
                axes.plot(row["lr"], steps_drawn(row), **(look | {"label": None} | face))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5)


def _rate_axes(axes: Any, rows: Sequence[SettingRow]) -> None:
    """Logarithmic axes around what is drawn, set before it: a single point has no range."""
    rates = sorted({row["lr"] for row in rows})
    ends = [
        steps_drawn(row) + offset
        for row in rows
        for down, up in [error_bar(row)]
        for offset in (-down, up)
    ]
    low, high = min(end for end in ends if end > 0) / 1.3, max(ends) * 1.3
    ticks = [tick for tick in decade_ticks([low, high]) if low <= tick <= high]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(rates[0] / 1.3, rates[-1] * 1.3)
    axes.set_ylim(low, high)
    axes.set_xticks(rates, [format_lr(rate) for rate in rates])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _teacher(rows: Sequence[SettingRow]) -> float | None:
    return next((row["teacher_accuracy"] for row in rows), None)


def _look(style: Style) -> dict[str, Any]:
    """A marked line whose name leaves room for the panel."""
    look = line_look(style)
    return look | {"label": _short(look["label"], 28)}


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _title(axes: Any, text: str) -> None:
    axes.set_title(_short(text, 60), loc="left", fontsize=10, fontweight="bold")
