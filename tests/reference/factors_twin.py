"""Products of factors on a ray, dense and in float64: what the factored ones must equal."""

import torch
from torch import Tensor

Ends = tuple[Tensor, Tensor]


def dense_point(anchor: Ends, tip: Ends, scale: float) -> Tensor:
    """`anchor + scale * (tip - anchor)` of the products, whatever its rank."""
    start, end = (left.double() @ right.double() for left, right in (anchor, tip))
    return start + scale * (end - start)


def nearest_of_rank(product: Tensor, rank: int) -> Tensor:
    """The nearest matrix of a rank in Frobenius norm (Eckart and Young)."""
    u, values, vh = torch.linalg.svd(product, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vh[:rank]
