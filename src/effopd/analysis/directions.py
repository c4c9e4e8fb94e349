"""The leading singular directions of a matrix, and their exact computation.

Axes: the matrix is m by n, k counts directions.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.analysis.singular_values import gram_eigenvectors
from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.weights import is_finite

RANK_TOLERANCE = 1e-6
"""Share of the largest value below which a value is rounding and its direction means nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """The leading singular triples of a matrix, largest value first; none for a zero matrix.

    Attributes:
        U_mk: Left directions, orthonormal columns.
        values_k: Singular values, positive.
        V_nk: Right directions, orthonormal columns.
        residuals_k: Norm of what the triple misses, `|A^T u - s v|` or `|A v - s u|` (the other of
            the two is zero). A singular value lies within it of the value.
        next_value: Lower bound on, and estimate of, the value after the last one.
        asked: Directions asked for. Fewer are held where the rank is smaller.
        products: Vectors that were multiplied with the matrix or its transpose.
    """

    U_mk: Float[Tensor, "m k"]
    values_k: Float[Tensor, "k"]
    V_nk: Float[Tensor, "n k"]
    residuals_k: Float[Tensor, "k"]
    next_value: float
    asked: int
    products: int

    def __post_init__(self) -> None:
        """Refuses parts of different lengths.

        Raises:
            ParameterMismatchError: They are.
        """
        count = len(self.values_k)
        counts = [self.U_mk.shape[1], self.V_nk.shape[1], len(self.residuals_k)]
        if counts != [count] * 3 or count > self.asked:
            raise ParameterMismatchError(
                f"{count} values with {counts} left, right directions and residuals, of "
                f"{self.asked} asked; expected as many of each and no more than asked"
            )

    @property
    def never_moved(self) -> bool:
        """Whether the matrix is zero, so that it has no direction."""
        return len(self.values_k) == 0

    @property
    def is_whole_rank(self) -> bool:
        """Whether the rank is smaller than asked, so that these are all directions there are."""
        return len(self.values_k) < self.asked

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


def exact_directions(
    matrix_mn: Float[Tensor, "m n"], k: int, *, tolerance: float = 1e-9
) -> Directions:
    """Leading directions from all eigenvectors of the float64 Gram matrix of the shorter side.

    The Gram matrix loses `(largest / k-th value)**2` times rounding; where the residual says that
    this is more than the tolerance, a whole singular value decomposition is made instead.

    Args:
        matrix_mn: Any floating dtype.
        k: Directions wanted, at least 1.
        tolerance: Relative error that is acceptable.
    """
    check_matrix(matrix_mn, k)
    matrix = matrix_mn.double()
    found = _from_gram(matrix, k) if matrix.shape[0] <= matrix.shape[1] else _from_tall(matrix, k)
    return found if found.relative_error <= tolerance else _from_whole(matrix, k)


def _from_tall(matrix: Tensor, k: int) -> Directions:
    """`_from_gram` of the transpose, turned back."""
    found = _from_gram(matrix.T, k)
    return replace(found, U_mk=found.V_nk, V_nk=found.U_mk)


def _from_gram(matrix: Tensor, k: int) -> Directions:
    """From the eigenvectors of `A A^T`, then from A on the space that they span."""
    basis = gram_eigenvectors(matrix)[1][:, : k + 1]
    across, triangle = torch.linalg.qr(matrix.T @ basis)
    small_left, values, small_right_t = torch.linalg.svd(triangle.T, full_matrices=False)
    triples = basis @ small_left, values, across @ small_right_t.T
    return _leading(matrix, triples, k, matrix.shape[0] + basis.shape[1])


def _from_whole(matrix: Tensor, k: int) -> Directions:
    """From the whole singular value decomposition."""
    left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
    return _leading(matrix, (left, values, right_t.T), k, min(matrix.shape))


def _leading(
    matrix: Tensor, triples: tuple[Tensor, Tensor, Tensor], k: int, products: int
) -> Directions:
    """The first k of the triples, where they are not rounding, and what they miss."""
    values = triples[1]
    count = significant(values, k)
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


def significant(values: Tensor, k: int) -> int:
    """How many of the first k values are not rounding; 0 for a zero matrix."""
    share = max(RANK_TOLERANCE, 64 * torch.finfo(values.dtype).eps)
    return int((values[:k] > share * values[:1]).sum())


def check_matrix(matrix_mn: Tensor, k: int) -> None:
    """Refuses what has no k directions.

    Raises:
        ConfigError: k is below 1.
        ParameterMismatchError: The tensor is no matrix.
        NonFiniteError: It holds a NaN or an infinity.
    """
    if k < 1:
        raise ConfigError(f"k is {k}; expected at least 1 direction")
    if matrix_mn.ndim != 2 or 0 in matrix_mn.shape:
        raise ParameterMismatchError(
            f"directions of a tensor of shape {list(matrix_mn.shape)}; expected two dimensions, "
            "none of them empty"
        )
    if not is_finite(matrix_mn):
        raise NonFiniteError(
            "the matrix holds a NaN or an infinity, so it has no directions; check the weights"
        )
