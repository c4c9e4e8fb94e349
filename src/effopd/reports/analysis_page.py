"""The page of an analysis, one HTML file that loads nothing, and PNG copies of its figures."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from effopd.records import write_text_atomic
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
from effopd.reports.analysis_tables import divergence_cells, norm_cells, shift_cells, table_1_cells
from effopd.reports.embedding import rendered_page
from effopd.reports.figures import Figure
from effopd.reports.png import write_sheets
from effopd.reports.rollouts import example_html
from effopd.reports.series import plain, unique_lines
from effopd.reports.summary import unique
from effopd.reports.tables import format_percent

Json = dict[str, Any]
Choice = tuple[str, str, Figure]
PICTURED = 60
"""Matrices whose trajectory the page can show; of more, as many at equal distances."""


def write_analysis(analysis: Analysis, path: Path | str) -> None:
    """Writes the page of an analysis, about 5 MB, replaced in one step."""
    values, figures = analysis_content(analysis)
    data = {"data": {"figures": figures}}
    write_text_atomic(path, rendered_page("analysis.html", values, data, ["page.js"]))


def analysis_content(analysis: Analysis) -> tuple[Json, dict[str, list[Json]]]:
    """What the template puts in, and the choices of each figure by the name of its place."""
    names = list(analysis.shown.values())
    series = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    measured = list(sections(analysis))
    figures: dict[str, list[Json]] = {}
    for panel in (panel for section in measured for panel in section["panels"]):
        name, choices = f"panel-{len(figures)}", panel.pop("choices")
        panel |= {"id": name, "options": [label for label, _, _ in choices]}
        several = len(choices) > 1
        figures[name] = [
            {"when": {name: place} if several else {}, "figure": figure}
            for place, (_, _, figure) in enumerate(choices)
        ]
    info, shown = analysis.info, analysis.shown
    paths = [("base", info["base"]["path"])]
    paths += [(shown[each["label"]], each["path"]) for each in info["checkpoints"]]
    paths.append((f"final: {analysis.final}", info["final"]["path"]))
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    text = "\n".join([*(f"{name}: {plain(str(path))}" for name, path in paths), plain(versions)])
    inputs = [{"label": "Directories and versions", "facts": "", "text": text}]
    if still := [plain(str(row["place"])) for row in analysis.rows("never_moved")]:
        label = "Tensors that never moved"
        inputs.append({"label": label, "facts": str(len(still)), "text": "\n".join(still)})
    values: Json = {
        "title": "effopd analysis",
        "headline": headline(analysis),
        "highlights": [],
        "facts": [f"{len(names)} checkpoints: {series}", f"compared with {analysis.final}"],
        "command": plain(str(info["command"])),
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
    """File name -> figure: the choices of the page that have one, where they hold something."""
    panels = (panel for section in sections(analysis) for panel in section["panels"])
    choices = (choice for panel in panels for choice in panel["choices"])
    named = {file: figure for _, file, figure in choices if file}
    return {file: each for file, each in named.items() if any(t["x"] for t in each["data"])}


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
    "frobenius_norm": ("norms", "Frobenius norm of the update"),
    "relative_norm": ("", "norm of the update / of the base"),
    "bf16_unchanged_share": ("", "share of weights unchanged in bf16"),
    "step_cosine": ("", "cosine to the step before"),
    "straightness": ("straightness", "displacement / path length"),
}
"""Columns of the sums -> file of the figure, and title."""
PATHS = {
    "pca": "Principal components of the path, from light (early) to dark (late); figure 5a.",
    "tsne": "t-SNE of the same points. Distances and axes have no unit; figures 5a, 15 to 28.",
}


def sections(analysis: Analysis) -> Iterator[Json]:
    """Panels and table of each section that was measured; its text is in the template.

    A panel shows one of its choices (label, name of its PNG file or "", figure).
    """
    has, shown, last = analysis.tables.get, analysis.shown, analysis.checkpoints[-1]

    def section(key: str, *panels: tuple[str, Sequence[Choice], str], **more: Json) -> Json:
        drawn = [{"legend": a, "choices": b, "caption": c} for a, b, c in panels if b]
        return {"key": key, "panels": drawn, **more}

    if has("table1"):
        yield section("table1", table=table_1_cells(analysis))
    if has("norm_sums"):
        sums = [(t, file, norm_figure(analysis, name, t)) for name, (file, t) in NORMS.items()]
        layers = [
            (shown[label], "layers" if label == last else "", layer_figure(analysis, label))
            for label in reversed(analysis.checkpoints)
        ]
        of_blocks = "The whole model, and the tensors of each block together (figure 2b)."
        by_layer = "Norm of the update of each layer's attention and MLP (figure 3b, left)."
        panels = ("Against training", sums, of_blocks), ("By layer", layers, by_layer)
        yield section("norms", *panels, table=norm_cells(analysis))
    if has("table1"):
        spectra = [(t, name, spectrum_figure(analysis, name)) for name, t in SPECTRA.items()]
        yield section("spectra", ("Metric", spectra, "Means over matrices."))
    if has("subspace_progress"):
        agreement = [
            (f"with {analysis.final}", "subspaces", progress_figure(analysis, "final")),
            ("with the checkpoint before", "", progress_figure(analysis, "previous")),
        ]
        cosines = map_figure(analysis.rows("directions_map"), "final_cosine_1", "cosine")
        means = "Means over matrices and over the leading k = 1 to 20 directions (figure 5b)."
        early = f"First direction: cosine of {shown[analysis.checkpoints[0]]} with {analysis.final}"
        early += " (figure 12). Blank: one of the two never moved."
        panels = ("Agreement", agreement, means), ("", [("", "directions_map", cosines)], early)
        yield section("subspaces", *panels)
    if has("trajectories"):
        rows = analysis.rows("trajectory_map")
        planar = map_figure(rows, "explained_variance_ratio", "explained variance")
        caption = "Share of the path's variance in its two leading components (figure 13)."
        paths = [("Matrix", _paths(analysis, kind), text) for kind, text in PATHS.items()]
        yield section("trajectories", ("", [("", "trajectory_map", planar)], caption), *paths)
    if has("divergences"):
        choice = ("", "divergences", divergence_figure(analysis))
        along = ("", [choice], "Divergence along the series.")
        choice = ("", "accuracy_norm", accuracy_figure(analysis))
        over = ("", [choice], "Accuracy against the norm (figure 2b).")
        yield section("behavior", along, over, table=divergence_cells(analysis))
    if has("shifts"):
        kinds = ("space", "kind", "projection")
        pictures = unique(tuple(str(r[k]) for k in kinds) for r in analysis.rows("shift_points"))
        names = {"pca": "PCA", "tsne": "t-SNE"}
        choices = []
        for space, kind, projection in pictures:
            label = f"{plain(space)}, {plain(kind)}, {names.get(projection, plain(projection))}"
            choices.append((label, "", shift_figure(analysis, space, projection, kind)))
        caption = "Tokens before and after in one plane; shifts: after minus before (figure 11)."
        yield section("shifts", ("Picture", choices, caption), table=shift_cells(analysis))


def _paths(analysis: Analysis, kind: str) -> list[Choice]:
    """Trajectories of a sample of matrices; of the layer in the middle all, as PNG too.

    Of several experts with the same projection the first is a file.
    """
    rows = analysis.rows("trajectories")
    layers = sorted({row["layer"] for row in rows if isinstance(row["layer"], int)})
    files: dict[str, str] = {}
    for row in rows:
        if layers and row["layer"] == layers[len(layers) // 2]:
            name = re.sub(r"[^A-Za-z0-9._-]", "-", str(row["projection"]))[:60]
            files.setdefault(f"trajectory_{kind}_{name}", str(row["place"]))
    file_of = {place: file for file, place in files.items()}
    rows = analysis.rows("trajectory_points", projection_kind=kind)
    places = unique(str(row["place"]) for row in rows)
    pictured = {*sample(places, PICTURED), *file_of}
    places = [place for place in places if place in pictured]
    return [
        (name, file_of.get(place, ""), trajectory_figure(analysis, place, kind))
        for name, place in zip(unique_lines(places), places, strict=True)
    ]


def sample(names: Sequence[str], most: int) -> list[str]:
    """At most so many names, at equal distances, the first among them."""
    count = min(len(names), most)
    return [names[index * len(names) // count] for index in range(count)]
