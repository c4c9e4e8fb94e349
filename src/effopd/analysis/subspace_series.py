"""How the leading directions of one tensor turn along a run.

Figure 5b plots the agreement with the final directions over checkpoints; figure 12 that of the
first direction at the first checkpoint, over layers and components.

Source: arXiv 2605.11739, figures 5b and 12.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from effopd.analysis.subspaces import (
    captured_norms,
    direction_cosines,
    principal_angles,
    subspace_cosines,
)
from effopd.linalg.leading import TOLERANCE, Directions, leading_directions

DIRECTIONS = 20
"""Directions that are compared, as in figure 5b."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the leading directions of two updates agree; entry j - 1 is for j directions.

    Attributes:
        direction_cosines: See `direction_cosines`.
        subspace_cosines: See `subspace_cosines`.
        captured_norms: See `captured_norms`: of this update, in the directions of the other.
        angles: Principal angles between the whole subspaces in radians, smallest first.
    """

    direction_cosines: tuple[float, ...]
    subspace_cosines: tuple[float, ...]
    captured_norms: tuple[float, ...]
    angles: tuple[float, ...]

    @property
    def mean_direction_cosine(self) -> float:
        """Mean over the directions compared."""
        return sum(self.direction_cosines) / len(self.direction_cosines)

    @property
    def mean_subspace_cosine(self) -> float:
        """Mean over j = 1, 2, ... of the cosine between the leading j directions."""
        return sum(self.subspace_cosines) / len(self.subspace_cosines)


@dataclass(frozen=True, kw_only=True)
class SubspaceRow:
    """One tensor at one checkpoint: figure 5b over checkpoints, figure 12 over tensors.

    Attributes:
        index: Position in the series, from 0.
        asked: Directions asked for.
        values: Singular values found, largest first; fewer than asked where the rank is smaller,
            none where the tensor never moved.
        relative_gaps: Distance of each to its nearest neighbour, over the value; near 0 its
            direction cosine means nothing.
        relative_error: See `Directions.relative_error`.
        products: Vectors that were multiplied to find them.
        to_final: Agreement with the final update; None where either has no direction.
        to_previous: With the checkpoint before; None also for the first one.
    """

    index: int
    asked: int
    values: tuple[float, ...]
    relative_gaps: tuple[float, ...]
    relative_error: float
    products: int
    to_final: Agreement | None
    to_previous: Agreement | None

    @property
    def never_moved(self) -> bool:
        """Whether the update is zero everywhere."""
        return not self.values


def subspace_series(
    updates_mn: Iterable[Float[Tensor, "m n"]],
    final_mn: Float[Tensor, "m n"],
    k: int = DIRECTIONS,
    *,
    tolerance: float = TOLERANCE,
) -> Iterator[SubspaceRow]:
    """Leading directions of one tensor along a run, against the final and the previous ones.

    Updates are taken one by one; of those before only the directions of the final and the
    previous one stay. Each search starts from the directions of its neighbour.

    Args:
        updates_mn: Update of the tensor at each checkpoint, in the order of training.
        final_mn: Update at the end, which may also be the last of the series.
        k: Directions wanted, at least 1.
        tolerance: See `leading_directions`.
    """
    final = leading_directions(final_mn, k, tolerance=tolerance)
    del final_mn  # it may be as large as the update in hand
    previous: Directions | None = None
    neighbour = final
    for index, stored_mn in enumerate(updates_mn):
        update_mn = stored_mn.double()
        own = leading_directions(update_mn, k, start=neighbour.V_nk, tolerance=tolerance)
        yield SubspaceRow(
            index=index,
            asked=k,
            values=tuple(own.values_k.tolist()),
            relative_gaps=tuple(own.relative_gaps_k.tolist()),
            relative_error=own.relative_error,
            products=own.products,
            to_final=agreement(own, final, update_mn),
            to_previous=None if previous is None else agreement(own, previous, update_mn),
        )
        previous = own
        neighbour = neighbour if own.never_moved else own


def agreement(
    own: Directions, other: Directions, update_mn: Float[Tensor, "m n"]
) -> Agreement | None:
    """How far two updates' left directions agree; None where either never moved.

    Args:
        own: Directions of the update.
        other: Directions of another update of the same tensor.
        update_mn: The update itself.
    """
    if own.never_moved or other.never_moved:
        return None
    left, right = own.U_mk, other.U_mk
    return Agreement(
        direction_cosines=tuple(direction_cosines(left, right).tolist()),
        subspace_cosines=tuple(subspace_cosines(left, right).tolist()),
        captured_norms=tuple(captured_norms(right, update_mn, own).tolist()),
        angles=tuple(principal_angles(left, right).tolist()),
    )


# Tables -------------------------------------------------------------------------------------------

SUMMARY: Mapping[str, Callable[[Agreement], float]] = {
    "cosine_1": lambda found: found.direction_cosines[0],
    "direction_cosine": lambda found: found.mean_direction_cosine,
    "subspace_cosine": lambda found: found.mean_subspace_cosine,
    "captured_norm": lambda found: found.captured_norms[-1],
    "largest_angle": lambda found: found.angles[-1],
}
"""What a table says of an agreement."""
BY_DIRECTION: Mapping[str, Callable[[Agreement], Sequence[float]]] = {
    "direction_cosine": lambda found: found.direction_cosines,
    "subspace_cosine": lambda found: found.subspace_cosines,
    "captured_norm": lambda found: found.captured_norms,
}
"""What a table of directions says of an agreement."""


def subspace_columns(row: SubspaceRow) -> dict[str, float | None]:
    """What a table holds of a row: one number a column, None where there is none."""
    columns = {
        "directions_asked": row.asked,
        "directions": len(row.values),
        "relative_error": row.relative_error,
        "relative_gap_1": row.relative_gaps[0] if row.relative_gaps else None,
    }
    for name, found in (("final", row.to_final), ("previous", row.to_previous)):
        for key, number in SUMMARY.items():
            columns[f"{name}_{key}"] = None if found is None else number(found)
    return columns


def direction_rows(row: SubspaceRow) -> Iterator[dict[str, float | None]]:
    """A row for each direction found, 1 first: the long form of `subspace_columns`.

    Directions beyond those that the two updates share have None.
    """
    for j, (value, gap) in enumerate(zip(row.values, row.relative_gaps, strict=True)):
        columns: dict[str, float | None]
        columns = {"direction": j + 1, "singular_value": value, "relative_gap": gap}
        for name, found in (("final", row.to_final), ("previous", row.to_previous)):
            for key, entries in BY_DIRECTION.items():
                shared = () if found is None else entries(found)
                columns[f"{name}_{key}"] = shared[j] if j < len(shared) else None
        yield columns
