"""What `effopd extrapolate` and `effopd theory` do."""

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import logging as transformers_logging

from effopd.analysis.modules import check_finite, endpoints, point
from effopd.analysis.theory import Theory, TheorySettings, compute_theory
from effopd.analysis.theory_inputs import Say, read_inputs
from effopd.errors import ConfigError
from effopd.models.saving import write_model
from effopd.models.updates import PairUpdate, Update, open_update, say_left_out
from effopd.records import SCHEMA, Row, write_json_atomic
from effopd.reports.table_files import write_table
from effopd.search.selection import selected_names

SHOWN = {
    "descent": ("rate", "step", "cosine", "norm_ratio", "loss", "predicted_loss"),
    "checkpoints": (
        "step", "cosine", "cosine_drive", "cosine_sign", "leading_share", "loss", "quadratic_loss",
    ),
    "scales": ("step", "accepted_scale", "theory_scale", "fitted_scale", "least_scale"),
}  # fmt: skip
"""Tables and columns shown on the terminal."""


def extrapolate(
    anchor: Path, tip: Path, scales: Sequence[float], out: Path, *, select: str
) -> None:
    """Writes `anchor + scale * (tip - anchor)` of the selected tensors; others are the tip's.

    Config, tokenizer and dtype are the tip's, or the anchor's where the tip is an adapter. At scale
    1 the tip is written, bit for bit.
    """
    for scale in scales:
        check_finite("--scale", scale)
    names = [f"{scale:g}" for scale in scales]
    if len(set(names)) < len(names):
        raise ConfigError(f"--scale must be given once for each point, got {', '.join(names)}")
    update = open_update(anchor, tip)
    moving = frozenset(selected_names(_dimensions(update), select))
    source = tip if isinstance(update, PairUpdate) else anchor
    say_left_out(update, print)
    print(f"{len(moving)} of {len(update.shapes)} tensors move ({select}); others are the tip's")
    for scale, name in zip(scales, names, strict=True):
        directory = out / f"scale-{name}" if len(scales) > 1 else out
        _write_point(directory, source, update, moving, scale)
        print(f"scale {name}: {directory}")


def _dimensions(update: Update) -> dict[str, int]:
    """Axes of every tensor that can move; integers never do."""
    shapes = update.shapes.items()
    return {n: len(shape) for n, shape in shapes if update.read_base(n).is_floating_point()}


def _write_point(
    directory: Path, source: Path, update: Update, moving: Collection[str], scale: float
) -> None:
    def at_scale(stored_name: str, stored: Tensor) -> Tensor:
        name = stored_name
        if isinstance(update, PairUpdate):  # the tip's names
            if stored_name not in update.base_names:
                return stored
            name = update.base_names[stored_name]
        if name in moving:
            return point(*endpoints(update, name), scale)
        return update.read_tuned(name) if stored.is_floating_point() else stored

    write_model(directory, source, at_scale)


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
