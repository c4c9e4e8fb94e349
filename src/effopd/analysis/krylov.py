"""Leading singular directions of a matrix by block Krylov iteration.

Axes: the matrix is m by n, k counts directions, b is the width of a block, c and d count the
columns of the two bases.

The iteration is the block bidiagonalisation of Golub and Kahan with full reorthogonalisation: two
products with the matrix for each depth, and a residual that needs no further one. Columns that a
product does not add anything to are dropped, so a matrix of low rank ends it early and exactly.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.analysis.directions import Directions, check_matrix, significant
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.precision import float32_products

OVERSAMPLING = 10
"""Random columns of a block beyond the k directions asked for."""
LEAST_DEPTH = 2
"""Depth below which nothing counts as converged.

A start from a neighbour can have converged before the random columns have grown towards a
direction that the neighbour lacks.
"""


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

    Cost of a depth: 4 m n (k + 10) operations, and memory for k + 10 more vectors of both lengths.

    Args:
        matrix_mn: A, float32 or float64. In float32 the relative error stays above about
            `1e-7 * largest / k-th value`.
        k: Directions wanted, at least 1.
        depth: Largest number of rounds of two products.
        start: Right directions of a similar matrix, orthonormal; they take the place of random
            columns of G, of which 10 stay.
        generator: Source of the random columns, on the CPU; None for one with a fixed seed.
        tolerance: Stops once the relative error is no larger, from depth 2 on.

    Raises:
        ConfigError: Depth is below 1.

    Source: Golub, Luk and Overton 1981; Musco and Musco 2015 for the random start.
    """
    check_matrix(matrix_mn, k)
    if depth < 1:
        raise ConfigError(f"depth is {depth}; expected at least 1")
    bases = _Bases(matrix_mn, _first_block(matrix_mn, k, start, generator))
    for reached in range(1, depth + 1):
        bases.grow_()
        found = bases.directions(k)
        accurate = reached >= LEAST_DEPTH and found.relative_error <= tolerance
        if accurate or bases.is_exhausted:
            break
    return found


class _Bases:
    """Orthonormal bases P (right, d columns) and Q (left, c columns) with `A P = Q T`.

    `A^T Q = P T^T + N L` holds too: N is the next right block, and only the newest columns of Q
    have a part L in it.
    """

    def __init__(self, matrix_mn: Tensor, first_nb: Tensor) -> None:
        self._matrix = matrix_mn
        self._left_mc = matrix_mn.new_empty(matrix_mn.shape[0], 0)
        self._right_nd = matrix_mn.new_empty(matrix_mn.shape[1], 0)
        self._next_nb = first_nb
        self._table_cd = matrix_mn.new_empty(0, 0)
        self._carry_bb = matrix_mn.new_empty(0, 0)
        self._scale = 0.0
        self._products = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether no product leads out of the bases: what they hold is exact."""
        return self._next_nb.shape[1] == 0

    def grow_(self) -> None:
        """Another block on both sides."""
        self._right_nd = torch.cat([self._right_nd, self._next_nb], 1)
        within, new_mb, beyond = self._split(self._matrix @ self._next_nb, self._left_mc)
        self._table_cd = _extended(self._table_cd, within, beyond)
        self._left_mc = torch.cat([self._left_mc, new_mb], 1)
        self._products += self._next_nb.shape[1] + new_mb.shape[1]
        back_nb = self._matrix.T @ new_mb
        _, self._next_nb, self._carry_bb = self._split(back_nb, self._right_nd)

    def _split(self, block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`orthonormal_rest`, where what is small against the matrix is dropped."""
        # The Frobenius norm of a product with orthonormal columns grows to that of the matrix.
        self._scale = max(self._scale, float(torch.linalg.matrix_norm(block)))
        return orthonormal_rest(block, basis, self._scale)

    def directions(self, k: int) -> Directions:
        """Singular triples of A restricted to the bases."""
        small_left, values, small_right_t = torch.linalg.svd(self._table_cd, full_matrices=False)
        newest = self._carry_bb.shape[1]
        missed = self._carry_bb @ small_left[len(small_left) - newest :]
        count = significant(values, k)
        rest = torch.cat([values[count:].diag(), missed[:, count:]])
        return Directions(
            U_mk=self._left_mc @ small_left[:, :count],
            values_k=values[:count],
            V_nk=self._right_nd @ small_right_t[:count].T,
            residuals_k=missed[:, :count].norm(dim=0),
            next_value=float(torch.linalg.matrix_norm(rest, 2)) if rest.numel() else 0.0,
            asked=k,
            products=self._products,
        )


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


def _extended(table_cd: Tensor, within: Tensor, beyond: Tensor) -> Tensor:
    """The table with the columns of a new right block and the rows of a new left one."""
    below = table_cd.new_zeros(beyond.shape[0], table_cd.shape[1])
    return torch.cat([torch.cat([table_cd, within], 1), torch.cat([below, beyond], 1)])


def _first_block(
    matrix_mn: Tensor, k: int, start: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """The start and random columns, together `k + OVERSAMPLING` orthonormal ones or n.

    Raises:
        ParameterMismatchError: The start has not n rows.
    """
    n = matrix_mn.shape[1]
    if start is None:
        start = matrix_mn.new_empty(n, 0)
    if start.ndim != 2 or start.shape[0] != n:
        raise ParameterMismatchError(
            f"a start of shape {list(start.shape)} for a matrix of shape {list(matrix_mn.shape)}; "
            f"expected right directions, [{n}, up to {k}]"
        )
    generator = generator or torch.Generator().manual_seed(0)
    known = start[:, :k].to(matrix_mn)
    count = max(0, min(k + OVERSAMPLING, n) - known.shape[1])
    drawn = torch.randn(n, count, generator=generator, dtype=torch.float64).to(matrix_mn)
    block = torch.cat([known, drawn / n**0.5], 1)
    return orthonormal_rest(block, matrix_mn.new_empty(n, 0), 1.0)[1]
