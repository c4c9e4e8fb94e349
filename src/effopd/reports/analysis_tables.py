"""The short tables of an analysis, as text for a terminal and as cells for its page."""

from collections.abc import Mapping, Sequence
from typing import Any

from effopd.reports.analysis import Analysis, TableRows, numbers
from effopd.reports.series import plain
from effopd.reports.table_files import Cell
from effopd.reports.tables import format_percent, text_table

Json = dict[str, Any]
MISSING = "–"
FOUR, SIX = ".4g", ".6f"
"""Formats of numbers; `%1` is a percentage with one digit after the point."""


TABLE_1: Mapping[str, tuple[str, str]] = {
    "spectral_norm": ("spectral norm", FOUR),
    "spectral_share": ("spectral / Frobenius", "%1"),
    "effective_rank": ("effective rank", ",.1f"),
    "top_1_ratio": ("top 1%", "%1"),
    "top_5_ratio": ("top 5%", "%1"),
}
"""Columns of Table 1: heading and format."""
NORMS: Mapping[str, tuple[str, str]] = {
    "frobenius_norm": ("norm of the update", FOUR),
    "relative_norm": ("relative to the base", "%2"),
    "bf16_unchanged_share": ("unchanged in bf16", "%1"),
    "step_norm": ("norm of the step", FOUR),
    "step_cosine": ("cosine to the step before", FOUR),
    "path_length": ("path length", FOUR),
    "straightness": ("straightness", "%1"),
}
SHIFTS: Mapping[str, tuple[str, str]] = {
    "tokens": ("tokens", ",.0f"),
    "mean_cosine": ("mean cosine", SIX),
    "p05_cosine": ("5th percentile", SIX),
    "centred_cosine": ("cosine, means removed", SIX),
    "unrelated_cosine": ("of unrelated tokens", FOUR),
    "relative_shift": ("relative shift", "%2"),
}
READINGS: Mapping[tuple[str, str], str] = {
    ("teacher", "base"): "KL from the teacher, base's text",
    ("teacher", "own"): "KL from the teacher, own text",
    ("base", "base"): "KL from the base, base's text",
    ("base", "own"): "KL from the base, own text",
}
"""What a model is compared with and on whose text -> heading."""
FIRST = ("teacher", "base")


def table_1_cells(analysis: Analysis) -> Json:
    """Table 1 for the page: what noise would give stands below each number."""
    lines = []
    for row in analysis.rows("table1"):
        cells = [{"text": str(row["matrices"]), "small": f"{row['never_moved']} never moved"}]
        for name, (_, form) in TABLE_1.items():
            noise = formatted(row, f"noise_{name}", form)
            cells.append({"text": formatted(row, name, form), "small": f"noise {noise}"})
        lines.append({"label": analysis.shown[str(row["checkpoint"])], "cells": cells})
    headings = [heading for heading, _ in TABLE_1.values()]
    return {"columns": ["checkpoint", "matrices", *headings], "rows": lines}


def table_1_text(analysis: Analysis) -> str:
    """Table 1 as aligned text, with noise of the same norm and shape in a line below each row."""
    table = table_1_cells(analysis)
    lines = [["mean over matrices", *table["columns"][1:]]]
    for row in table["rows"]:
        lines.append([row["label"], *(cell["text"] for cell in row["cells"])])
        noise = (cell["small"].removeprefix("noise ") for cell in row["cells"][1:])
        lines.append(["  noise", "", *noise])
    return text_table(lines)


def cells_of(
    rows: TableRows, columns: Mapping[str, tuple[str, str]], labels: Sequence[str]
) -> Json:
    """Columns of a table for the page."""
    lines: list[Json] = []
    for label, row in zip(labels, rows, strict=True):
        cells = [{"text": formatted(row, name, form)} for name, (_, form) in columns.items()]
        lines.append({"label": label, "cells": cells})
    return {"columns": ["", *(heading for heading, _ in columns.values())], "rows": lines}


def norm_cells(analysis: Analysis) -> Json:
    """The whole model's norms and path."""
    rows = analysis.rows("norm_sums", grouping="whole")
    return cells_of(rows, NORMS, [analysis.shown[str(row["checkpoint"])] for row in rows])


def shift_cells(analysis: Analysis) -> Json:
    """How far representations of tokens moved; Table 3."""
    rows = analysis.rows("shifts")
    labels = [f"{_shown(analysis, row)}, {plain(str(row['space']))}" for row in rows]
    return cells_of(rows, SHIFTS, labels)


def divergence_cells(analysis: Analysis) -> Json:
    """Accuracy, and divergences in nats with their standard errors: a row for each model."""
    rows = analysis.rows("divergences")
    lines = []
    for label in dict.fromkeys(str(row["label"]) for row in rows):
        own = {(row["to"], row["text"]): row for row in rows if row["label"] == label}
        written = own.get(("teacher", "own")) or own.get(("base", "own"), own.get(FIRST, {}))
        closed = formatted(own.get(FIRST, {}), "closed_share", "%1")
        texts = [formatted(written, "accuracy", "%1"), formatted(written, "mean_length", ",.1f")]
        cells: list[Json] = [{"text": text} for text in (*texts, closed)]
        for read in map(own.get, READINGS):  # a mean, and its standard error below
            cells.append({"text": formatted(read or {}, "mean_nats", FOUR)})
            cells[-1] |= {"small": f"± {formatted(read, 'se_nats', FOUR)}"} if read else {}
        lines.append({"label": _shown(analysis, {"label": label}), "cells": cells})
    headings = ["accuracy", "mean length", "closed since the base", *READINGS.values()]
    return {"columns": ["", *headings], "rows": lines}


def formatted(row: Mapping[str, Cell], name: str, form: str) -> str:
    """One number as text; a dash where there is none, and in an empty row."""
    (value,) = numbers([row], name) if row else (None,)
    if value is None:
        return MISSING
    return format_percent(value, int(form[1:])) if form[0] == "%" else f"{value:{form}}"


def _shown(analysis: Analysis, row: Mapping[str, Cell]) -> str:
    label = str(row["label"])
    return analysis.shown.get(label, plain(label))
