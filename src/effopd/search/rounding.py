"""Which values of a spectrum are zero up to rounding, so that nothing divides by them."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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

    Args:
        values: Of one matrix, in any order.
        size: The longer side of the matrix.
        largest: What the values are compared with; None for the largest of them.
        dtype: What the matrix, or products with it, were computed in.

    Returns:
        True where the value counts; nowhere in a matrix of zeros.
    """
    eps = torch.finfo(dtype).eps
    share = min(max(size, LEAST_SIZE) * eps, math.sqrt(eps))
    sizes = values.abs()
    if largest is None:
        largest = float(sizes.max()) if sizes.numel() else 0.0
    return (sizes > share * largest) & (sizes > 0)
