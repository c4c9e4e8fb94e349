"""All singular values of a matrix, exact, and which of them are zero up to rounding.

Axes: a matrix is m by n, p = min(m, n) is its short side and q = max(m, n) its long one.
Everything is float64 on the matrix' device, whatever its dtype.

The values come from the p by p Gram matrix, whose eigenvalues are their squares. Squaring costs
half of the digits of small values: below 1e-8 of the largest one a Gram value is rounding noise,
and a few hundred of these move an effective rank by 1e-6. The error that the noise can cause is
therefore bounded from the eigenvalues themselves; where it may exceed `TOLERANCE`, or where a value
cannot be told from zero, the values are computed again from a QR factorisation and a singular value
decomposition of its triangle, several times slower and without squares.
"""

import math

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError

TOLERANCE = 5e-10
"""Largest relative error of the effective rank that the Gram matrix may cause."""
PIECE = 2**22
"""Elements of a matrix that are widened to float64 at a time, 32 MiB."""
STRIP = 256
"""Rows of the Gram matrix that are computed at a time, up to the diagonal."""
EPSILON = torch.finfo(torch.float64).eps
NOISE = 16
"""Frobenius norm of the Gram matrix's error, in units of `EPSILON` times its trace.

That of its sums and of the eigenvalue solver; the largest found is 4, less for larger matrices.
"""
LEAST_SIZE = 16
"""Size below which a decomposition is not more accurate than at this one."""


def above_rounding(
    values: Float[Tensor, "..."],
    size: int,
    *,
    largest: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Bool[Tensor, "..."]:
    """Where an eigenvalue or singular value is larger in size than rounding can make a zero.

    The cutoff is `size * eps` of the largest value, as in `numpy.linalg.matrix_rank`, with a size
    of at least `LEAST_SIZE` and a share of at most `sqrt(eps)`: long sums lose less than that.
    `size` is the longer side of the matrix, `largest` what the values are compared with where it is
    not the largest of them, `dtype` what the matrix, or products with it, were computed in.
    """
    eps = torch.finfo(dtype).eps
    share = min(max(size, LEAST_SIZE) * eps, math.sqrt(eps))
    sizes = values.abs()
    if largest is None:
        largest = float(sizes.max()) if sizes.numel() else 0.0
    return (sizes > share * largest) & (sizes > 0)


def numerical_rank(values: Float64[Tensor, "k"], shape: tuple[int, int]) -> int:
    """How many of the leading singular values of an m by n matrix are above rounding."""
    return int(above_rounding(values, max(shape)).sum())


def singular_values(matrix_mn: Float[Tensor, "m n"]) -> Float64[Tensor, "p"]:
    """All singular values, descending, accurate enough for every metric to 1e-9.

    `p*p*q` floating-point operations for the Gram matrix and about `4/3 p**3` for its eigenvalues;
    where the module's docstring sends them to QR, `2 p*p*q + 8/3 p**3` or more. Beside the matrix
    it needs `2 p*p + PIECE` float64 numbers, and with QR `2 p*q + 2 p*p`.

    Values above 1e-4 of the largest are accurate to 1e-9; for smaller ones one by one see
    `tail_singular_values`.
    """
    exponent = power_of_two(matrix_mn)
    squares_p = torch.linalg.eigvalsh(_lower_gram(matrix_mn, exponent)).flip(0).clamp_(min=0)
    values_p = squares_p.sqrt()
    is_resolved = bool(squares_p[0] == 0)
    if smallest_is_not_zero(squares_p):
        # The noise is that of a symmetric perturbation E of the Gram matrix. To first order value i
        # moves by `u_i^T E u_i / (2 value_i)` and the entropy by `sum_i |log p_i + entropy|` times
        # that over the sum of the values: at most the Frobenius norm of E times the root of the
        # summed squares.
        noise, logs_p = NOISE * EPSILON * squares_p.sum(), (values_p / values_p.sum()).log()
        weights_p = (logs_p + value_entropy(values_p)) / (2 * (squares_p - noise).sqrt())
        is_resolved = bool(noise * weights_p.norm() < TOLERANCE * values_p.sum())
    return values_p.mul_(2.0**exponent) if is_resolved else _values_by_qr(matrix_mn, exponent)


def tail_singular_values(
    matrix_mn: Float[Tensor, "m n"], count: int | None = None
) -> Float64[Tensor, "k"]:
    """The `count` smallest singular values (None: all), each to about 1e-15 of the largest of all.

    From QR and a singular value decomposition of the triangle, without squares; descending.
    """
    exponent, p = power_of_two(matrix_mn), min(matrix_mn.shape)
    if count is not None and not 1 <= count <= p:
        raise ConfigError(f"{count} of {p} singular values; expected 1 to {p}")
    return _values_by_qr(matrix_mn, exponent)[p - (count or p) :]


def gram_eigenvectors(
    matrix_mn: Float[Tensor, "m n"],
) -> tuple[Float64[Tensor, "p"], Float64[Tensor, "p p"]]:
    """Squared values up to a common factor, descending, and singular vectors of the short side.

    As accurate as the eigenvectors of the Gram matrix: a vector whose value is below 1e-8 of the
    largest is noise, and `smallest_is_not_zero` says whether there may be such.
    """
    squares_p, vectors_pp = torch.linalg.eigh(_lower_gram(matrix_mn, power_of_two(matrix_mn)))
    return squares_p.flip(0), vectors_pp.flip(1)


def product_svd(
    left_mr: Float[Tensor, "m r"], right_rn: Float[Tensor, "r n"]
) -> tuple[Float64[Tensor, "m k"], Float64[Tensor, "k"], Float64[Tensor, "n k"]]:
    """Singular triples of `left_mr @ right_rn` without the product, such as a LoRA adapter's.

    The product rounded to fp32 has full rank; this one has the rank of its factors. Left vectors,
    values, right vectors: k = min(m, r, n) of them, largest value first.
    """
    if left_mr.dim() != 2 or right_rn.dim() != 2 or left_mr.shape[1] != right_rn.shape[0]:
        raise ParameterMismatchError(
            f"factors of shapes {tuple(left_mr.shape)} and {tuple(right_rn.shape)}; expected"
            " [m, r] and [r, n]."
        )
    exponents = power_of_two(left_mr), power_of_two(right_rn)
    left, left_r = torch.linalg.qr(_widened(left_mr, exponents[0]))
    right, right_r = torch.linalg.qr(_widened(right_rn.T, exponents[1]))
    u, values_k, v_transposed = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    return left @ u, values_k.mul_(2.0 ** sum(exponents)), right @ v_transposed.T


def power_of_two(matrix_mn: Float[Tensor, "m n"]) -> int:
    """Exponent, in [-1000, 1000], of the power of two just above the largest entry; 0 for zeros.

    Divided by that power, which is exact, no square over- or underflows.
    """
    shape = tuple(matrix_mn.shape)
    if len(shape) != 2 or not matrix_mn.is_floating_point() or 0 in shape:
        raise ParameterMismatchError(
            f"an update of shape {shape} and {matrix_mn.dtype}; expected [m, n] of floating-point"
            " numbers, none of the sizes 0"
        )
    least, most = (bound.item() for bound in matrix_mn.detach().aminmax())
    largest = max(-least, most)
    if not math.isfinite(least + most):
        raise NonFiniteError(
            f"an update of shape {shape} has entries from {least} to {most}; its checkpoint is"
            " damaged or training diverged"
        )
    return min(max(math.frexp(largest)[1], -1000), 1000)


def value_entropy(values_p: Float64[Tensor, "p"]) -> float:
    """Entropy of the values over their sum, in nats: the logarithm of the effective rank."""
    return float(torch.special.entr(values_p / values_p.sum()).sum().item())


def smallest_is_not_zero(squares_p: Float64[Tensor, "p"]) -> bool:
    """Whether a Gram matrix' smallest eigenvalue is for certain not zero; descending values."""
    return bool(squares_p[-1] > 2 * NOISE * EPSILON * squares_p.sum())


def _lower_gram(matrix_mn: Tensor, exponent: int) -> Float64[Tensor, "p p"]:
    """Lower triangle of the Gram matrix of the short side; above it, parts and zeros."""
    short_pq = matrix_mn if matrix_mn.shape[0] <= matrix_mn.shape[1] else matrix_mn.T
    p, q = short_pq.shape
    gram_pp = torch.zeros(p, p, dtype=torch.float64, device=matrix_mn.device)
    width = max(1, PIECE // p)
    for start in range(0, q, width):
        piece = _widened(short_pq[:, start : start + width], exponent)
        for top in range(0, p, STRIP):
            stop = top + STRIP
            gram_pp[top:stop, :stop].addmm_(piece[top:stop], piece[:stop].T)
    return gram_pp


def _values_by_qr(matrix_mn: Tensor, exponent: int) -> Float64[Tensor, "p"]:
    tall_qp = matrix_mn if matrix_mn.shape[0] >= matrix_mn.shape[1] else matrix_mn.T
    matrix = _widened(tall_qp, exponent)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = torch.linalg.qr(matrix, mode="r").R
    return torch.linalg.svdvals(matrix).mul_(2.0**exponent)


def _widened(part: Tensor, exponent: int) -> Float64[Tensor, "a b"]:
    """A part of a matrix in float64, its largest entry between 1/2 and 1."""
    return part.detach().to(torch.float64, copy=True).mul_(2.0**-exponent)
