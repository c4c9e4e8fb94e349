"""PNG copies of figures: plotly dicts drawn with matplotlib, without a display."""

import html
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effopd.errors import MissingExtraError
from effopd.records import Run
from effopd.reports.comparison import Comparison
from effopd.reports.figures import Figure, accuracy_figure, rates_figure, reverse_kl_figure
from effopd.reports.series import plain, trials
from effopd.reports.style import run_styles
from effopd.reports.summary import teacher_of
from effopd.reports.tables import format_lr
from effopd.reports.timeline import search_figure

SIZE = (6.4, 4.0)
"""Inches of one panel."""

_POINTS = 0.62
"""Size of a mark in points, of plotly's in pixels."""
_DPI = 200
_INK, _MUTED, _GRID = "#1D1F22", "#5D6268", "#E5E2DB"
_MARKS: dict[str, Any] = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v",
    "triangle-left": "<", "triangle-right": ">", "cross": "P", "x": "X", "x-thin": "x",
    "line-ew": "_", "pentagon": "p", "hexagon": "h", "star": "*", "octagon": "8",
    "diamond-tall": "d", "hexagram": (6, 1, 0),
}  # fmt: skip
_LINES = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": "-.",
    "longdash": (0, (9, 2)),
}  # fmt: skip
_LOOK = {
    "font.size": 10, "text.color": _INK, "axes.labelcolor": _MUTED, "axes.edgecolor": _MUTED,
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": _GRID,
    "grid.linewidth": 0.8, "xtick.color": _MUTED, "ytick.color": _MUTED, "ytick.left": False,
    "ytick.minor.left": False, "legend.frameon": False, "legend.fontsize": 8.5,
}  # fmt: skip


def write_pngs(runs: Sequence[Run], directory: Path | str) -> list[Path]:
    """Writes `accuracy_steps`, `accuracy_tokens`, `reverse_kl_steps`, and `search` if one ran."""
    comparison = Comparison.of_runs(runs, "report")
    rows = comparison.rows("")
    curves = comparison.curves(rows)
    sheets: dict[str, Sequence[Sequence[Figure]]] = {
        f"accuracy_{cost}": [[accuracy_figure(curves, cost, teacher_of(rows))]]
        for cost in ("steps", "tokens")
    }
    sheets["reverse_kl_steps"] = [[reverse_kl_figure(curves, "steps")]]
    labelled = zip(runs, (style.label for style in run_styles(runs)), strict=True)
    searches = [[_titled(search_figure(r), label)] for r, label in labelled if any(trials(r))]
    sheets |= {"search": searches} if searches else {}
    return write_sheets(sheets, directory)


def write_comparison_pngs(comparison: Comparison, directory: Path | str) -> list[Path]:
    """Writes `accuracy_steps`, `accuracy_seconds`, `lr_sweep` and one file a figure of variants."""

    def panel(world: str, rows: list[dict[str, Any]], cost: str, title: str) -> Figure:
        figure = accuracy_figure(comparison.curves(rows), cost, teacher_of(rows))
        return _titled(figure, f"{plain(world)}, {title}")

    lr, worlds = comparison.shown_lr, comparison.worlds
    sheets: dict[str, list[list[Figure]]] = {}
    for cost in ("steps", "seconds"):
        title = f"learning rate {format_lr(lr)}"
        row = [panel(world, comparison.rows(world, lr), cost, title) for world in worlds]
        sheets[f"accuracy_{cost}"] = [row]
    for name in comparison.figures:
        file = f"variants_{re.sub(r'[^A-Za-z0-9._-]', '-', name)[:60]}"
        while file in sheets:
            file += "-"
        variants = {world: comparison.variant_rows(name, world) for world in worlds}
        row = [panel(world, rows, "steps", plain(name)) for world, rows in variants.items()]
        sheets[file] = [row]
    sheets["lr_sweep"] = []
    for world in worlds:
        rows = comparison.rows(world)
        sweep = accuracy_figure(comparison.sweep_curves(world), "steps", teacher_of(rows))
        rates = rates_figure(rows, [comparison.styles[row["method"]] for row in rows])
        sheets["lr_sweep"].append([_titled(each, plain(world)) for each in (sweep, rates)])
    return write_sheets(sheets, directory)


def _titled(figure: Figure, title: str) -> Figure:
    shown = title if len(title) <= 60 else f"{title[:59]}…"
    return figure | {"layout": figure["layout"] | {"meta": html.escape(shown, quote=False)}}


def write_sheets(
    sheets: dict[str, Any], directory: Path | str, size: tuple[float, float] = SIZE
) -> list[Path]:
    """Writes rows of panels by the name of the file; the directory is made if needed."""
    paths = {Path(directory) / f"{name}.png": rows for name, rows in sheets.items()}
    for path, rows in paths.items():
        save_png(rows, path, size)
    return list(paths)


def save_png(
    figure: Figure | Sequence[Sequence[Figure]], path: Path | str, size: tuple[float, float] = SIZE
) -> None:
    """Draws a figure of this package as PNG, 200 dots per inch."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Sheet
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib, which is not installed: pip install 'effopd[report]'"
        ) from error
    rows = [[figure]] if isinstance(figure, dict) else figure
    width, height = max(map(len, rows)), len(rows)
    with matplotlib.rc_context(_LOOK), warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes; that is no reason to stop.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        sheet = Sheet(figsize=(size[0] * width, size[1] * height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(sheet)
        panels = sheet.subplots(height, width, squeeze=False)
        for axes, drawn in zip(panels, rows, strict=True):
            for each, one in zip(axes, drawn, strict=True):
                _draw(each, one)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        sheet.savefig(path)


def _draw(axes: Any, figure: Figure) -> None:
    """One figure into one panel."""
    layout = figure["layout"]
    for trace in figure["data"]:
        {"scatter": _scatter, "bar": _bars, "heatmap": _heat_map}[trace["type"]](axes, trace)
    for shape in layout["shapes"]:  # levels across the panel
        style = {"color": _MUTED, "lw": 0.6 * shape["line"]["width"], "zorder": 1}
        axes.axhline(shape["y0"], ls=_LINES[shape["line"]["dash"]], **style)
    for note in layout["annotations"]:
        style = {"va": "center", "fontsize": 8.5, "color": _MUTED, "annotation_clip": False}
        where = (note["x"], note["y"])
        axes.annotate(note["text"], where, xycoords=("axes fraction", "data"), **style)
    drawn = any(len(trace["x"]) for trace in figure["data"])
    for side, settings in (("x", layout["xaxis"]), ("y", layout["yaxis"])):
        _set_axis(axes, side, settings, drawn)
    title, bold = html.unescape(layout.get("meta", "")), {"weight": "bold", "size": 10}
    if layout["showlegend"] and axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        head = {"title": title or None, "title_fontproperties": bold, "alignment": "left"}
        axes.legend(ncols=3, markerscale=0.7, **place, **head)
    else:
        axes.set_title(title, loc="left", fontdict=bold)


def _set_axis(axes: Any, side: str, settings: Figure, drawn: bool) -> None:
    getattr(axes, f"set_{side}label")(settings["title"]["text"])
    axis, limits = getattr(axes, f"{side}axis"), getattr(axes, f"set_{side}lim")
    if settings.get("type") == "log" and drawn:
        getattr(axes, f"set_{side}scale")("log")
        low, high = getattr(axes, f"get_{side}lim")()
        if math.isclose(low, high, rel_tol=1e-3) or side == "y":
            limits(low / 1.1, high * 1.1)
    if "range" in settings and settings["range"][0] != settings["range"][1]:
        limits(*settings["range"])
    elif settings.get("rangemode") == "tozero":
        limits(**{"left" if side == "x" else "bottom": 0})
    if settings.get("autorange") == "reversed":
        axis.set_inverted(True)
    if "tickvals" in settings and drawn:
        low, high = sorted(getattr(axes, f"get_{side}lim")())
        ticks = zip(settings["tickvals"], settings["ticktext"], strict=True)
        inside = [(tick, text) for tick, text in ticks if low <= tick <= high]
        axis.set_ticks([tick for tick, _ in inside], [text for _, text in inside])
        axis.set_ticks([], minor=True)
    elif settings.get("tickformat") == ".0%":
        axis.set_major_formatter(lambda value, _: f"{value:.0%}")
    elif "tokens" in settings["title"]["text"]:
        from matplotlib.ticker import EngFormatter

        axis.set_major_formatter(EngFormatter(sep=" "))


def _scatter(axes: Any, trace: Figure) -> None:
    """Lines, marks, or a filled outline, in plotly's terms."""
    x, y, marker, line = trace["x"], trace["y"], trace.get("marker", {}), trace.get("line", {})
    if "fill" in trace:
        red, green, blue, alpha = map(float, trace["fillcolor"][5:-1].split(","))
        color = (red / 255, green / 255, blue / 255, alpha)
        axes.fill(x, y, color=color, linewidth=0)
        return
    if marker.get("showscale"):
        _color_bar(axes, marker)
        return
    name = html.unescape(trace["name"]) if trace.get("showlegend", True) else None
    if name is not None and name.startswith("_"):
        name = f" {name}"  # a leading underscore would hide it from the legend
    lined = "lines" in trace["mode"]
    colors, symbols, sizes = (
        value if isinstance(value, list) else [value] * len(x)
        for value in (marker.get(k, d) for k, d in _DEFAULT_MARK.items())
    )
    alike = all(len(set(values)) <= 1 for values in (colors, symbols, sizes))
    style = {"clip_on": False, "zorder": 3, "alpha": marker.get("opacity")}
    if lined:
        stroke = {"color": line["color"], "linewidth": 0.7 * line["width"]}
        stroke |= {"linestyle": _LINES[line.get("dash", "solid")]}
        mark = _mark(marker, colors[0], symbols[0], sizes[0]) if alike and x else {}
        axes.plot(x, y, label=name, **style, **stroke, **mark)
    if error := trace.get("error_y"):
        ends = [error["arrayminus"], error["array"]]
        axes.errorbar(x, y, yerr=ends, ls="none", elinewidth=0.8, capsize=2, ecolor=error["color"])
    if not lined or not alike:
        for place in zip(x, y, colors, symbols, sizes, strict=True):
            mark = _mark(marker, *place[2:])
            axes.plot(*place[:2], ls="none", label=None if lined else name, **style, **mark)
            name = None  # once in the legend


_DEFAULT_MARK = {"color": "rgba(0,0,0,0)", "symbol": "circle", "size": 7}


def _mark(marker: Figure, color: str, symbol: str, size: float) -> Figure:
    """Keywords of matplotlib for a mark; an open one has the colour at its edge."""
    shape, is_open = symbol.removesuffix("-open"), symbol.endswith("-open")
    edge, width = marker.get("line", {}).get("color"), marker.get("line", {}).get("width", 1)
    hollow = color == "rgba(0,0,0,0)"
    return {
        "marker": _MARKS[shape],
        "markersize": _POINTS * size,
        "markerfacecolor": "none" if hollow else "white" if is_open else color,
        "markeredgecolor": "#777777" if edge and edge.startswith("rgba") else edge or color,
        "markeredgewidth": 0.7 * width,
    }


def _color_bar(axes: Any, marker: Figure) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colors = LinearSegmentedColormap.from_list("bar", [color for _, color in marker["colorscale"]])
    low, high = marker["cmin"], marker["cmax"]
    scale = ScalarMappable(Normalize(low, high), colors)
    bar = axes.figure.colorbar(scale, ax=axes, aspect=18)
    bar.outline.set_visible(False)
    bar.ax.set_title(marker["colorbar"]["title"]["text"], fontsize=8, color=_MUTED)
    bar.set_ticks([low, 0, high], labels=[f"{low:.2g}", "0", f"+{high:.2g}"])
    bar.ax.tick_params(labelsize=8, length=0)


def _bars(axes: Any, trace: Figure) -> None:
    """Beside those that are there."""
    width = 0.4
    shift = width * (len(axes.containers) - 0.5)
    places = [x + shift for x in trace["x"]]
    axes.bar(places, trace["y"], width, color=trace["marker"]["color"], label=trace["name"])
    axes.xaxis.get_major_locator().set_params(integer=True)


def _heat_map(axes: Any, trace: Figure) -> None:
    cells = [[float("nan") if z is None else z for z in row] for row in trace["z"]]
    limits = {"vmin": trace["zmin"], "vmax": trace["zmax"]}
    image = axes.imshow(cells, cmap="viridis", aspect="auto", **limits)
    axes.grid(visible=False)
    axes.set_xticks(range(len(trace["x"])), [f"{x:g}" for x in trace["x"]])
    axes.set_yticks(range(len(trace["y"])), [html.unescape(y) for y in trace["y"]])
    axes.figure.colorbar(image, ax=axes, label=trace["colorbar"]["title"]["text"])
