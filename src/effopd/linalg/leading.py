"""The leading singular directions of a matrix, exactly or with a bound on their error.

Axes: the matrix is m by n, k counts directions, b is the width of a block, c and d count the
columns of the two bases.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.linalg.singular_values import gram_eigenvectors, power_of_two
from effopd.precision import float32_products

RANK_TOLERANCE = 1e-6
"""Share of the largest value below which a value is rounding and its direction means nothing."""
TOLERANCE = 1e-5
"""Relative error of leading directions that is accepted: largest residual over its value."""
LARGEST_BASIS = 0.25
"""Share of the short side up to which a Krylov basis grows; beyond it, exact costs no more."""
OVERSAMPLING = 10
"""Random columns of a block beyond the k directions asked for."""
LEAST_DEPTH = 2
"""Depth below which nothing counts as converged.

A start from a neighbour can have converged before the random columns have grown towards a
direction that the neighbour lacks.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """The leading singular triples of a matrix, largest value first; none for a zero matrix.

    `residuals_k` is the norm of what a triple misses, `|A^T u - s v|` or `|A v - s u|` (the other
    is zero): a singular value lies within it of the value. `next_value` is a lower bound on, and an
    estimate of, the value after the last one; `asked` counts the directions asked for, and
    `products` the vectors that were multiplied with the matrix or its transpose.
    """

    U_mk: Float[Tensor, "m k"]
    values_k: Float[Tensor, "k"]
    V_nk: Float[Tensor, "n k"]
    residuals_k: Float[Tensor, "k"]
    next_value: float
    asked: int
    products: int

    @property
    def never_moved(self) -> bool:
        """Whether the matrix is zero, so that it has no direction."""
        return len(self.values_k) == 0

    @property
    def relative_error(self) -> float:
        """Largest residual over its value; or how far a direction left out exceeds the last one.

        Every value has a true one within this share of it; that none between them is missed rests
        on the random columns. A direction is off by an angle of about this over its relative gap.
        """
        if self.never_moved:
            return 0.0
        overtaken = self.next_value / float(self.values_k[-1]) - 1
        return max(float((self.residuals_k / self.values_k).max()), overtaken, 0.0)

    @property
    def relative_gaps_k(self) -> Float[Tensor, "k"]:
        """Distance of each value to its nearest neighbour, over the value, in [0, 1].

        A value that is tied (gap 0) has no direction of its own: any vector of a plane would do.
        """
        below = self.subspace_gaps_k
        above = torch.full_like(below, torch.inf)
        above[1:] = below[:-1] * self.values_k[:-1] / self.values_k[1:]
        return torch.minimum(below, above)

    @property
    def subspace_gaps_k(self) -> Float[Tensor, "k"]:
        """Distance of value j to value j + 1, over value j: 0 leaves the first j undetermined."""
        following = torch.cat([self.values_k, self.values_k.new_tensor([self.next_value])])[1:]
        return ((self.values_k - following) / self.values_k).clamp_(0.0, 1.0)


def leading_directions(
    matrix_mn: Float[Tensor, "m n"],
    k: int,
    *,
    start: Float[Tensor, "n j"] | None = None,
    tolerance: float = TOLERANCE,
) -> Directions:
    """Leading k singular directions of a matrix in float64, the same at every call.

    Block Krylov iteration until the relative error is reached; exactly where k is a large part of
    the short side, or where the values lie so dense that the iteration would cost as much. A zero
    matrix has no directions (`never_moved`), one of rank below k has fewer than k: values below
    1e-6 of the largest one are rounding.

    `start` are right directions of a similar matrix, which save products; `tolerance` is the
    largest residual over its value, see `Directions.relative_error`.
    """
    matrix = matrix_mn.double()
    depth = int(LARGEST_BASIS * min(matrix.shape, default=0) / (k + OVERSAMPLING))
    if depth < 2:
        return exact_directions(matrix, k, tolerance=tolerance)
    found = block_krylov(matrix, k, depth=depth, start=start, tolerance=tolerance)
    if found.relative_error <= tolerance:
        return found
    exact = exact_directions(matrix, k, tolerance=tolerance)
    return replace(exact, products=exact.products + found.products)


def exact_directions(
    matrix_mn: Float[Tensor, "m n"], k: int, *, tolerance: float = 1e-9
) -> Directions:
    """Leading directions from all eigenvectors of the float64 Gram matrix of the shorter side.

    The Gram matrix loses `(largest / k-th value)**2` times rounding; where the residual says that
    this is more than the tolerance, a whole singular value decomposition is made instead.
    """
    power_of_two(matrix_mn)  # refuses what is no matrix, or has a NaN or an infinity in it
    matrix = matrix_mn.double()
    # Eigenvectors of the short side's Gram matrix, then A on the space that they span.
    is_wide = matrix.shape[0] <= matrix.shape[1]
    wide = matrix if is_wide else matrix.T
    basis = gram_eigenvectors(wide)[1][:, : k + 1]
    across, triangle = torch.linalg.qr(wide.T @ basis)
    small_left, values, small_right_t = torch.linalg.svd(triangle.T, full_matrices=False)
    triples = basis @ small_left, values, across @ small_right_t.T
    found = _leading(wide, triples, k, wide.shape[0] + basis.shape[1])
    if not is_wide:
        found = replace(found, U_mk=found.V_nk, V_nk=found.U_mk)
    if found.relative_error <= tolerance:
        return found
    left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
    return _leading(matrix, (left, values, right_t.T), k, min(matrix.shape))


def _leading(
    matrix: Tensor, triples: tuple[Tensor, Tensor, Tensor], k: int, products: int
) -> Directions:
    """The first k of the triples, where they are not rounding, and what they miss."""
    values = triples[1]
    count = _significant(values, k)
    left, right = triples[0][:, :count].clone(), triples[2][:, :count].clone()
    return Directions(
        U_mk=left,
        values_k=values[:count].clone(),
        V_nk=right,
        residuals_k=(matrix @ right - left * values[:count]).norm(dim=0),
        next_value=float(values[count]) if count < len(values) else 0.0,
        asked=k,
        products=products + count,
    )


def _significant(values: Tensor, k: int) -> int:
    """How many of the first k values are not rounding; 0 for a zero matrix."""
    share = max(RANK_TOLERANCE, 64 * torch.finfo(values.dtype).eps)
    return int((values[:k] > share * values[:1]).sum())


@float32_products()
def block_krylov(
    matrix_mn: Float[Tensor, "m n"],
    k: int,
    *,
    depth: int,
    start: Float[Tensor, "n j"] | None = None,
    generator: torch.Generator | None = None,
    tolerance: float = 0.0,
) -> Directions:
    """Leading directions in the space of `A G, A A^T A G, ...` of a block G, in A's dtype.

    The block bidiagonalisation of Golub and Kahan with full reorthogonalisation: two products with
    the matrix for each depth, and a residual that needs no further one. Columns that a product does
    not add anything to are dropped, so a matrix of low rank ends it early and exactly. Cost of a
    depth: 4 m n (k + 10) operations, and memory for k + 10 more vectors of both lengths.

    `start`, orthonormal, takes the place of random columns of G, of which 10 stay. The iteration
    stops once the relative error is within the tolerance, from depth 2 on; in float32 the error
    stays above about `1e-7 * largest / k-th value`.

    Source: Golub, Luk and Overton 1981; Musco and Musco 2015 for the random start.
    """
    assert min(k, depth) >= 1
    power_of_two(matrix_mn)  # refuses what is no matrix, or has a NaN or an infinity in it
    # Orthonormal bases P (right, d columns) and Q (left, c columns) with `A P = Q T`. Always
    # `A^T Q = P T^T + N L` too: N is the next right block, and only the newest columns of Q have a
    # part L in it.
    left_mc, right_nd = matrix_mn.new_empty(len(matrix_mn), 0), matrix_mn[:0].T
    table_cd, scale, products = matrix_mn.new_empty(0, 0), 0.0, 0
    # The first block: the start and random columns, k + OVERSAMPLING orthonormal ones or n.
    n = matrix_mn.shape[1]
    known_nb = right_nd[:, :0] if start is None else start[:, :k].to(matrix_mn)
    count = max(0, min(k + OVERSAMPLING, n) - known_nb.shape[1])
    generator = generator or torch.Generator().manual_seed(0)
    drawn_nb = torch.randn(n, count, generator=generator, dtype=torch.float64).to(matrix_mn)
    next_nb = orthonormal_rest(torch.cat([known_nb, drawn_nb / n**0.5], 1), right_nd, 1.0)[1]
    for reached in range(1, depth + 1):
        # Another block of Q, and the columns of T that belong to it.
        image_mb = matrix_mn @ next_nb
        scale = max(scale, float(torch.linalg.matrix_norm(image_mb)))  # grows to that of A
        within, new_mb, beyond = orthonormal_rest(image_mb, left_mc, scale)
        below = table_cd.new_zeros(beyond.shape[0], table_cd.shape[1])
        table_cd = torch.cat([torch.cat([table_cd, within], 1), torch.cat([below, beyond], 1)])
        left_mc, right_nd = torch.cat([left_mc, new_mb], 1), torch.cat([right_nd, next_nb], 1)
        products += next_nb.shape[1] + new_mb.shape[1]
        # The next block of P, and the part of A^T Q outside of P.
        back_nb = matrix_mn.T @ new_mb
        scale = max(scale, float(torch.linalg.matrix_norm(back_nb)))
        _, next_nb, carry_bb = orthonormal_rest(back_nb, right_nd, scale)
        # Singular triples of A restricted to the bases, and what they miss.
        small_left, values, small_right_t = torch.linalg.svd(table_cd, full_matrices=False)
        missed = carry_bb @ small_left[len(small_left) - carry_bb.shape[1] :]
        count = _significant(values, k)
        rest = torch.cat([values[count:].diag(), missed[:, count:]])
        found = Directions(
            U_mk=left_mc @ small_left[:, :count],
            values_k=values[:count],
            V_nk=right_nd @ small_right_t[:count].T,
            residuals_k=missed[:, :count].norm(dim=0),
            next_value=float(torch.linalg.matrix_norm(rest, 2)) if rest.numel() else 0.0,
            asked=k,
            products=products,
        )
        accurate = reached >= LEAST_DEPTH and found.relative_error <= tolerance
        if accurate or next_nb.shape[1] == 0:  # no product leads out of the bases: exact
            break
    return found


def orthonormal_rest(
    block: Float[Tensor, "m b"], basis: Float[Tensor, "m c"], scale: float
) -> tuple[Float[Tensor, "c b"], Float[Tensor, "m a"], Float[Tensor, "a b"]]:
    """`block = basis @ within + new @ beyond` with orthonormal `new`, orthogonal to the basis.

    Columns of `new` that `scale` times rounding would fill are left out, so a may be less than b.
    """
    within = basis.T @ block
    rest = block - basis @ within
    columns, triangle = torch.linalg.qr(rest)
    turn, sizes, across = torch.linalg.svd(triangle, full_matrices=False)
    kept = int((sizes > 64 * torch.finfo(block.dtype).eps * scale).sum())
    new = columns @ turn[:, :kept]
    # What was small against the block is not yet orthogonal to rounding; a second time is enough.
    new, lengths = torch.linalg.qr(new - basis @ (basis.T @ new))
    new = new * lengths.diagonal().sign()  # QR may turn a column round
    return within, new, sizes[:kept, None] * across[:kept]
