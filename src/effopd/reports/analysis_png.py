"""PNG copies of the figures of an analysis: the page's figures, drawn with matplotlib."""

import html
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from effopd.reports.analysis import Analysis
from effopd.reports.analysis_figures import (
    SPECTRA,
    accuracy_figure,
    divergence_figure,
    layer_figure,
    map_figure,
    norm_figure,
    progress_figure,
    spectrum_figure,
    trajectory_figure,
)
from effopd.reports.figures import Figure
from effopd.reports.png import line_look, save_figure
from effopd.reports.style import Style

_SIZE = (6.4, 4.0)


def write_analysis_pngs(analysis: Analysis, directory: Path) -> list[Path]:
    """Writes the figures that the tables allow.

    Args:
        analysis: What to draw.
        directory: Where the files go, 200 dots per inch; made if needed.

    Returns:
        The files written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in png_figures(analysis).items():
        paths.append(directory / f"{name}.png")
        save_figure(paths[-1], partial(_draw_alone, drawn=figure), _SIZE)
    return paths


def png_figures(analysis: Analysis) -> dict[str, Figure]:
    """File name -> figure, of those that hold something."""
    found: dict[str, Figure] = {}
    if analysis.tables.get("norm_sums"):
        found["norms"] = norm_figure(analysis, "frobenius_norm", "Frobenius norm of the update")
        found["straightness"] = norm_figure(analysis, "straightness", "displacement / path length")
        found["layers"] = layer_figure(analysis, analysis.checkpoints[-1])
    if analysis.tables.get("table1"):
        found |= {name: spectrum_figure(analysis, name) for name in SPECTRA}
    if analysis.tables.get("subspace_progress"):
        found["subspaces"] = progress_figure(analysis, "final")
        rows = analysis.rows("directions_map")
        found["directions_map"] = map_figure(rows, "final_cosine_1", "cosine")
    if analysis.tables.get("trajectories"):
        rows = analysis.rows("trajectory_map")
        name = "explained_variance_ratio"
        found["trajectory_map"] = map_figure(rows, name, "explained variance")
    if analysis.tables.get("divergences"):
        found["divergences"] = divergence_figure(analysis)
        found["accuracy_norm"] = accuracy_figure(analysis)
    found |= _paths(analysis)
    return {name: figure for name, figure in found.items() if any(t["x"] for t in figure["data"])}


def _paths(analysis: Analysis) -> dict[str, Figure]:
    """Trajectories of the matrices of the layer in the middle."""
    rows = analysis.rows("trajectories")
    layers = sorted({row["layer"] for row in rows if isinstance(row["layer"], int)})
    kinds = sorted({str(row["projection_kind"]) for row in analysis.rows("trajectory_points")})
    places: dict[str, str] = {}
    for row in rows:
        if layers and row["layer"] == layers[len(layers) // 2]:
            name = re.sub(r"[^A-Za-z0-9._-]", "-", str(row["projection"]))[:60]
            places.setdefault(name, str(row["place"]))  # of several experts the first
    return {
        f"trajectory_{kind}_{name}": trajectory_figure(analysis, place, kind)
        for name, place in places.items()
        for kind in kinds
    }


def _draw_alone(figure: Any, drawn: Figure) -> None:
    """One figure of the page on an empty sheet."""
    axes = figure.subplots()
    layout = drawn["layout"]
    for trace in drawn["data"]:
        _TRACES[trace["type"]](axes, trace)
    axes.set_xlabel(layout["xaxis"]["title"]["text"])
    axes.set_ylabel(layout["yaxis"]["title"]["text"])
    for side, settings in (("x", layout["xaxis"]), ("y", layout["yaxis"])):
        _set_axis(axes, side, settings)
    if layout["showlegend"]:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        axes.legend(ncols=2, fontsize=8, **place)
    if "meta" in layout:
        axes.set_title(html.unescape(layout["meta"]), loc="left", fontsize=10)


def _set_axis(axes: Any, side: str, settings: Mapping[str, Any]) -> None:
    limits = getattr(axes, f"set_{side}lim")
    if "range" in settings:
        limits(*settings["range"])
    elif settings.get("rangemode") == "tozero":
        limits(**{"left" if side == "x" else "bottom": 0})
    if settings.get("tickformat") == ".0%":
        getattr(axes, f"{side}axis").set_major_formatter(lambda value, _: f"{value:.0%}")


def _line(axes: Any, trace: Figure) -> None:
    marker, line = trace["marker"], trace["line"]
    if isinstance(marker["color"], list):  # a path from light to dark
        axes.plot(trace["x"], trace["y"], color=line["color"], linewidth=1)
        axes.scatter(trace["x"], trace["y"], c=marker["color"], s=30, zorder=3)
        return
    style = Style(
        label=html.unescape(trace["name"]),
        color=line["color"],
        symbol=marker["symbol"],
        dash=line["dash"],
    )
    axes.plot(trace["x"], trace["y"], **line_look(style))


def _bars(axes: Any, trace: Figure) -> None:
    """Beside those that are there."""
    width = 0.4
    shift = width * (len(axes.containers) - 0.5)
    places = [x + shift for x in trace["x"]]
    axes.bar(places, trace["y"], width, color=trace["marker"]["color"], label=trace["name"])
    axes.xaxis.get_major_locator().set_params(integer=True)


def _heat_map(axes: Any, trace: Figure) -> None:
    cells = [[float("nan") if z is None else z for z in row] for row in trace["z"]]
    image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.grid(visible=False)
    axes.set_xticks(range(len(trace["x"])), [f"{x:g}" for x in trace["x"]])
    axes.set_yticks(range(len(trace["y"])), [html.unescape(y) for y in trace["y"]])
    axes.figure.colorbar(image, ax=axes, label=trace["colorbar"]["title"]["text"])


_TRACES = {"scatter": _line, "bar": _bars, "heatmap": _heat_map}
