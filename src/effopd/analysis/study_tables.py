"""From the records of finished units to the tables of an analysis."""

from collections.abc import Callable, Mapping, Sequence

from effopd.analysis.study_directory import Key
from effopd.analysis.tables import (
    Rows,
    map_rows,
    norm_rows,
    norm_sum_rows,
    place_columns,
    subspace_by_count_rows,
    subspace_progress_rows,
    table_1_rows,
)
from effopd.analysis.units import CheckpointSeries
from effopd.analysis.updates import PathGeometry, UpdateStatistics
from effopd.models.layout import Place
from effopd.records import Row

Records = Mapping[Key, Row]
Tables = dict[str, Rows]


def norm_tables(series: CheckpointSeries, statistics: Records, paths: Records) -> Tables:
    """`norms` of places, and `norm_sums` of parts of the model."""
    by_checkpoint = [
        [(place, _statistics(statistics[place.label, checkpoint.label])) for place in series.places]
        for checkpoint in series.labels
    ]
    geometry = [(place, _path(paths[place.label, None])) for place in series.places]
    return {
        "norms": norm_rows(series.labels, by_checkpoint, geometry),
        "norm_sums": norm_sum_rows(series.labels, by_checkpoint, geometry),
    }


def spectrum_tables(series: CheckpointSeries, spectra: Records) -> Tables:
    """`spectra` of matrices and `table1`."""
    at = {checkpoint.label: checkpoint for checkpoint in series.labels}
    rows = [
        at[str(checkpoint)].columns | place_columns(series.by_label[place]) | _measured(record)
        for (place, checkpoint), record in spectra.items()
    ]
    order = {label: index for index, label in enumerate(at)}
    rows.sort(key=lambda row: order[str(row["checkpoint"])])  # stable: places in order
    return {"spectra": rows, "table1": table_1_rows(series.labels, rows)}


def subspace_tables(series: CheckpointSeries, subspaces: Records) -> Tables:
    """`subspaces`, `directions`, their means, and the heat map of the first checkpoint."""
    rows: Rows = []
    directions: Rows = []
    for t, checkpoint in enumerate(series.labels):
        for (place, _), record in subspaces.items():
            found = record["checkpoints"][t]
            where = checkpoint.columns | place_columns(series.by_label[place])
            rows.append(where | found["columns"])
            directions += [where | direction for direction in found["directions"]]
    first = [row for row in rows if row["checkpoint"] == series.labels[0].label]
    return {
        "subspaces": rows,
        "directions": directions,
        "subspace_progress": subspace_progress_rows(series.labels, rows),
        "subspace_by_count": subspace_by_count_rows(series.labels, directions),
        "directions_map": map_rows(first, "final_cosine_1"),
    }


def trajectory_tables(series: CheckpointSeries, trajectories: Records) -> Tables:
    """`trajectories` of matrices, the points of their pictures, and the heat map."""
    rows: Rows = []
    points: Rows = []
    for (label, _), record in trajectories.items():
        place = series.by_label[label]
        numbers = {
            "checkpoints_moved": len(record["moved"]),
            "explained_variance_ratio": record["explained_variance_ratio"],
            "smallest_gap": record["smallest_gap"],
        }
        rows.append(place_columns(place) | numbers)
        points += _point_rows(series, place, record)
    return {
        "trajectories": rows,
        "trajectory_points": points,
        "trajectory_map": map_rows(rows, "explained_variance_ratio"),
    }


SOURCES: Mapping[str, tuple[tuple[str, ...], Callable[..., Tables]]] = {
    "norms": (("statistics", "paths"), norm_tables),
    "spectra": (("spectra",), spectrum_tables),
    "subspaces": (("subspaces",), subspace_tables),
    "trajectories": (("trajectories",), trajectory_tables),
}
"""What can be asked for -> the measurements it takes, and what makes its tables."""


def never_moved(series: CheckpointSeries, statistics: Records) -> list[str]:
    """Labels of the places whose update is zero at every checkpoint."""
    labels = [checkpoint.label for checkpoint in series.labels]

    def is_still(place: Place) -> bool:
        return not any(statistics[place.label, label]["max_abs"] for label in labels)

    return [place.label for place in series.places if is_still(place)]


def _point_rows(series: CheckpointSeries, place: Place, record: Row) -> Rows:
    """A row for each picture and checkpoint at which the place had moved."""
    rows: Rows = []
    for projection, coordinates in record["pictures"].items():
        for t, (x, y) in zip(record["moved"], coordinates, strict=True):
            where = place_columns(place) | {"projection_kind": projection}
            rows.append(where | series.labels[t].columns | {"x": x, "y": y})
    return rows


def _measured(record: Row) -> Row:
    """The numbers of a record, without what names its unit."""
    return {k: v for k, v in record.items() if k not in {"schema", "place", "checkpoint"}}


def _statistics(record: Row) -> UpdateStatistics:
    return UpdateStatistics(**_measured(record))


def _path(record: Row) -> PathGeometry:
    numbers: Mapping[str, Sequence[float]] = _measured(record)
    return PathGeometry(**{name: tuple(values) for name, values in numbers.items()})
