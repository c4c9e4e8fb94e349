"""Where an update points: its leading directions, and how those of two updates agree.

Axes: an update is m by n, k counts directions, largest singular value first. Directions are
orthonormal columns in float64; of two updates, as many are compared as the one with fewer has.

Direction by direction, `|<u_j, u'_j>|` means nothing where values are tied, hence the relative gap
beside it. As subspaces, the mean cosine of the principal angles is the same for every basis.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.linalg.leading import Directions, leading_directions

DIRECTIONS = 20
"""Directions that are compared, as in figure 5b."""


def direction_cosines(
    U_mk: Float[Tensor, "m k"], other_mk: Float[Tensor, "m j"]
) -> Float64[Tensor, "i"]:
    """`|<u_j, u'_j>|` for each direction, which has no sign, in [0, 1].

    Source: one reading of the top-k cosine of arXiv 2605.11739, figure 5b, which does not define
    it; the other is `subspace_cosines`.
    """
    return _products(U_mk, other_mk).diagonal().abs().clamp(max=1.0)


def subspace_cosines(
    U_mk: Float[Tensor, "m k"], other_mk: Float[Tensor, "m j"]
) -> Float64[Tensor, "i"]:
    """Mean cosine of the principal angles between the leading j directions, for j = 1, 2, ...

    `||U_j^T U'_j||_* / j`, in [0, 1]: 1 for equal subspaces, whatever their bases.

    Source: one reading of the top-k cosine of arXiv 2605.11739, figure 5b, which does not define
    it; the other is `direction_cosines`.
    """
    products = _products(U_mk, other_mk)
    means = [torch.linalg.svdvals(products[:j, :j]).mean() for j in range(1, len(products) + 1)]
    return torch.stack(means).clamp(max=1.0) if means else products.new_empty(0)


def principal_angles(
    U_mk: Float[Tensor, "m k"], other_mk: Float[Tensor, "m j"]
) -> Float64[Tensor, "i"]:
    """Angles between two subspaces in radians, smallest first, in [0, pi / 2].

    Angles below pi / 4 from their sines, the others from their cosines, so that tiny ones are
    accurate to rounding and not to its root.

    Source: Björck and Golub 1973.
    """
    wide, narrow = sorted((U_mk.double(), other_mk.double()), key=lambda u: -u.shape[1])
    products = wide.T @ narrow
    cosines = torch.linalg.svdvals(products).clamp(max=1.0)
    sines = torch.linalg.svdvals(narrow - wide @ products).flip(0).clamp(max=1.0)
    return torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())


def captured_norms(
    other_mk: Float[Tensor, "m k"], update_mn: Float[Tensor, "m n"], own: Directions
) -> Float64[Tensor, "i"]:
    """Share of an update's top-j norm that another's leading j directions capture, j = 1, 2, ...

    `||U'_j U'_j^T W||_F / ||W_j||_F` with the best rank-j part W_j, in [0, 1] because no j
    directions capture more than the update's own.
    """
    count = min(other_mk.shape[1], len(own.values_k))
    columns = other_mk[:, :count].double()
    captured = (columns.T @ update_mn.double()).square().sum(1).cumsum(0)
    available = own.values_k[:count].double().square().cumsum(0)
    return (captured / available).sqrt().clamp(max=1.0)


def _products(U_mk: Tensor, other_mk: Tensor) -> Tensor:
    """`U^T U'` of as many directions as both have."""
    count = min(U_mk.shape[1], other_mk.shape[1])
    return U_mk[:, :count].double().T @ other_mk[:, :count].double()


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the leading directions of two updates agree; entry j - 1 is for j directions.

    `captured_norms` are of this update, in the directions of the other; `angles` are the principal
    ones between the whole subspaces in radians, smallest first.
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

    Where a relative gap of `own` is near 0, the direction's cosine means nothing. An agreement is
    None where either update has no direction.
    """

    own: Directions
    to_final: Agreement | None
    to_previous: Agreement | None


def subspace_series(
    updates_mn: Iterable[Float[Tensor, "m n"]],
    final_mn: Float[Tensor, "m n"],
    k: int = DIRECTIONS,
) -> Iterator[SubspaceRow]:
    """Leading directions of one tensor along a run, against the final and the previous ones.

    Updates are taken one by one; of those before only the directions of the final and the
    previous one stay. Each search starts from the directions of its neighbour.
    """
    final = leading_directions(final_mn, k)
    del final_mn  # it may be as large as the update in hand
    previous: Directions | None = None
    neighbour = final
    for stored_mn in updates_mn:
        update_mn = stored_mn.double()
        own = leading_directions(update_mn, k, start=neighbour.V_nk)
        yield SubspaceRow(
            own=own,
            to_final=agreement(own, final, update_mn),
            to_previous=None if previous is None else agreement(own, previous, update_mn),
        )
        previous = own
        neighbour = neighbour if own.never_moved else own


def agreement(
    own: Directions, other: Directions, update_mn: Float[Tensor, "m n"]
) -> Agreement | None:
    """How far two updates' left directions agree; None where either never moved."""
    if own.never_moved or other.never_moved:
        return None
    left, right = own.U_mk, other.U_mk
    return Agreement(
        direction_cosines=tuple(direction_cosines(left, right).tolist()),
        subspace_cosines=tuple(subspace_cosines(left, right).tolist()),
        captured_norms=tuple(captured_norms(right, update_mn, own).tolist()),
        angles=tuple(principal_angles(left, right).tolist()),
    )


def subspace_columns(row: SubspaceRow) -> dict[str, float | None]:
    """What a table holds of a row: one number a column, None where there is none."""
    own = row.own
    columns: dict[str, float | None] = {"directions_asked": own.asked}
    columns |= {"directions": len(own.values_k), "relative_error": own.relative_error}
    columns["relative_gap_1"] = None if own.never_moved else float(own.relative_gaps_k[0])
    names = "cosine_1", "direction_cosine", "subspace_cosine", "captured_norm", "largest_angle"
    for end, found in (("final", row.to_final), ("previous", row.to_previous)):
        numbers: tuple[float | None, ...] = (None,) * len(names)
        if found is not None:
            means = found.mean_direction_cosine, found.mean_subspace_cosine
            numbers = found.direction_cosines[0], *means, found.captured_norms[-1], found.angles[-1]
        columns |= {f"{end}_{key}": n for key, n in zip(names, numbers, strict=True)}
    return columns


def direction_rows(row: SubspaceRow) -> Iterator[dict[str, float | None]]:
    """A row for each direction found, 1 first: the long form of `subspace_columns`.

    Directions beyond those that the two updates share have None.
    """
    numbers = zip(row.own.values_k.tolist(), row.own.relative_gaps_k.tolist(), strict=True)
    for j, (value, gap) in enumerate(numbers):
        columns: dict[str, float | None]
        columns = {"direction": j + 1, "singular_value": value, "relative_gap": gap}
        for name, found in (("final", row.to_final), ("previous", row.to_previous)):
            for key in ("direction_cosine", "subspace_cosine", "captured_norm"):
                shared = () if found is None else getattr(found, f"{key}s")
                columns[f"{name}_{key}"] = shared[j] if j < len(shared) else None
        yield columns
