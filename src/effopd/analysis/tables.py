"""Rows of the tables that an analysis of a series of checkpoints leaves.

A number that does not exist (a ratio of an update that never moved) is None and is in no mean.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from effopd.analysis.series import Checkpoint
from effopd.analysis.spectra import SpectralMetrics, noise_metrics
from effopd.models.layout import ModuleTensor

Cell = str | int | float | None
Row = dict[str, Cell]
Rows = list[Row]
TOP = (0.01, 0.05)
"""Shares of the rank whose norm ratio is in the tables: top 1% and top 5%."""
TABLE_1 = ("spectral_norm", "spectral_share", "effective_rank", "top_1_ratio", "top_5_ratio")
"""What Table 1 averages, and the column of its baseline is `noise_` and the name."""
NO_COLUMNS = {"shape", "top_ratios"}
"""Fields of `SpectralMetrics` that are no single number."""
AGREEMENTS = ("cosine_1", "direction_cosine", "subspace_cosine", "captured_norm")


def module_columns(module: ModuleTensor) -> Row:
    """What a module is, as columns."""
    names = "layer", "block", "projection", "expert"
    columns = {name: getattr(module, name) for name in names}
    return {"place": module.label, **columns, "shape": " x ".join(map(str, module.shape))}


_noise = lru_cache(maxsize=256)(noise_metrics)


def metric_columns(found: SpectralMetrics) -> Row:
    """Spectral metrics as columns; `TOP` must have been asked for."""
    columns = {name: cell for name, cell in vars(found).items() if name not in NO_COLUMNS}
    return columns | {f"top_{100 * share:g}_ratio": found.top_ratios[share] for share in TOP}


def noise_columns(found: SpectralMetrics) -> Row:
    """What noise of the same shape and norm would have; None where nothing moved."""
    of_norm_1 = _noise(*found.shape, 1.0, top=TOP)
    noise = metric_columns(of_norm_1)
    noise["spectral_norm"] = of_norm_1.spectral_norm * found.frobenius_norm
    names = [name for name in noise if name not in {"rank", "frobenius_norm"}]
    return {f"noise_{name}": None if found.never_moved else noise[name] for name in names}


def table_1_rows(series: Sequence[Checkpoint], spectra: Iterable[Mapping[str, Cell]]) -> Rows:
    """Means over all MLP and attention matrices, with those of noise beside them.

    Source: arXiv 2605.11739, Table 1. The noise and the stable rank are ours.
    """
    spectra = list(spectra)
    names = [*TABLE_1, "stable_rank"]
    rows = []
    for checkpoint in series:
        own = [row for row in spectra if row["checkpoint"] == checkpoint.label]
        moved = [row for row in own if row["rank"]]
        counts: Row = {"matrices": len(moved), "never_moved": len(own) - len(moved)}
        columns = [column for name in names for column in (name, f"noise_{name}")]
        rows.append(checkpoint.columns | counts | _means(moved, columns))
    return rows


def subspace_progress_rows(
    series: Sequence[Checkpoint], subspaces: Iterable[Mapping[str, Cell]]
) -> Rows:
    """Agreement of the leading directions with the final and the previous ones, over matrices.

    `progress` is the share of the series that is done, in (0, 1]: by steps where all are known.

    Source: arXiv 2605.11739, figure 5b.
    """
    subspaces = list(subspaces)
    known = [checkpoint.step for checkpoint in series if checkpoint.step is not None]
    counted = known if len(known) == len(series) and known[-1] else range(1, len(series) + 1)
    names = [f"{end}_{name}" for end in ("final", "previous") for name in AGREEMENTS]
    return [
        checkpoint.columns
        | {"progress": at / counted[-1]}
        | _means([row for row in subspaces if row["checkpoint"] == checkpoint.label], names)
        for checkpoint, at in zip(series, counted, strict=True)
    ]


def subspace_by_count_rows(
    series: Sequence[Checkpoint], directions: Iterable[Mapping[str, Cell]]
) -> Rows:
    """The same for each number of leading directions."""
    names = [f"{end}_{name}" for end in ("final", "previous") for name in AGREEMENTS[1:]]
    members = _members(directions, "checkpoint", "direction")
    counts = sorted({int(count) for _, count in members if isinstance(count, int)})
    return [
        checkpoint.columns | {"directions": count, "matrices": len(found)} | _means(found, names)
        for checkpoint in series
        for count in counts
        if (found := members.get((checkpoint.label, count)))
    ]


def map_rows(rows: Iterable[Mapping[str, Cell]], name: str) -> Rows:
    """A heat map of layers by projections: means of a column over the experts of each.

    Source: arXiv 2605.11739, figures 12 and 13.
    """
    known = (row for row in rows if row[name] is not None)
    return [
        {"layer": layer, "projection": projection, "places": len(found), **_means(found, [name])}
        for (layer, projection), found in _members(known, "layer", "projection").items()
    ]


def _members(
    rows: Iterable[Mapping[str, Cell]], *names: str
) -> dict[tuple[Cell, ...], list[Mapping[str, Cell]]]:
    """Rows by their cells in the named columns."""
    found: dict[tuple[Cell, ...], list[Mapping[str, Cell]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _means(rows: Sequence[Mapping[str, Cell]], names: Iterable[str]) -> Row:
    """Mean of each column over the rows that have a number there; None without any."""
    found: Row = {}
    for name in names:
        numbers = [cell for row in rows if isinstance(cell := row[name], int | float)]
        found[name] = math.fsum(numbers) / len(numbers) if numbers else None
    return found
