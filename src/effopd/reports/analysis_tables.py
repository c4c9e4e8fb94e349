"""The short tables of an analysis, as text for a terminal and as cells for its page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effopd.reports.analysis import Analysis, TableRows, numbers
from effopd.reports.series import plain
from effopd.reports.table_files import Cell
from effopd.reports.tables import format_percent, text_table

Json = dict[str, Any]
MISSING = "–"
Format = Callable[[float], str]


def four_digits(value: float) -> str:
    """A number to four digits."""
    return f"{value:.4g}"


def six_decimals(value: float) -> str:
    """A cosine, which is often close to 1."""
    return f"{value:.6f}"


def percent(value: float) -> str:
    """A fraction as a percentage with two digits after the point."""
    return format_percent(value, 2)


def one_digit(value: float) -> str:
    """A number with one digit after the point, and commas."""
    return f"{value:,.1f}"


def whole(value: float) -> str:
    """A count."""
    return f"{value:,.0f}"


TABLE_1: Mapping[str, tuple[str, Format]] = {
    "spectral_norm": ("spectral norm", four_digits),
    "spectral_share": ("spectral / Frobenius", format_percent),
    "effective_rank": ("effective rank", one_digit),
    "top_1_ratio": ("top 1 %", format_percent),
    "top_5_ratio": ("top 5 %", format_percent),
}
"""Columns of Table 1: heading and format."""
NORMS: Mapping[str, tuple[str, Format]] = {
    "frobenius_norm": ("norm of the update", four_digits),
    "relative_norm": ("relative to the base", percent),
    "bf16_unchanged_share": ("unchanged in bf16", format_percent),
    "step_norm": ("norm of the step", four_digits),
    "step_cosine": ("cosine to the step before", four_digits),
    "path_length": ("path length", four_digits),
    "straightness": ("straightness", format_percent),
}
SHIFTS: Mapping[str, tuple[str, Format]] = {
    "tokens": ("tokens", whole),
    "mean_cosine": ("mean cosine", six_decimals),
    "p05_cosine": ("5th percentile", six_decimals),
    "centred_cosine": ("cosine, means removed", six_decimals),
    "unrelated_cosine": ("of unrelated tokens", four_digits),
    "relative_shift": ("relative shift", percent),
}
READINGS: Mapping[tuple[str, str], str] = {
    ("teacher", "base"): "KL from the teacher, base's text",
    ("teacher", "own"): "KL from the teacher, own text",
    ("base", "base"): "KL from the base, base's text",
    ("base", "own"): "KL from the base, own text",
}
"""What a model is compared with and on whose text -> heading."""
FIRST = ("teacher", "base")


def table_1_text(analysis: Analysis) -> str:
    """Table 1 as aligned text, with noise of the same norm and shape in a line below each row.

    Args:
        analysis: With spectra.

    Returns:
        Lines without a newline at the end; safe to print.
    """
    lines = [["mean over matrices", "matrices", *(heading for heading, _ in TABLE_1.values())]]
    for row in analysis.rows("table1"):
        own = [formatted(row, name, form) for name, (_, form) in TABLE_1.items()]
        noise = [formatted(row, f"noise_{name}", form) for name, (_, form) in TABLE_1.items()]
        lines.append([analysis.shown[str(row["checkpoint"])], str(row["matrices"]), *own])
        lines.append(["  noise", "", *noise])
    return text_table(lines)


def table_1_cells(analysis: Analysis) -> Json:
    """Table 1 for the page: what noise would give stands below each number."""
    lines = []
    for row in analysis.rows("table1"):
        cells = [
            {
                "text": formatted(row, name, form),
                "small": f"noise {formatted(row, f'noise_{name}', form)}",
            }
            for name, (_, form) in TABLE_1.items()
        ]
        label = analysis.shown[str(row["checkpoint"])]
        count = {"text": str(row["matrices"]), "small": f"{row['never_moved']} never moved"}
        lines.append({"label": label, "cells": [count, *cells]})
    headings = [heading for heading, _ in TABLE_1.values()]
    return {"columns": ["checkpoint", "matrices", *headings], "rows": lines}


def cells_of(
    rows: TableRows, columns: Mapping[str, tuple[str, Format]], labels: Sequence[str]
) -> Json:
    """Columns of a table for the page.

    Args:
        rows: Of one table.
        columns: Name to heading and format.
        labels: Of the rows.

    Returns:
        Headings and rows of text.
    """
    lines = [
        {
            "label": label,
            "cells": [{"text": formatted(row, name, form)} for name, (_, form) in columns.items()],
        }
        for label, row in zip(labels, rows, strict=True)
    ]
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
        closed = formatted(own.get(FIRST, {}), "closed_share", format_percent)
        cells: list[Json] = [
            {"text": formatted(written, "accuracy", format_percent)},
            {"text": formatted(written, "mean_length", one_digit)},
            {"text": closed},
        ]
        cells += [_nats(own.get(reading)) for reading in READINGS]
        lines.append({"label": _shown(analysis, {"label": label}), "cells": cells})
    headings = ["accuracy", "mean length", "closed since the base", *READINGS.values()]
    return {"columns": ["", *headings], "rows": lines}


def _nats(row: Mapping[str, Cell] | None) -> Json:
    """Mean divergence, and its standard error below."""
    if row is None:
        return {"text": MISSING}
    error = formatted(row, "se_nats", four_digits)
    return {"text": formatted(row, "mean_nats", four_digits), "small": f"± {error}"}


def formatted(row: Mapping[str, Cell], name: str, form: Format) -> str:
    """One number as text; a dash where there is none, and in an empty row."""
    (value,) = numbers([row], name) if row else (None,)
    return MISSING if value is None else form(value)


def _shown(analysis: Analysis, row: Mapping[str, Cell]) -> str:
    label = str(row["label"])
    return analysis.shown.get(label, plain(label))
