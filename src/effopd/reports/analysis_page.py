"""The page of an analysis: one HTML file that holds everything it shows and loads nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from effopd.reports.embedding import embedded, plotly_source, resource, write_page
from effopd.reports.examples import example_html
from effopd.reports.figures import Figure
from effopd.reports.series import plain, unique_lines
from effopd.reports.tables import format_percent

Json = dict[str, Any]
PICTURED = 60
"""Matrices whose trajectory the page can show; of more, as many at equal distances."""


def write_analysis(analysis: Analysis, path: Path | str) -> None:
    """Writes the page of an analysis, about 5 MB.

    Text from tables is embedded as JSON and placed as text; a content security policy lets no
    script run but the two of this package, and nothing be loaded.

    Args:
        analysis: What to show.
        path: The file to write, replaced in one step.
    """
    scripts = {"plotly": plotly_source(), "page": resource("plots.js") + resource("analysis.js")}
    example = "" if analysis.example is None else example_html(analysis.example)
    parts = {"data": embedded(analysis_data(analysis)), "example": example}
    write_page(path, "analysis.html", parts, scripts)


def analysis_data(analysis: Analysis) -> Json:
    """Everything the page shows but the example, as JSON values."""
    names = list(analysis.shown.values())
    series = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    sections = [make(analysis) for make in SECTIONS]
    return {
        "title": "effopd analysis",
        "headline": headline(analysis),
        "facts": [f"{len(names)} checkpoints: {series}", f"compared with {analysis.final}"],
        "command": plain(str(analysis.info["command"])),
        "sections": [section for section in sections if section is not None],
        "still": [plain(str(row["place"])) for row in analysis.rows("never_moved")],
        "inputs": _inputs(analysis),
    }


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


def _table_1(analysis: Analysis) -> Json | None:
    if not analysis.tables.get("table1"):
        return None
    text = (
        "Means over all matrices of attention and MLP that moved. A large spectral share and top "
        "1 % and a small effective rank mean that few directions carry the update. The smaller "
        "number is what independent noise of the same norm and shape would have; only the "
        "distance from it says something about training."
    )
    return {
        "title": "Table 1: spectra of the update",
        "text": text,
        "table": table_1_cells(analysis),
    }


def _norms(analysis: Analysis) -> Json | None:
    if not analysis.tables.get("norm_sums"):
        return None
    columns = {
        "frobenius_norm": "Frobenius norm of the update",
        "relative_norm": "norm of the update / of the base",
        "bf16_unchanged_share": "share of weights unchanged in bf16",
        "step_cosine": "cosine to the step before",
        "straightness": "displacement / path length",
    }
    text = (
        "How far training moved the weights. Cosine and straightness near 1 mean a straight path, "
        "along which extrapolation can succeed; steps at right angles have cosine 0. Weights that "
        "are the same in bf16 before and after did not change for a model that is served in bf16."
    )
    panels = [
        _panel("Against training", [
            (title, norm_figure(analysis, name, title)) for name, title in columns.items()
        ], "The whole model, and the tensors of each block together (figure 2b)."),
        _panel("By layer", [
            (analysis.shown[label], layer_figure(analysis, label))
            for label in reversed(analysis.checkpoints)
        ], "Norm of the update of each layer's attention and MLP (figure 3b, left)."),
    ]  # fmt: skip
    return {"title": "Norms", "text": text, "panels": panels, "table": norm_cells(analysis)}


def _spectra(analysis: Analysis) -> Json | None:
    if not analysis.tables.get("table1"):
        return None
    choices = [(title, spectrum_figure(analysis, name)) for name, title in SPECTRA.items()]
    text = (
        "The columns of Table 1 along the series. Where a curve meets the dotted one, the update "
        "looks like noise."
    )
    return {
        "title": "Spectra",
        "text": text,
        "panels": [_panel("Metric", choices, "Means over matrices.")],
    }


def _subspaces(analysis: Analysis) -> Json | None:
    if not analysis.tables.get("subspace_progress"):
        return None
    ends = {"final": f"with {analysis.final}", "previous": "with the checkpoint before"}
    first = analysis.rows("directions_map")
    title = f"cosine of {analysis.shown[analysis.checkpoints[0]]} with {analysis.final}"
    text = (
        "Do the leading 20 singular directions of the update stay what they are early? A subspace "
        "cosine of 1 means the same subspace; two random ones of a large matrix have nearly 0. "
        "Directions one by one can swap where singular values are close, so their cosine is lower."
    )
    panels = [
        _panel("Agreement", [
            (name, progress_figure(analysis, end)) for end, name in ends.items()
        ], "Means over matrices and over the leading k = 1 to 20 directions (figure 5b)."),
        _panel("", [
            ("first direction", map_figure(first, "final_cosine_1", "cosine")),
        ], f"First direction: {title} (figure 12). Blank: one of the two never moved."),
    ]  # fmt: skip
    return {"title": "Directions of the update", "text": text, "panels": panels}


def _trajectories(analysis: Analysis) -> Json | None:
    if not analysis.tables.get("trajectories"):
        return None
    rows = analysis.rows("trajectory_map")
    text = (
        "The first left singular direction of each matrix as a point that moves with training. A "
        "high explained variance says that its path lies in a plane. Up to three checkpoints "
        "always do, so that the number then says nothing."
    )
    panels = [
        _panel("", [
            ("EVR", map_figure(rows, "explained_variance_ratio", "explained variance")),
        ], "Share of the path's variance in its two leading components (figure 13)."),
        *_paths(analysis),
    ]  # fmt: skip
    return {"title": "Trajectories of the first direction", "text": text, "panels": panels}


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


def _behavior(analysis: Analysis) -> Json | None:
    if not analysis.tables.get("divergences"):
        return None
    text = (
        "The models at work on the recipe's test problems. KL is the reverse divergence over the "
        "whole vocabulary in nats, a mean over tokens with its standard error; on the base's text "
        "all checkpoints read the same tokens, on its own text each reads what it wrote. Closed is "
        "the share of the base's divergence from the teacher that is gone, on the base's text."
    )
    panels = [
        _panel("", [("KL", divergence_figure(analysis))], "Divergence along the series."),
        _panel("", [("2b", accuracy_figure(analysis))], "Accuracy against the norm (figure 2b)."),
    ]
    table = divergence_cells(analysis)
    return {"title": "Behavior", "text": text, "panels": panels, "table": table}


def _shifts(analysis: Analysis) -> Json | None:
    if not analysis.tables.get("shifts"):
        return None
    rows = analysis.rows("shift_points")
    kinds = dict.fromkeys(
        (str(row["space"]), str(row["kind"]), str(row["projection"])) for row in rows
    )
    names = {"pca": "PCA", "tsne": "t-SNE"}
    choices = [
        (
            f"{plain(space)}, {plain(kind)}, {names.get(projection, plain(projection))}",
            shift_figure(analysis, space, projection, kind),
        )
        for space, kind, projection in kinds
    ]
    text = (
        "Representations of the tokens that the base wrote, before and after (Table 3). A mean "
        "cosine near 1 says that tokens stayed where they were; compare it with that of unrelated "
        "tokens, which can be high too."
    )
    caption = "Tokens before and after in one plane; shifts: after minus before (figure 11)."
    panels = [_panel("Picture", choices, caption)] if choices else []
    return {"title": "Embeddings", "text": text, "panels": panels, "table": shift_cells(analysis)}


SECTIONS: Sequence[Callable[[Analysis], Json | None]] = (
    _table_1, _norms, _spectra, _subspaces, _trajectories, _behavior, _shifts,
)  # fmt: skip


def sample(names: Sequence[str], most: int) -> list[str]:
    """At most so many names, at equal distances, the first among them."""
    count = min(len(names), most)
    return [names[index * len(names) // count] for index in range(count)]


def _panel(legend: str, choices: Sequence[tuple[str, Figure]], caption: str) -> Json:
    """A figure, or several of which one is shown."""
    return {
        "legend": legend,
        "choices": [{"label": plain(label), "figure": figure} for label, figure in choices],
        "caption": caption,
    }


def _inputs(analysis: Analysis) -> list[str]:
    paths = {"base": analysis.info["base"]["path"]}
    paths |= {analysis.shown[c["label"]]: c["path"] for c in analysis.info["checkpoints"]}
    paths[f"final: {analysis.final}"] = analysis.info["final"]["path"]
    versions = ", ".join(f"{k} {v}" for k, v in analysis.info["versions"].items())
    return [*(f"{name}: {plain(str(path))}" for name, path in paths.items()), plain(versions)]
