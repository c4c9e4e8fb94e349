"""What `effopd theory` does: the local theory of one run, against what the run did."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from effopd.analysis.theory import Theory, TheorySettings, compute_theory
from effopd.analysis.theory_inputs import Say, read_inputs
from effopd.records import SCHEMA, Row, write_json_atomic
from effopd.reports.table_files import write_table

SHOWN = {
    "descent": ("rate", "step", "cosine", "norm_ratio", "loss", "predicted_loss"),
    "checkpoints": (
        "step", "cosine", "cosine_drive", "cosine_sign", "leading_share", "loss", "quadratic_loss",
    ),
    "scales": ("step", "accepted_scale", "theory_scale", "fitted_scale", "least_scale"),
}  # fmt: skip
"""Tables and columns shown on the terminal."""


def theory(run: Path, out: Path, settings: TheorySettings, say: Say = print) -> Theory:
    """Computes the local theory of a run; writes `theory.json` and `tables/theory_*.csv`."""
    transformers_logging.disable_progress_bar()
    inputs = read_inputs(run, settings.contexts, say)
    found = compute_theory(
        inputs.loss,
        inputs.checkpoints,
        inputs.rays,
        settings,
        advantages=inputs.text.advantages,
        report=say,
    )
    for name, rows in found.tables.items():
        write_table(out / "tables", f"theory_{name}", rows)
    about: Row = {"schema": SCHEMA, "run": str(run)}
    about |= {"label": inputs.config.name, "method": inputs.config.method_name}
    about["versions"] = {name: version(name) for name in ("effopd", "torch", "transformers")}
    write_json_atomic(out / "theory.json", about | found.summary)
    for line in _short_table(found.summary, found.tables):
        say(line)
    say(f"written to {out}")
    return found


def _short_table(summary: Mapping[str, Any], tables: Mapping[str, Sequence[Row]]) -> list[str]:
    """Lines for the terminal."""
    values = summary["eigenvalues"]
    lines = [
        f"{summary['contexts']} contexts, {summary['parameters']} parameters",
        f"loss of the base {summary['base_loss_nats']:.4f} nats, of its quadratic "
        f"{summary['quadratic_base_loss_nats']:.4f}",
        f"largest eigenvalues {', '.join(f'{value:.3g}' for value in values[:4])}; the leading "
        f"{len(values)} hold {summary['leading_drive_share']:.0%} of b",
        f"the loss itself curves from {summary['hessian_smallest']:.3g} to "
        f"{summary['hessian_largest']:.3g}; along b {summary['drive_hessian']:.3g}, its quadratic "
        f"{summary['drive_curvature']:.3g}",
    ]
    shown = {name: (columns, tables[name]) for name, columns in SHOWN.items()}
    estimators = [{"estimator": name} | row for name, row in summary["estimators"].items()]
    shown["estimators"] = (("estimator", "trace", "effective_rank", "mean_norm"), estimators)
    for name, (columns, rows) in shown.items():
        if rows:
            lines += [name, "  " + "".join(f"{column:>16}" for column in columns)]
            lines += ["  " + "".join(_shown(row[c]) for c in columns) for row in rows]
    return lines


def _shown(value: Any) -> str:
    """A cell of 16 characters; `-` where there is no number, as where nothing curves upwards."""
    if isinstance(value, float):
        return f"{value:>16.4g}"
    return f"{'-' if value is None else value:>16}"
