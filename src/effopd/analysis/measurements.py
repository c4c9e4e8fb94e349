"""What an analysis measures, module by module, and the tables that come of it.

A unit of work reads one module (a tensor, a part of a fused one, or an expert): of one checkpoint,
or of all of them one after the other. Its record is JSON, so that it can be kept and read again.
"""

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch
from torch import Tensor

from effopd.analysis.modules import module_factors
from effopd.analysis.series import Inputs
from effopd.analysis.spectra import metrics_of, spectral_metrics
from effopd.analysis.subspaces import DIRECTIONS, direction_rows, subspace_columns, subspace_series
from effopd.analysis.tables import (
    TOP,
    Rows,
    map_rows,
    metric_columns,
    module_columns,
    noise_columns,
    subspace_by_count_rows,
    subspace_progress_rows,
    table_1_rows,
)
from effopd.analysis.trajectories import (
    LEAST_POINTS,
    explained_variance_ratio,
    leading_trajectory,
    pca_points,
    tsne_points,
)
from effopd.analysis.updates import (
    Grouping,
    PathGeometry,
    UpdateStatistics,
    grouped,
    module_statistics,
    path_geometry,
    summed_paths,
    summed_statistics,
)
from effopd.errors import NonFiniteError
from effopd.linalg.singular_values import product_svd
from effopd.models.layout import ModuleTensor, matrices, module_tensors, read_heads
from effopd.models.updates import read_module
from effopd.records import Row

Unit = tuple[str, str | None]
"""Label of a module, and of a checkpoint; None for all checkpoints."""
Records = Mapping[Unit, Row]
Tables = dict[str, Rows]
SUMS: tuple[Grouping, ...] = ("whole", "block", "layer", "layer and block", "projection")
"""Parts of the model that `norm_sums` has rows of."""


class CheckpointSeries:
    """The opened base and checkpoints; spectra and directions are computed on `device`."""

    def __init__(self, inputs: Inputs, device: str) -> None:
        self.inputs, self.device = inputs, device
        *self.updates, self.final = inputs.updates()
        shapes = {
            name: shape
            for name, shape in self.final.shapes.items()
            if all(name in update.shapes for update in self.updates)
        }
        found = module_tensors(shapes, read_heads(inputs.base))
        self.modules = {module.label: module for module in found if math.prod(module.shape) > 0}
        self.checkpoints = inputs.checkpoints
        self.update_of = {c.label: u for c, u in zip(self.checkpoints, self.updates, strict=True)}
        self.draws_tsne = importlib.util.find_spec("sklearn") is not None

    @contextmanager
    def naming(self, checkpoint: str) -> Iterator[None]:
        """What is not finite is said to be of this checkpoint."""
        try:
            yield
        except NonFiniteError as error:
            raise NonFiniteError(f"checkpoint {checkpoint}: {error}") from None

    def along(self, module: ModuleTensor) -> Iterator[Tensor]:
        """The update of a module at every checkpoint, read when asked for."""
        for checkpoint, update in zip(self.checkpoints, self.updates, strict=True):
            with self.naming(checkpoint.label):
                found = read_module(update, module).to(self.device)
            yield found


class Measurement(ABC):
    """One thing that can be asked for: how a unit is measured, and what is tabulated."""

    whole_series: bool = True  # a unit reads all checkpoints
    matrices_only: bool = True  # of attention and MLP

    def units(self, series: CheckpointSeries) -> list[Unit]:
        """All units, module by module, so that neighbours read the same pages of the base."""
        chosen = series.modules.values()
        names = [module.label for module in (matrices(chosen) if self.matrices_only else chosen)]
        labels = [None] if self.whole_series else [each.label for each in series.checkpoints]
        return [(name, label) for name in names for label in labels]

    @abstractmethod
    def measure(self, series: CheckpointSeries, unit: Unit) -> Row:
        """The record of a unit."""

    @abstractmethod
    def tabulate(self, series: CheckpointSeries, records: Records) -> Tables:
        """The tables of all units, which come in the order of `units`."""


class Norms(Measurement):
    """How far modules moved and by which path: `norms`, their sums, and `never_moved`."""

    matrices_only = False

    def measure(self, series: CheckpointSeries, unit: Unit) -> Row:
        """Fields of `UpdateStatistics` at every checkpoint, and of `PathGeometry`."""
        module, statistics = series.modules[unit[0]], []
        for checkpoint, update in zip(series.checkpoints, series.updates, strict=True):
            with series.naming(checkpoint.label):
                statistics.append(asdict(module_statistics(update, module)))
        path = path_geometry(read_module(update, module) for update in series.updates)
        return {"statistics": statistics, "path": asdict(path)}

    def tabulate(self, series: CheckpointSeries, records: Records) -> Tables:
        """Rows of modules, of parts of the model, and of what is zero at every checkpoint."""
        statistics: list[list[tuple[ModuleTensor, UpdateStatistics]]] = [
            [] for _ in series.checkpoints
        ]
        paths = []
        for (label, _), record in records.items():
            module = series.modules[label]
            for at, found in zip(statistics, record["statistics"], strict=True):
                at.append((module, UpdateStatistics(**found)))
            path = {name: tuple(values) for name, values in record["path"].items()}
            paths.append((module, PathGeometry(**path)))
        norms: Rows = [
            checkpoint.columns | module_columns(module) | _norms(found, path, t)
            for t, checkpoint in enumerate(series.checkpoints)
            for (module, found), (_, path) in zip(statistics[t], paths, strict=True)
        ]
        sums: Rows = []
        for grouping in SUMS:
            summed = {key: summed_paths(parts) for key, parts in grouped(paths, grouping).items()}
            for t, checkpoint in enumerate(series.checkpoints):
                for key, parts in grouped(statistics[t], grouping).items():
                    part = dict.fromkeys(("layer", "block", "projection"), None)
                    row: Row = {"grouping": grouping, **part, "places": len(parts)}
                    row |= dict(zip(grouping.split(" and "), key, strict=False))
                    numbers = _norms(summed_statistics(parts), summed[key], t)
                    sums.append(checkpoint.columns | row | numbers)
        still: Rows = [
            {"place": label}
            for (label, _), record in records.items()
            if not any(found["max_abs"] for found in record["statistics"])
        ]
        return {"norms": norms, "norm_sums": sums, "never_moved": still}


def _norms(found: UpdateStatistics, path: PathGeometry, t: int) -> Row:
    """Columns of `norms`, with the path up to checkpoint t."""
    part = replace(
        path,
        step_squares=path.step_squares[: t + 1],
        step_products=path.step_products[:t],
        displacement_squares=path.displacement_squares[: t + 1],
    )
    return {
        **asdict(found),
        "relative_norm": found.relative_norm,
        "step_norm": part.step_norms[-1],
        "step_cosine": part.step_cosines[-1] if t else None,
        "path_length": part.path_length,
        "straightness": part.straightness,
    }


class Spectra(Measurement):
    """Singular values of every update, beside those of noise: `spectra` and `table1`."""

    whole_series = False

    def measure(self, series: CheckpointSeries, unit: Unit) -> Row:
        """Spectral metrics; of an adapter from its factors, as the product is rounded."""
        label, checkpoint = unit
        assert checkpoint is not None
        module, update = series.modules[label], series.update_of[checkpoint]
        m, n = module.shape
        with series.naming(checkpoint):
            factors = module_factors(update, module)
            if factors is None:
                update_mn = read_module(update, module).to(series.device)
                found = spectral_metrics(update_mn, top=TOP)
            else:
                values_k = product_svd(*(factor.to(series.device) for factor in factors))[1]
                values_p = torch.nn.functional.pad(values_k, (0, min(m, n) - len(values_k)))
                found = metrics_of(values_p, (m, n), top=TOP)
        return {**metric_columns(found), **noise_columns(found)}

    def tabulate(self, series: CheckpointSeries, records: Records) -> Tables:
        """Rows checkpoint by checkpoint."""
        rows = [
            checkpoint.columns | module_columns(series.modules[label]) | record
            for checkpoint in series.checkpoints
            for (label, at), record in records.items()
            if at == checkpoint.label
        ]
        return {"spectra": rows, "table1": table_1_rows(series.checkpoints, rows)}


class Subspaces(Measurement):
    """Leading directions against the final and the previous ones: `subspaces`, `directions`, ..."""

    def measure(self, series: CheckpointSeries, unit: Unit) -> Row:
        """For every checkpoint the columns of its row, and those of each direction."""
        module = series.modules[unit[0]]
        with series.naming(series.inputs.final.label):
            final_mn = read_module(series.final, module).to(series.device)
        return {
            "checkpoints": [
                {"columns": subspace_columns(row), "directions": list(direction_rows(row))}
                for row in subspace_series(series.along(module), final_mn, DIRECTIONS)
            ]
        }

    def tabulate(self, series: CheckpointSeries, records: Records) -> Tables:
        """Rows, their means over matrices, and the heat map of the first checkpoint."""
        rows: Rows = []
        directions: Rows = []
        for t, checkpoint in enumerate(series.checkpoints):
            for (label, _), record in records.items():
                found = record["checkpoints"][t]
                where = checkpoint.columns | module_columns(series.modules[label])
                rows.append(where | found["columns"])
                directions += [where | direction for direction in found["directions"]]
        return {
            "subspaces": rows,
            "directions": directions,
            "subspace_progress": subspace_progress_rows(series.checkpoints, rows),
            "subspace_by_count": subspace_by_count_rows(series.checkpoints, directions),
            "directions_map": map_rows(rows[: len(records)], "final_cosine_1"),
        }


class Trajectories(Measurement):
    """The path of the first left direction: `trajectories`, points of pictures, a heat map."""

    def measure(self, series: CheckpointSeries, unit: Unit) -> Row:
        """Share of variance in two dimensions, and coordinates in pictures by their kind."""
        path = leading_trajectory(series.along(series.modules[unit[0]]))
        pictures = {} if path.never_moved else {"pca": pca_points(path.points_Td).tolist()}
        if series.draws_tsne and len(path.indices) >= LEAST_POINTS:
            pictures["tsne"] = tsne_points(path.points_Td).tolist()
        ratio = None if path.never_moved else explained_variance_ratio(path.points_Td)
        return {
            "moved": list(path.indices),
            "explained_variance_ratio": ratio,
            "smallest_gap": min(path.relative_gaps, default=None),
            "pictures": pictures,
        }

    def tabulate(self, series: CheckpointSeries, records: Records) -> Tables:
        """A row for each matrix, and for each point of its pictures."""
        rows: Rows = []
        points: Rows = []
        for (label, _), record in records.items():
            where, moved = module_columns(series.modules[label]), record["moved"]
            numbers = {name: record[name] for name in ("explained_variance_ratio", "smallest_gap")}
            rows.append(where | {"checkpoints_moved": len(moved)} | numbers)
            for kind, coordinates in record["pictures"].items():
                where |= {"projection_kind": kind}
                for t, (x, y) in zip(moved, coordinates, strict=True):
                    points.append(where | series.checkpoints[t].columns | {"x": x, "y": y})
        return {
            "trajectories": rows,
            "trajectory_points": points,
            "trajectory_map": map_rows(rows, "explained_variance_ratio"),
        }


MEASUREMENTS: Mapping[str, Measurement] = {
    "norms": Norms(),
    "spectra": Spectra(),
    "subspaces": Subspaces(),
    "trajectories": Trajectories(),
}
"""By the name that asks for it, in the order in which they are measured."""
