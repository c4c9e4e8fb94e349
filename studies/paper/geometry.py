"""Measurements that need no evaluation: Table 1, figures 5a, 5b, 11 to 13, 15 to 28, Table 3."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from studies.paper.study import METHODS, Scene
from torch import Tensor

from effopd.analysis.embeddings import embedding_shift
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
from effopd.analysis.trajectories import explained_variance_ratio, leading_trajectory, pca_points
from effopd.models.layout import Place, matrices, places
from effopd.models.updates import Update, read_place
from effopd.records import Row

EARLY_SHARE = 0.3
"""What counts as early training, as in the paper."""


def geometry(scene: Scene) -> Row:
    """Spectra of the final update and directions over checkpoints, by method."""
    found = places(scene.update("opd").shapes)
    modules = matrices(found)
    projections = list(dict.fromkeys(place.projection for place in modules))
    pictured = next(place for place in modules if place.projection == "down" and place.layer == 2)
    record: Row = {"projections": projections, "pictured": pictured.label}
    paths: list[Tensor] = []
    for method in METHODS:
        updates = [scene.update(method, step) for step in scene.study.checkpoint_steps]
        record[method] = {"table1": table_1(updates[-1], modules)}
        record[method] |= _over_time(updates, modules, list(scene.study.checkpoint_steps))
        series = (read_place(update, pictured) for update in updates)
        points = leading_trajectory(series).points_Td
        mirrored = paths and float(points[0] @ paths[0][0]) < 0  # a direction has no sign
        paths.append(-points if mirrored else points)
        for key in ("first_last", "evr"):
            values: dict[Place, float] = record[method].pop(f"{key}_by_place")
            record[method][key] = fmean(list(values.values()))
            record[method][f"{key}_map"] = _map(values, projections)
    plane = pca_points(torch.cat(paths)).split([len(path) for path in paths])
    for method, own in zip(METHODS, plane, strict=True):
        record[method]["points"] = own.tolist()
    return record


def table_1(update: Update, modules: Sequence[Place]) -> Row:
    """Means over all attention and MLP matrices that moved."""
    moment = Checkpoint(label="final", step=None, directory=Path())
    found = [spectral_metrics(read_place(update, place), top=TOP) for place in modules]
    rows = [moment.columns | metric_columns(each) | noise_columns(each) for each in found]
    (means,) = table_1_rows([moment], rows)
    return {name: means[name] for name in TABLE_1}


def _over_time(updates: Sequence[Update], modules: Sequence[Place], steps: list[int]) -> Row:
    """Directions of every module that had moved at every checkpoint, against the last ones."""
    cosines: list[list[float]] = [[] for _ in updates]
    first_last, evr, paths = {}, {}, []
    for place in modules:
        series = [read_place(update, place) for update in updates]
        found = [row.to_final for row in subspace_series(series, series[-1])]
        agreements = [agreement for agreement in found if agreement is not None]
        if len(agreements) < len(updates):
            continue
        for row, agreement in zip(cosines, agreements, strict=True):
            row.append(agreement.mean_subspace_cosine)
        first_last[place] = agreements[0].direction_cosines[0]
        vectors_Td = leading_trajectory(series).points_Td
        if (ratio := explained_variance_ratio(vectors_Td)) is not None:
            evr[place] = ratio
        paths.append(path_length(vectors_Td))
    means = [fmean(row) for row in cosines]
    last_early = max(steps[0], EARLY_SHARE * steps[-1])
    early = [m for m, step in zip(means, steps, strict=True) if step <= last_early]
    return {
        "steps": steps,
        "cosine_to_final": means,
        "early_cosine": fmean(early),
        "first_last_by_place": first_last,
        "evr_by_place": evr,
        "path": fmean(paths),
    }


def path_length(vectors_Td: Tensor) -> float:
    """Length of the polyline through the points; 0 for points that never move."""
    return torch.linalg.vector_norm(vectors_Td.diff(dim=0), dim=1).sum().item()


def shift(scene: Scene) -> Row:
    """Mean cosine of token embeddings to the base's, over the tokens of its answers (Table 3)."""
    parts = scene.parts
    evaluation = parts.evaluate_student()
    ids = torch.tensor([t for r in evaluation.rollouts for t in r.completion.token_ids])
    record: Row = {}
    for method in METHODS:
        update = scene.update(method)
        name = next(p.name for p in places(update.shapes) if p.block == "embedding")
        row = embedding_shift(update.read_base(name), update.read_tuned(name), ids)
        record[method] = {"embedding_cosine": row["mean_cosine"]}
    return record


def _map(values: dict[Place, float], projections: Sequence[str]) -> list[list[float]]:
    """Projections by layers."""
    layers = 1 + max(place.layer or 0 for place in values)
    rows = [[0.0] * layers for _ in projections]
    for place, value in values.items():
        rows[projections.index(place.projection)][place.layer or 0] = value
    return rows
