"""What `effopd analyze` measures, in units that are finished one by one.

A unit reads one place: of one checkpoint, or of all of them one after the other.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from effopd.analysis.modules import place_factors
from effopd.analysis.series import Inputs
from effopd.analysis.spectra import SpectralMetrics, metrics_of, spectral_metrics
from effopd.analysis.subspaces import (
    DIRECTIONS,
    direction_rows,
    subspace_columns,
    subspace_series,
)
from effopd.analysis.tables import (
    TOP,
    CheckpointLabel,
    checkpoint_labels,
    metric_columns,
    noise_columns,
)
from effopd.analysis.trajectories import (
    LEAST_POINTS,
    explained_variance_ratio,
    leading_trajectory,
    pca_points,
    tsne_points,
)
from effopd.analysis.updates import place_paths, place_statistics
from effopd.linalg.singular_values import product_svd
from effopd.models.layout import Place, matrices, places, read_heads
from effopd.models.updates import Update, read_place
from effopd.records import Row


class CheckpointSeries:
    """The opened base and checkpoints.

    Args:
        inputs: Where they are.
        device: Where spectra and directions are computed.
    """

    def __init__(self, inputs: Inputs, device: str) -> None:
        self.inputs, self.device = inputs, device
        *self.updates, self.final = inputs.updates()
        every = [update.shapes.keys() for update in self.updates]
        shapes = {
            name: shape
            for name, shape in self.final.shapes.items()
            if all(name in names for names in every)
        }
        found = places(shapes, read_heads(inputs.base))
        self.places = [place for place in found if math.prod(place.shape) > 0]
        self.by_label = {place.label: place for place in self.places}

    @cached_property
    def labels(self) -> list[CheckpointLabel]:
        """The checkpoints as tables name them."""
        series = self.inputs.checkpoints
        return checkpoint_labels([each.label for each in series], [each.step for each in series])

    @cached_property
    def not_compared(self) -> dict[str, dict[str, str]]:
        """Checkpoint to the tensors that only it or only the base has, and why."""
        pairs = zip(self.inputs.checkpoints, self.updates, strict=True)
        return {each.label: dict(update.left_out) for each, update in pairs if update.left_out}

    @cached_property
    def draws_tsne(self) -> bool:
        """Whether scikit-learn is installed."""
        return importlib.util.find_spec("sklearn") is not None

    def read(self, update: Update, place: Place) -> Tensor:
        """The update at a place, on the device."""
        return read_place(update, place).to(self.device)

    def series(self, place: Place) -> Iterator[Tensor]:
        """The update at a place at every checkpoint, read when asked for."""
        return (self.read(update, place) for update in self.updates)


@dataclass(frozen=True)
class Unit:
    """One place of one checkpoint, or of all.

    Attributes:
        place: Where.
        checkpoint: Position in the series; None for all.
    """

    place: Place
    checkpoint: int | None = None

    def key(self, series: CheckpointSeries) -> tuple[str, str | None]:
        """What names it in the file of finished units."""
        at = self.checkpoint
        return self.place.label, None if at is None else series.labels[at].label


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One kind of unit.

    Attributes:
        measure: Makes the record of a unit: JSON values.
        whole_series: Whether a unit reads all checkpoints.
        matrices_only: Whether only matrices of attention and MLP are looked at.
    """

    measure: Callable[[CheckpointSeries, Unit], Row]
    whole_series: bool
    matrices_only: bool

    def units(self, series: CheckpointSeries) -> list[Unit]:
        """All units, place by place, so that neighbours read the same pages of the base."""
        chosen = matrices(series.places) if self.matrices_only else series.places
        if self.whole_series:
            return [Unit(place) for place in chosen]
        return [Unit(place, t) for place in chosen for t in range(len(series.updates))]


def measure_statistics(series: CheckpointSeries, unit: Unit) -> Row:
    """Fields of `UpdateStatistics`."""
    _, found = next(place_statistics(_update(series, unit), [unit.place]))
    return asdict(found)


def measure_path(series: CheckpointSeries, unit: Unit) -> Row:
    """Fields of `PathGeometry`."""
    _, found = next(place_paths(series.updates, [unit.place]))
    return asdict(found)


def measure_spectrum(series: CheckpointSeries, unit: Unit) -> Row:
    """Metrics of the singular values, and those of noise."""
    found = _metrics(series, _update(series, unit), unit.place)
    return {**metric_columns(found), **noise_columns(found)}


def measure_subspaces(series: CheckpointSeries, unit: Unit) -> Row:
    """For every checkpoint the columns of its row, and those of each direction."""
    final = series.read(series.final, unit.place)
    rows = []
    for row in subspace_series(series.series(unit.place), final, DIRECTIONS):
        rows.append({"columns": subspace_columns(row), "directions": list(direction_rows(row))})
    return {"checkpoints": rows}


def measure_trajectory(series: CheckpointSeries, unit: Unit) -> Row:
    """Share of variance in two dimensions, and coordinates in pictures by their kind."""
    path = leading_trajectory(series.series(unit.place))
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


MEASUREMENTS: Mapping[str, Measurement] = {
    "statistics": Measurement(measure=measure_statistics, whole_series=False, matrices_only=False),
    "paths": Measurement(measure=measure_path, whole_series=True, matrices_only=False),
    "spectra": Measurement(measure=measure_spectrum, whole_series=False, matrices_only=True),
    "subspaces": Measurement(measure=measure_subspaces, whole_series=True, matrices_only=True),
    "trajectories": Measurement(measure=measure_trajectory, whole_series=True, matrices_only=True),
}
"""By the name of the file of finished units."""


def _update(series: CheckpointSeries, unit: Unit) -> Update:
    assert unit.checkpoint is not None
    return series.updates[unit.checkpoint]


def _metrics(series: CheckpointSeries, update: Update, place: Place) -> SpectralMetrics:
    """Of an adapter from its factors, whose rank the rounded product would not have."""
    factors = place_factors(update, place)
    if factors is None:
        return spectral_metrics(series.read(update, place), top=TOP)
    left_mr, right_rn = (factor.to(series.device) for factor in factors)
    m, n = place.shape
    found_k = product_svd(left_mr, right_rn)[1]
    values_p = torch.nn.functional.pad(found_k, (0, min(m, n) - len(found_k)))
    return metrics_of(values_p, (m, n), top=TOP)
