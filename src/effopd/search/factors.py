"""Low-rank updates on the ray: the product of two factors moves along it, not the factors.

`point(s)` of a product is `B_0 A_0 + s (B_1 A_1 - B_0 A_0)`, of rank up to 2 r, which the stacked
factors `[(1 - s) B_0, s B_1]` and `[A_0; A_1]` hold exactly. What the live factors can hold is the
nearest product of rank r, found from QR decompositions of the stacks: nothing of the product's own
size is ever made.

Legend: m rows and n columns of a product, r its rank, c columns of a basis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import ConfigError
from effopd.linalg.singular_values import above_rounding

Pair = tuple[str, str]
"""Names of the left factor [m, r] and of the right one [r, n]."""

Ends = tuple[Tensor, Tensor]
"""Left and right factor."""

_FLATTEST = 1e-3
"""Smallest over largest singular value of the map between two bases; see `product_point`."""


@dataclass(frozen=True, kw_only=True)
class FactoredPoint:
    """The nearest product of rank r to a point of the ray, factors in float64."""

    left_mr: Float[Tensor, "m r"]
    right_rn: Float[Tensor, "r n"]
    lost: float
    """Squared Frobenius norm of what rank r cannot hold."""
    whole: float
    """Squared Frobenius norm of the exact point."""


def product_point(anchor: Ends, tip: Ends, scale: float) -> FactoredPoint:
    """The nearest product of the tip's rank to `anchor + scale * (tip - anchor)`.

    Of the many factors with that product those are taken whose right one is the tip's, projected on
    the rows of the new product: near the tip both factors are near the tip's, so that the moments
    of an optimizer still mean something, and no direction of the rank is given up.
    """
    (b_0, a_0), (b_1, a_1) = ([each.double() for each in ends] for ends in (anchor, tip))
    rank = a_1.shape[0]
    # The exact point in the bases of the stacked factors, cut to rank r.
    columns, left = torch.linalg.qr(torch.cat([(1.0 - scale) * b_0, scale * b_1], dim=1))
    rows, right = torch.linalg.qr(torch.cat([a_0, a_1]).T)
    u, values, vh = torch.linalg.svd(left @ right.T, full_matrices=False)
    nearest = (u[:, :rank] * values[:rank]) @ vh[:rank]
    # How much of that is more than rounding, which is relative to the factors: they may cancel.
    largest = float(torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right))
    size = max(len(columns), len(rows))
    kept = int(above_rounding(values[:rank], size, largest=largest).sum())
    # A basis of the new product's rows, filled up to the rank from the tip's own rows.
    of_tip = right[:, rank:].T  # the tip's right factor in the basis `rows`
    basis, wanted = vh[:kept].T, min(vh[:rank].shape)
    if kept < wanted:
        rest = of_tip - of_tip @ basis @ basis.T
        more = torch.linalg.svd(rest, full_matrices=False).Vh[: wanted - kept]
        basis = torch.cat([basis, more.T], dim=1)
    basis = torch.linalg.qr(basis).Q
    # The map from that basis to the tip's right factor, no flatter than `_FLATTEST`, so that it
    # has an inverse.
    tilt_u, tilts, tilt_vh = torch.linalg.svd(of_tip @ basis, full_matrices=False)
    steepest = float(tilts[0])
    tilts = tilts.clamp(min=_FLATTEST * steepest) if steepest else torch.ones_like(tilts)
    tilt_rc, inverse_cr = (tilt_u * tilts) @ tilt_vh, tilt_vh.T @ (tilt_u / tilts).T
    squares = values.square()
    return FactoredPoint(
        left_mr=columns @ (nearest @ basis @ inverse_cr),
        right_rn=tilt_rc @ (rows @ basis).T,
        lost=float(squares[rank:].sum()),
        whole=float(squares.sum()),
    )


class Factors:
    """Pairs of parameters, left and right factors by name, whose products move."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        if not pairs:
            raise ConfigError("no factors to move: pass at least one pair of names")
        self.pairs = tuple(pairs)
        self.names = frozenset(name for pair in pairs for name in pair)

    def check_fit(self, parameters: Mapping[str, Tensor]) -> None:
        """Refuses pairs of which a factor does not move, or that have no product."""
        for left, right in self.pairs:
            missing = [name for name in (left, right) if name not in parameters]
            if missing:
                raise ConfigError(
                    f"{missing[0]} does not move, but its product does: select both factors "
                    "(search.parameters)"
                )
            shapes = tuple(parameters[left].shape), tuple(parameters[right].shape)
            if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][0]:
                raise ConfigError(f"{left} and {right} have no product: shapes {shapes}")

    @torch.no_grad()
    def write_point_(
        self,
        out: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        tip: Mapping[str, Tensor],
        scale: float,
    ) -> float:
        """Writes the factors of `point(scale)`; `out` may be the anchor.

        Returns the relative truncation error of all products together: the Frobenius norm of what
        rank r cannot hold over that of the exact products.
        """
        lost = whole = 0.0
        for left, right in self.pairs:
            device = out[left].device
            start, end = ((each[left].to(device), each[right].to(device)) for each in (anchor, tip))
            point = product_point(start, end, scale)
            out[left].copy_(point.left_mr)
            out[right].copy_(point.right_rn)
            lost, whole = lost + point.lost, whole + point.whole
        return math.sqrt(lost / whole) if whole else 0.0
