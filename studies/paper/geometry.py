"""Measurements that need no evaluation: Table 1, figures 5a, 5b, 11 to 13, 15 to 28, Table 3."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch
from studies.paper.study import BOTH, Scene
from torch import Tensor

from effopd.analysis.embeddings import embedding_shift, state_shift
from effopd.analysis.run_theory import frozen_loss, write_text
from effopd.analysis.series import Checkpoint
from effopd.analysis.spectra import spectral_metrics
from effopd.analysis.subspaces import subspace_series
from effopd.analysis.tables import (
    TABLE_1,
    TOP,
    metric_columns,
    noise_columns,
    table_1_rows,
)
from effopd.analysis.theory import SAMPLED_CONTEXTS, estimator_covariances
from effopd.analysis.trajectories import explained_variance_ratio, leading_trajectory, pca_points
from effopd.models.layout import ModuleTensor, matrices, module_tensors
from effopd.models.loading import load_model
from effopd.models.policy import Policy
from effopd.models.updates import Update, read_module
from effopd.records import Row

EARLY_SHARE = 0.3
"""What counts as early training, as in the paper."""


def geometry(scene: Scene) -> Row:
    """Spectra of the final update and directions over checkpoints, by method."""
    found = module_tensors(scene.update("opd").shapes)
    modules = matrices(found)
    projections = list(dict.fromkeys(module.projection for module in modules))
    pictured = next(
        module for module in modules if module.projection == "down" and module.layer == 2
    )
    record: Row = {"projections": projections, "pictured": pictured.label}
    paths: list[Tensor] = []
    for method in BOTH:
        steps = scene.study.moment_steps(method, scene.seed)
        updates = [scene.update(method, step) for step in steps]
        record[method] = {"table1": table_1(updates[-1], modules)}
        record[method] |= _over_time(updates, modules, steps)
        series = (read_module(update, pictured) for update in updates)
        points = leading_trajectory(series).points_Td
        mirrored = paths and float(points[0] @ paths[0][0]) < 0  # a direction has no sign
        paths.append(-points if mirrored else points)
        for key in ("first_last", "evr"):
            values: dict[ModuleTensor, float] = record[method].pop(f"{key}_by_module")
            record[method][key] = fmean(list(values.values()))
            record[method][f"{key}_map"] = _map(values, projections)
    plane = pca_points(torch.cat(paths)).split([len(path) for path in paths])
    for method, own in zip(BOTH, plane, strict=True):
        record[method]["points"] = own.tolist()
    as_good = scene.step_as_good("grpo", "opd")
    record["matched"] = {"step": as_good}
    record["matched"]["table1"] = table_1(scene.update("grpo", as_good), modules)
    return record


def table_1(update: Update, modules: Sequence[ModuleTensor]) -> Row:
    """Means over all attention and MLP matrices that moved."""
    moment = Checkpoint(label="final", step=None, directory=Path())
    found = [spectral_metrics(read_module(update, module), top=TOP) for module in modules]
    rows = [moment.columns | metric_columns(each) | noise_columns(each) for each in found]
    (means,) = table_1_rows([moment], rows)
    return {name: means[name] for name in TABLE_1}


def _over_time(updates: Sequence[Update], modules: Sequence[ModuleTensor], steps: list[int]) -> Row:
    """Directions of every module that had moved at every checkpoint, against the last ones."""
    cosines: list[list[float]] = [[] for _ in updates]
    first_last, evr, paths = {}, {}, []
    for module in modules:
        series = [read_module(update, module) for update in updates]
        found = [row.to_final for row in subspace_series(series, series[-1])]
        agreements = [agreement for agreement in found if agreement is not None]
        if len(agreements) < len(updates):
            continue
        for row, agreement in zip(cosines, agreements, strict=True):
            row.append(agreement.mean_subspace_cosine)
        first_last[module] = agreements[0].direction_cosines[0]
        vectors_Td = leading_trajectory(series).points_Td
        if (ratio := explained_variance_ratio(vectors_Td)) is not None:
            evr[module] = ratio
        paths.append(path_length(vectors_Td))
    means = [fmean(row) for row in cosines]
    last_early = max(steps[0], EARLY_SHARE * steps[-1])
    early = [m for m, step in zip(means, steps, strict=True) if step <= last_early]
    return {
        "steps": steps,
        "cosine_to_final": means,
        "early_cosine": fmean(early),
        "falls": sum(max(0.0, before - after) for before, after in pairwise(means)),
        "first_last_by_module": first_last,
        "evr_by_module": evr,
        "path": fmean(paths),
    }


def path_length(vectors_Td: Tensor) -> float:
    """Length of the polyline through the points; 0 for points that never move."""
    return torch.linalg.vector_norm(vectors_Td.diff(dim=0), dim=1).sum().item()


def shift(scene: Scene) -> Row:
    """Cosines to the base's of last hidden states and of embeddings, on its answers (Table 3)."""
    parts = scene.parts
    evaluation = parts.evaluate_student()
    ids = torch.tensor([t for r in evaluation.rollouts for t in r.completion.token_ids])
    record: Row = {}
    for method in BOTH:
        update = scene.update(method)
        tuned = Policy(load_model(scene.settings_of(method)), parts.student.tokenizer)
        states = state_shift(parts.student, tuned, [r.sample for r in evaluation.rollouts])
        name = next(p.name for p in module_tensors(update.shapes) if p.block == "embedding")
        row = embedding_shift(update.read_base(name), update.read_tuned(name), ids)
        record[method] = {
            "state_cosine": states.row["mean_cosine"],
            "embedding_cosine": row["mean_cosine"],
        }
    return record


CONTEXTS = 512


def estimators(scene: Scene) -> Row:
    """Spread of single-context gradients at the base: reward against distillation (F.5)."""
    text = write_text(scene.parts, CONTEXTS, print)
    loss = frozen_loss(scene.parts, text)
    generator = torch.Generator().manual_seed(scene.seed)
    chosen = torch.randperm(loss.contexts, generator=generator)[:SAMPLED_CONTEXTS].tolist()
    assert text.advantages is not None  # the tiny world checks answers
    found = estimator_covariances(loss, chosen, [text.advantages[i] for i in chosen])
    return {
        name: {**row, "relative_trace": row["trace"] / max(row["mean_norm"] ** 2, 1e-300)}
        for name, row in found["estimators"].items()
    }


def _map(values: dict[ModuleTensor, float], projections: Sequence[str]) -> list[list[float]]:
    """Projections by layers."""
    layers = 1 + max(module.layer or 0 for module in values)
    rows = [[0.0] * layers for _ in projections]
    for module, value in values.items():
        rows[projections.index(module.projection)][module.layer or 0] = value
    return rows
