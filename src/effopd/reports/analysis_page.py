"""The page of an analysis, one HTML file that loads nothing, and PNG copies of its figures."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from effopd.reports.analysis import Analysis, numbers
from effopd.reports.analysis_figures import (
    SPECTRA,
    accuracy_figure,
    divergence_figure,
    layer_figure,
    map_figure,
    norm_figure,
    progress_figure,
    shift_figure,
    spectrum_figure,
    trajectory_figure,
)
from effopd.reports.analysis_tables import (
    divergence_cells,
    norm_cells,
    shift_cells,
    table_1_cells,
)
from effopd.reports.embedding import write_page
from effopd.reports.examples import example_html
from effopd.reports.figures import Figure
from effopd.reports.png import write_sheets
from effopd.reports.series import plain, unique_lines
from effopd.reports.tables import format_percent

Json = dict[str, Any]
PICTURED = 60
"""Matrices whose trajectory the page can show; of more, as many at equal distances."""


def write_analysis(analysis: Analysis, path: Path | str) -> None:
    """Writes the page of an analysis, about 5 MB, replaced in one step."""
    values, figures = analysis_content(analysis)
    write_page(path, "analysis.html", values, {"data": {"figures": figures}}, ["page.js"])


def analysis_content(analysis: Analysis) -> tuple[Json, dict[str, list[Json]]]:
    """What the template puts in, and the choices of each figure by the name of its place."""
    names = list(analysis.shown.values())
    series = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    measured = list(sections(analysis))
    figures: dict[str, list[Json]] = {}
    for panel in (panel for section in measured for panel in section["panels"]):
        name = panel["id"] = f"panel-{len(figures)}"
        drawn = panel.pop("figures")
        when: list[Json] = [{name: i} if len(drawn) > 1 else {} for i in range(len(drawn))]
        figures[name] = [{"when": w, "figure": f} for w, f in zip(when, drawn, strict=True)]
    still = [plain(str(row["place"])) for row in analysis.rows("never_moved")]
    inputs = [{"label": "Directories and versions", "facts": "", "text": _inputs(analysis)}]
    if still:
        label = "Tensors that never moved"
        inputs.append({"label": label, "facts": str(len(still)), "text": "\n".join(still)})
    values: Json = {
        "title": "effopd analysis",
        "headline": headline(analysis),
        "highlights": [],
        "facts": [f"{len(names)} checkpoints: {series}", f"compared with {analysis.final}"],
        "command": plain(str(analysis.info["command"])),
        "sections": measured,
        "example": "" if analysis.example is None else Markup(example_html(analysis.example)),
        "inputs": inputs,
    }
    return values, figures


def write_analysis_pngs(analysis: Analysis, directory: Path) -> list[Path]:
    """Writes the figures that the tables allow."""
    figures = analysis_figures(analysis)
    return write_sheets({name: [[figure]] for name, figure in figures.items()}, directory)


def analysis_figures(analysis: Analysis) -> dict[str, Figure]:
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
    # Trajectories of the matrices of the layer in the middle, of several experts the first.
    rows = analysis.rows("trajectories")
    layers = sorted({row["layer"] for row in rows if isinstance(row["layer"], int)})
    kinds = sorted({str(row["projection_kind"]) for row in analysis.rows("trajectory_points")})
    places: dict[str, str] = {}
    for row in rows:
        if layers and row["layer"] == layers[len(layers) // 2]:
            name = re.sub(r"[^A-Za-z0-9._-]", "-", str(row["projection"]))[:60]
            places.setdefault(name, str(row["place"]))
    for name, place in places.items():
        for kind in kinds:
            found[f"trajectory_{kind}_{name}"] = trajectory_figure(analysis, place, kind)
    return {name: figure for name, figure in found.items() if any(t["x"] for t in figure["data"])}


def headline(analysis: Analysis) -> str:
    """One sentence about the whole series."""
    last = analysis.rows("norm_sums", grouping="whole", checkpoint=analysis.checkpoints[-1])
    relative = numbers(last, "relative_norm")
    if not last or relative[0] is None:
        count = len(analysis.checkpoints)
        return f"{count} checkpoint{'s' if count > 1 else ''} of one base"
    (straightness,) = numbers(last, "straightness")
    path = "" if straightness is None else f" on a path {format_percent(straightness, 0)} straight"
    return f"The weights moved {format_percent(relative[0], 3)} of their norm{path}"


# Sections -----------------------------------------------------------------------------------------

NORMS = {
    "frobenius_norm": "Frobenius norm of the update",
    "relative_norm": "norm of the update / of the base",
    "bf16_unchanged_share": "share of weights unchanged in bf16",
    "step_cosine": "cosine to the step before",
    "straightness": "displacement / path length",
}


def sections(analysis: Analysis) -> Iterator[Json]:
    """Figures and table of each section that was measured; its text is in the template."""
    has = analysis.tables.get
    if has("table1"):
        yield {"key": "table1", "panels": [], "table": table_1_cells(analysis)}
    if has("norm_sums"):
        whole = [(title, norm_figure(analysis, name, title)) for name, title in NORMS.items()]
        layers = [
            (analysis.shown[label], layer_figure(analysis, label))
            for label in reversed(analysis.checkpoints)
        ]
        caption = "The whole model, and the tensors of each block together (figure 2b)."
        by_layer = "Norm of the update of each layer's attention and MLP (figure 3b, left)."
        panels = [_panel("Against training", whole, caption), _panel("By layer", layers, by_layer)]
        yield {"key": "norms", "panels": panels, "table": norm_cells(analysis)}
    if has("table1"):
        choices = [(title, spectrum_figure(analysis, name)) for name, title in SPECTRA.items()]
        yield {"key": "spectra", "panels": [_panel("Metric", choices, "Means over matrices.")]}
    if has("subspace_progress"):
        ends = {"final": f"with {analysis.final}", "previous": "with the checkpoint before"}
        choices = [(name, progress_figure(analysis, end)) for end, name in ends.items()]
        caption = "Means over matrices and over the leading k = 1 to 20 directions (figure 5b)."
        first = map_figure(analysis.rows("directions_map"), "final_cosine_1", "cosine")
        early = f"cosine of {analysis.shown[analysis.checkpoints[0]]} with {analysis.final}"
        of_map = f"First direction: {early} (figure 12). Blank: one of the two never moved."
        panels = [_panel("Agreement", choices, caption), _panel("", [("", first)], of_map)]
        yield {"key": "subspaces", "panels": panels}
    if has("trajectories"):
        name = "explained_variance_ratio"
        shares = map_figure(analysis.rows("trajectory_map"), name, "explained variance")
        caption = "Share of the path's variance in its two leading components (figure 13)."
        panels = [_panel("", [("", shares)], caption), *_paths(analysis)]
        yield {"key": "trajectories", "panels": panels}
    if has("divergences"):
        along = _panel("", [("", divergence_figure(analysis))], "Divergence along the series.")
        caption = "Accuracy against the norm (figure 2b)."
        panels = [along, _panel("", [("", accuracy_figure(analysis))], caption)]
        yield {"key": "behavior", "panels": panels, "table": divergence_cells(analysis)}
    if has("shifts"):
        yield {"key": "shifts", "panels": _shifts(analysis), "table": shift_cells(analysis)}


def _paths(analysis: Analysis) -> list[Json]:
    """One panel a kind of picture, with a choice of matrices."""
    captions = {
        "pca": "Principal components of the path, from light (early) to dark (late); figure 5a.",
        "tsne": "t-SNE of the same points. Distances and axes have no unit; figures 5a, 15 to 28.",
    }
    panels = []
    for kind, caption in captions.items():
        rows = analysis.rows("trajectory_points", projection_kind=kind)
        places = sample(list(dict.fromkeys(str(row["place"]) for row in rows)), PICTURED)
        choices = [
            (name, trajectory_figure(analysis, place, kind))
            for name, place in zip(unique_lines(places), places, strict=True)
        ]
        if choices:
            panels.append(_panel("Matrix", choices, caption))
    return panels


def _shifts(analysis: Analysis) -> list[Json]:
    names, choices = {"pca": "PCA", "tsne": "t-SNE"}, {}
    for row in analysis.rows("shift_points"):
        space, kind, projection = (str(row[key]) for key in ("space", "kind", "projection"))
        if (space, kind, projection) not in choices:
            shown = names.get(projection, plain(projection))
            figure = shift_figure(analysis, space, projection, kind)
            choices[space, kind, projection] = (f"{plain(space)}, {plain(kind)}, {shown}", figure)
    caption = "Tokens before and after in one plane; shifts: after minus before (figure 11)."
    return [_panel("Picture", list(choices.values()), caption)] if choices else []


def sample(names: Sequence[str], most: int) -> list[str]:
    """At most so many names, at equal distances, the first among them."""
    count = min(len(names), most)
    return [names[index * len(names) // count] for index in range(count)]


def _panel(legend: str, choices: Sequence[tuple[str, Figure]], caption: str) -> Json:
    """A figure, or several of which one is shown."""
    labels, figures = zip(*choices, strict=True)
    return {"legend": legend, "options": labels, "figures": figures, "caption": caption}


def _inputs(analysis: Analysis) -> str:
    paths = {"base": analysis.info["base"]["path"]}
    paths |= {analysis.shown[c["label"]]: c["path"] for c in analysis.info["checkpoints"]}
    paths[f"final: {analysis.final}"] = analysis.info["final"]["path"]
    versions = ", ".join(f"{k} {v}" for k, v in analysis.info["versions"].items())
    lines = [*(f"{name}: {plain(str(path))}" for name, path in paths.items()), plain(versions)]
    return "\n".join(lines)
