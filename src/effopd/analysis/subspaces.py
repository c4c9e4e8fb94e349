"""Where an update points: its leading directions, and how those of two updates agree.

Axes: an update is m by n, k counts directions, largest singular value first. Directions are
orthonormal columns in float64. Where two updates are compared, as many directions are as the one
with fewer has.

A direction is compared in two ways. Direction by direction, `|<u_j, u'_j>|`: simple, and without
meaning where values are tied, which is why the relative gap stands beside it. As subspaces, the
mean cosine of the principal angles: the same for every basis of the two subspaces.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.errors import ParameterMismatchError
from effopd.linalg.leading import Directions

ORTHONORMAL = 1e-4
"""Largest deviation from orthonormality that columns may have."""


# Two subspaces ------------------------------------------------------------------------------------


def direction_cosines(
    U_mk: Float[Tensor, "m k"], other_mk: Float[Tensor, "m j"]
) -> Float64[Tensor, "i"]:
    """`|<u_j, u'_j>|` for each direction, in [0, 1].

    The absolute value, because a singular direction has no sign.

    Args:
        U_mk: Directions of one update, orthonormal columns.
        other_mk: Directions of another.

    Source: one reading of the top-k cosine of arXiv 2605.11739, figure 5b, which does not define
    it; the other is `subspace_cosines`.
    """
    return _products(U_mk, other_mk).diagonal().abs().clamp(max=1.0)


def subspace_cosines(
    U_mk: Float[Tensor, "m k"], other_mk: Float[Tensor, "m j"]
) -> Float64[Tensor, "i"]:
    """Mean cosine of the principal angles between the leading j directions, for j = 1, 2, ...

    `||U_j^T U'_j||_* / j`, in [0, 1]: 1 for equal subspaces, whatever their bases.

    Args:
        U_mk: Directions of one update, orthonormal columns.
        other_mk: Directions of another.

    Source: one reading of the top-k cosine of arXiv 2605.11739, figure 5b, which does not define
    it; the other is `direction_cosines`.
    """
    products = _products(U_mk, other_mk)
    sizes = range(1, len(products) + 1)
    means = [torch.linalg.svdvals(products[:j, :j]).mean() for j in sizes]
    return torch.stack(means).clamp(max=1.0) if means else products.new_empty(0)


def principal_angles(
    U_mk: Float[Tensor, "m k"], other_mk: Float[Tensor, "m j"]
) -> Float64[Tensor, "i"]:
    """Angles between two subspaces in radians, smallest first, in [0, pi / 2].

    Angles below pi / 4 from their sines, the others from their cosines, so that tiny ones are
    accurate to rounding and not to its root.

    Args:
        U_mk: Orthonormal basis of one subspace.
        other_mk: Of the other; dimensions may differ, the smaller one counts the angles.

    Source: Björck and Golub 1973.
    """
    wide, narrow = sorted((U_mk.double(), other_mk.double()), key=lambda u: -u.shape[1])
    _check_pair(wide, narrow)
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

    Args:
        other_mk: Left directions of another update, orthonormal columns.
        update_mn: The update W.
        own: Its directions.

    Raises:
        ParameterMismatchError: The directions have not m rows.
    """
    if other_mk.shape[0] != update_mn.shape[0]:
        raise ParameterMismatchError(
            f"directions of length {other_mk.shape[0]} and an update of shape "
            f"{list(update_mn.shape)}; expected directions as long as the update has rows"
        )
    count = min(other_mk.shape[1], len(own.values_k))
    columns = other_mk[:, :count].double()
    captured = (columns.T @ update_mn.double()).square().sum(1).cumsum(0)
    available = own.values_k[:count].double().square().cumsum(0)
    return (captured / available).sqrt().clamp(max=1.0)


def _products(U_mk: Tensor, other_mk: Tensor) -> Tensor:
    """`U^T U'` of as many directions as both have."""
    count = min(U_mk.shape[1], other_mk.shape[1])
    left, other = U_mk[:, :count].double(), other_mk[:, :count].double()
    _check_pair(left, other)
    return left.T @ other


def _check_pair(left: Tensor, other: Tensor) -> None:
    """Refuses columns that are no two sets of directions of one space.

    Raises:
        ParameterMismatchError: Lengths differ, or columns are not orthonormal.
    """
    if left.shape[0] != other.shape[0]:
        raise ParameterMismatchError(
            f"directions of lengths {left.shape[0]} and {other.shape[0]}; expected updates of the "
            "same tensor"
        )
    for columns in (left, other):
        unit = torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
        if not torch.allclose(columns.T @ columns, unit, rtol=0.0, atol=ORTHONORMAL):
            raise ParameterMismatchError(
                f"{columns.shape[1]} columns of length {columns.shape[0]} are not orthonormal; "
                "expected the directions of `leading_directions`"
            )
