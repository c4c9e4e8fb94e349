"""Measurements that need no evaluation: Table 1, figures 5a, 5b, 11 to 13, 15 to 28, Table 3."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from effopd.analysis.spectra import spectral_metrics
from effopd.analysis.subspaces import leading_directions, subspace_cosines
from effopd.analysis.trajectories import aligned, explained_variance_ratio, pca_points
from effopd.cli.reproduction.scene import Scene
from effopd.cli.reproduction.study import METHODS
from effopd.models.layout import Place, matrices, places
from effopd.models.updates import Update, read_place
from effopd.records import Row

DIRECTIONS = 20
"""Largest k of the top-k subspaces, as in the paper."""
EARLY_SHARE = 0.3
"""What counts as early training, as in the paper."""
TOP_1, TOP_5 = 0.01, 0.05


def geometry(scene: Scene) -> Row:
    """Spectra of the final update and directions over checkpoints, by method."""
    found = places(scene.update("opd").shapes)
    modules = matrices(found)
    projections = list(dict.fromkeys(place.projection for place in modules))
    pictured = next(place for place in modules if place.projection == "down" and place.layer == 2)
    record: Row = {"projections": projections, "pictured": pictured.label}
    for method in METHODS:
        updates = [scene.update(method, step) for step in scene.study.checkpoint_steps]
        record[method] = {"table1": table_1(updates[-1], modules)}
        record[method] |= _over_time(updates, modules, list(scene.study.checkpoint_steps), pictured)
        for key in ("first_last", "evr"):
            values: dict[Place, float] = record[method].pop(f"{key}_by_place")
            record[method][key] = _mean(list(values.values()))
            record[method][f"{key}_map"] = _map(values, projections)
    return record


def table_1(update: Update, modules: Sequence[Place]) -> dict[str, float]:
    """Means over all attention and MLP matrices."""
    rows = [spectral_metrics(read_place(update, place), top=(TOP_1, TOP_5)) for place in modules]
    columns: dict[str, list[float | None]] = {
        "spectral_norm": [row.spectral_norm for row in rows],
        "spectral_share": [row.spectral_share for row in rows],
        "effective_rank": [row.effective_rank for row in rows],
        "top_1": [row.top_ratios[TOP_1] for row in rows],
        "top_5": [row.top_ratios[TOP_5] for row in rows],
    }
    return {
        name: _mean([value for value in values if value is not None])  # None: it never moved
        for name, values in columns.items()
    }


def _over_time(
    updates: Sequence[Update], modules: Sequence[Place], steps: list[int], pictured: Place
) -> Row:
    """Directions of every module that had moved at every checkpoint, against the last ones."""
    cosines: list[list[float]] = [[] for _ in updates]
    first_last, evr, paths, points = {}, {}, [], []
    for place in modules:
        found = [leading_directions(read_place(update, place), DIRECTIONS) for update in updates]
        if any(directions.never_moved for directions in found):
            continue
        for row, directions in zip(cosines, found, strict=True):
            row.append(_mean(subspace_cosines(directions.U_mk, found[-1].U_mk).tolist()))
        first_last[place] = abs((found[0].U_mk[:, 0] @ found[-1].U_mk[:, 0]).item())
        vectors_Td = aligned([directions.U_mk[:, 0] for directions in found])
        if (ratio := explained_variance_ratio(vectors_Td)) is not None:
            evr[place] = ratio
        paths.append(path_length(vectors_Td))
        if place == pictured:
            points = pca_points(vectors_Td).tolist()
    means = [_mean(row) for row in cosines]
    last_early = max(steps[0], EARLY_SHARE * steps[-1])
    early = [m for m, step in zip(means, steps, strict=True) if step <= last_early]
    return {
        "steps": steps,
        "cosine_to_final": means,
        "early_cosine": _mean(early),
        "first_last_by_place": first_last,
        "evr_by_place": evr,
        "path": _mean(paths),
        "points": points,
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
        base, tuned = (read(name).double()[ids] for read in (update.read_base, update.read_tuned))
        cosines = torch.nn.functional.cosine_similarity(base, tuned, dim=1)
        record[method] = {"embedding_cosine": cosines.mean().item()}
    return record


def _map(values: dict[Place, float], projections: Sequence[str]) -> list[list[float]]:
    """Projections by layers."""
    layers = 1 + max(place.layer or 0 for place in values)
    rows = [[0.0] * layers for _ in projections]
    for place, value in values.items():
        rows[projections.index(place.projection)][place.layer or 0] = value
    return rows


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
