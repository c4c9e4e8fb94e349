"""What `effopd theory` does: the local theory of one run, against what the run did."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from effopd.analysis.gradient_covariance import EstimatorCovariances, estimator_covariances
from effopd.analysis.lanczos import EigenPairs, OnStep, krylov_space, leading_eigenpairs
from effopd.analysis.local_comparison import Comparison, ScaleRow, compare_trajectory, cosine
from effopd.analysis.local_theory import LocalTheory, krylov_theory, leading_theory
from effopd.analysis.quadratic import FrozenLoss
from effopd.analysis.theory_inputs import (
    Say,
    Text,
    check_is_distillation,
    frozen_loss,
    read_checkpoints,
    read_rays,
    write_text,
)
from effopd.errors import ConfigError
from effopd.models.layout import place_of
from effopd.records import SCHEMA, write_json_atomic
from effopd.reports.table_files import write_table
from effopd.training.config import Config
from effopd.training.run import build_parts, config_of_run

RATE_SHARES = (0.1, 0.5, 1.0, 1.9)
"""Rates of gradient descent, in units of 1 / lambda_1; above 2 it diverges."""
SAMPLED_CONTEXTS = 64
"""Contexts whose gradients are compared."""
HESSIAN_STEPS = 12
"""Products with the Hessian of the loss; its extreme values settle first."""
SEED = 0
"""Of the first Lanczos vector and of the sampled contexts."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TheorySettings:
    """How much is computed.

    Attributes:
        rank: Leading eigenpairs of A.
        contexts: Contexts to take, at least; answers are kept whole.
        steps: Steps of gradient descent, and vectors of the Krylov space that predicts them.
    """

    rank: int = 16
    contexts: int = 2048
    steps: int = 32

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")


def theory(run: Path, out: Path, settings: TheorySettings, say: Say = print) -> None:
    """Computes the local theory of a run and writes it down.

    Args:
        run: Directory of a distillation run.
        out: Gets `theory.json` and `tables/theory_*.csv`.
        settings: How much.
        say: Receives progress and the short table.

    Raises:
        ConfigError: `run` holds no resolved settings, or its student has adapters.
    """
    transformers_logging.disable_progress_bar()
    config = config_of_run(run)
    check_is_distillation(config)
    if config.student is not None and config.student.lora is not None:
        raise ConfigError("the local theory is that of weights, this run trains adapters")
    with closing(build_parts(config, say)) as parts:
        text = write_text(parts, settings.contexts, say)
    loss = frozen_loss(parts, text)
    checkpoints = read_checkpoints(run, loss)
    rays = read_rays(run, parts, loss, checkpoints, say)
    pairs, compared = _predictions(loss, settings, say)
    curvatures = _curvatures(loss, compared, say)
    rates = [share / float(pairs.values_k[0]) for share in RATE_SHARES]
    say(f"gradient descent: {len(rates)} rates, {settings.steps} steps each")
    descents, visited = compare_trajectory(compared, rates, _looks(settings.steps), checkpoints)
    say(f"searches: {len(rays)}")
    scales = [compared.search(ray.step, ray.scale, ray.tip_P, ray.anchor_P) for ray in rays]
    say(f"gradients of {min(SAMPLED_CONTEXTS, loss.contexts)} contexts")
    covariances = _covariances(compared, text)
    last_P = checkpoints[max(checkpoints)] if checkpoints else None
    tables = {
        "spectrum": _spectrum_rows(pairs, compared),
        "descent": [dataclasses.asdict(row) for row in descents],
        "checkpoints": [dataclasses.asdict(row) for row in visited],
        "scales": [_scale_row(row) for row in scales],
        "modules": _module_rows(compared, last_P),
        "covariances": _covariance_rows(covariances),
    }
    for name, rows in tables.items():
        write_table(out / "tables", f"theory_{name}", [_finite(row) for row in rows])
    summary = _summary(config, compared, pairs, covariances) | curvatures
    write_json_atomic(out / "theory.json", {"schema": SCHEMA, "run": str(run), **summary})
    for line in _short_table(summary, tables):
        say(line)
    say(f"written to {out}")


def _predictions(loss: Any, settings: TheorySettings, say: Say) -> tuple[EigenPairs, Comparison]:
    """Leading eigenpairs, and both predictions."""

    def told(what: str) -> OnStep:
        return lambda count: say(f"{what}: {count} products") if count % 8 == 0 else None

    drive_P = loss.drive()
    if not float(drive_P.norm()):
        raise ConfigError(
            "teacher and base model agree on every context: there is nothing to learn"
        )
    product = loss.curvature_product
    depth = min(settings.steps, loss.space.size)
    krylov = krylov_space(product, drive_P, depth, on_step=told("Krylov space of b"))
    generator = torch.Generator().manual_seed(SEED)
    start_P = torch.randn(loss.space.size, generator=generator, dtype=torch.float64).to(drive_P)
    rank = min(settings.rank, loss.space.size)
    pairs = leading_eigenpairs(product, start_P, rank, tolerance=1e-4, on_step=told("eigenpairs"))
    return pairs, Comparison(
        loss=loss,
        drive_P=drive_P,
        krylov=krylov_theory(krylov),
        leading=leading_theory(pairs, drive_P),
        base_loss=loss.loss(),
    )


def _curvatures(loss: FrozenLoss, compared: Comparison, say: Say) -> Row:
    """How far A is from the Hessian of the frozen loss at the base (nats per squared length).

    The extreme values of the Hessian are those in the Krylov space of b: bounds from inside.
    """
    say(f"Hessian of the loss: {HESSIAN_STEPS} products")
    depth = min(HESSIAN_STEPS, loss.space.size)
    hessian = krylov_theory(krylov_space(loss.hessian_product, compared.drive_P, depth))

    def along_drive(theory: LocalTheory) -> float:
        shares_k = theory.coefficients_k.square() / theory.drive_norm**2
        return float((shares_k * theory.values_k).sum())

    return {
        "drive_curvature": along_drive(compared.krylov),
        "drive_hessian": along_drive(hessian),
        "hessian_largest": float(hessian.values_k[0]),
        "hessian_smallest": float(hessian.values_k[-1]),
    }


def _looks(steps: int) -> list[int]:
    """1, 2, 4, ... and the last."""
    return sorted({2**n for n in range(steps.bit_length()) if 2**n <= steps} | {steps})


def _covariances(compared: Comparison, text: Text) -> EstimatorCovariances:
    """On contexts drawn without replacement."""
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(compared.loss.contexts, generator=generator)
    chosen = order[:SAMPLED_CONTEXTS].tolist()
    advantages = None if text.advantages is None else [text.advantages[c] for c in chosen]
    return estimator_covariances(compared.loss, chosen, advantages)


# Tables -------------------------------------------------------------------------------------------


def _spectrum_rows(pairs: EigenPairs, compared: Comparison) -> list[Row]:
    squares_k = compared.leading.coefficients_k.square() / compared.leading.drive_norm**2
    return [
        {
            "index": index,
            "eigenvalue": float(pairs.values_k[index - 1]),
            "residual": float(pairs.residuals_k[index - 1]),
            "drive_coefficient": float(compared.leading.coefficients_k[index - 1]),
            "drive_share": float(squares_k[:index].sum()),
        }
        for index in range(1, len(pairs.values_k) + 1)
    ]


def _scale_row(row: ScaleRow) -> Row:
    return {
        "step": row.step,
        "accepted_scale": row.accepted_scale,
        "theory_scale": row.theory.scale,
        "fitted_scale": row.fitted.scale,
        "least_scale": row.least_scale,
        "stable_scale": row.stable_scale,
        "theory_curvature": row.theory.curvature,
        "fitted_curvature": row.fitted.curvature,
        "update_norm": row.update_norm,
    }


def _module_rows(compared: Comparison, last_P: Tensor | None) -> list[Row]:
    """One row a tensor: how strongly b pushes it, and how far the last checkpoint moved it."""
    space, rows = compared.loss.space, []
    pushed = space.tensors(compared.drive_P)
    moved = None if last_P is None else space.tensors(last_P)
    for name, push in pushed.items():
        place = place_of(name)
        row: Row = {"name": name, "layer": place.layer, "block": place.block}
        row |= {"projection": place.projection, "parameters": push.numel()}
        row |= {"drive_norm": float(push.norm()), "drive_share": _share(push, compared.drive_P)}
        if moved is not None and last_P is not None:
            update = moved[name]
            row |= {"update_norm": float(update.norm()), "update_share": _share(update, last_P)}
            row |= {"cosine": cosine(push.flatten(), update.flatten())}
        rows.append(row)
    return rows


def _share(part: Tensor, whole: Tensor) -> float:
    """Of the squared norm."""
    total = float(whole.square().sum())
    return float(part.square().sum()) / total if total else 0.0


def _covariance_rows(covariances: EstimatorCovariances) -> list[Row]:
    found = {
        "opd": covariances.opd,
        "sampled_opd": covariances.sampled_opd,
        "rl": covariances.rl,
    }
    return [
        {"estimator": name} | dataclasses.asdict(covariance)
        for name, covariance in found.items()
        if covariance is not None
    ]


def _finite(row: Row) -> Row:
    """What is not finite is not known: None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


# Summary ------------------------------------------------------------------------------------------


def _summary(
    config: Config,
    compared: Comparison,
    pairs: EigenPairs,
    covariances: EstimatorCovariances,
) -> Row:
    loss = compared.loss
    return {
        "label": config.name,
        "method": config.method_name,
        "contexts": loss.contexts,
        "parameters": loss.space.size,
        "base_loss_nats": compared.base_loss,
        "quadratic_base_loss_nats": loss.constant(),
        "drive_norm": compared.leading.drive_norm,
        "eigenvalues": pairs.values_k.tolist(),
        "residuals": pairs.residuals_k.tolist(),
        "leading_drive_share": _share(compared.leading.coefficients_k, compared.drive_P),
        "krylov_steps": len(compared.krylov.values_k),
        "random_cosine": 1 / math.sqrt(loss.space.size),
        "score_moment": covariances.score_moment,
        "advantage_variance": covariances.advantage_variance,
        "rl_trace_bound": covariances.rl_bound,
        "versions": {name: version(name) for name in ("effopd", "torch", "transformers")},
    }


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
    shown = {
        "descent": ("rate", "step", "cosine", "norm_ratio", "loss", "predicted_loss"),
        "checkpoints": (
            "step", "cosine", "cosine_drive", "cosine_sign", "leading_share", "loss",
            "quadratic_loss",
        ),
        "scales": ("step", "accepted_scale", "theory_scale", "fitted_scale", "least_scale"),
        "covariances": ("estimator", "trace", "effective_rank", "mean_norm"),
    }  # fmt: skip
    for name, columns in shown.items():
        if tables[name]:
            lines += [name, "  " + "".join(f"{column:>16}" for column in columns)]
            lines += ["  " + "".join(_shown(row[c]) for c in columns) for row in tables[name]]
    return lines


def _shown(value: Any) -> str:
    """A cell of 16 characters; `-` where there is no number, as where nothing curves upwards."""
    if isinstance(value, float):
        return f"{value:>16.4g}"
    return f"{'-' if value is None else value:>16}"
