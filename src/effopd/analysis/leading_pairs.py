"""Leading singular pair of an update that changes slowly, by a power iteration with a warm start.

Legend: the update is [m, n], the left vector [m], the right vector [n].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.precision import float32_products
from effopd.search.ray import check_fits, wide

COLD_ITERATIONS = 8
"""Without a vector to start from."""


@dataclass(frozen=True, kw_only=True)
class LeadingStatistics:
    """Means over the sampled matrices that have moved; None where none has.

    Attributes:
        spectral_share: Spectral norm over Frobenius norm, in (0, 1]: 1 is rank 1. Never above the
            truth, and below it while the iteration has not converged.
        alignment: Absolute cosine of the left vector with that at the look before. The warm start
            holds it up while the iteration has not converged.
    """

    spectral_share: float | None
    alignment: float | None


class LeadingPairs:
    """Follows the leading pair of the displacement of a few live matrices.

    Memory: a copy of these matrices as they are now, the base, and at a look the update of one.

    Args:
        matrices: Name to live tensor [m, n].
        iterations: Pairs of matrix-vector products at each look.
    """

    def __init__(self, matrices: Mapping[str, Tensor], iterations: int) -> None:
        self._live, self._iterations = dict(matrices), iterations
        self._base = {name: tensor.detach().clone() for name, tensor in matrices.items()}
        self._left: dict[str, Tensor] = {}
        self._right: dict[str, Tensor] = {}

    @torch.no_grad()
    @float32_products()
    def look_(self) -> LeadingStatistics:
        """Improves the vectors and compares them with those of the look before."""
        shares, alignments = [], []
        for name, tensor in self._live.items():
            update_mn = tensor.detach().to(wide(tensor)) - self._base[name].to(wide(tensor))
            norm = torch.linalg.vector_norm(update_mn)
            if not 0 < norm < torch.inf:
                continue
            old = self._left.get(name)
            left_m, value, right_n = leading_pair(
                update_mn / norm, self._right.get(name), self._iterations
            )
            shares.append(value)
            if old is not None:
                alignments.append(torch.dot(left_m, old).abs())
            self._left[name], self._right[name] = left_m, right_n
        return LeadingStatistics(spectral_share=_mean(shares), alignment=_mean(alignments))

    def state(self) -> dict[str, Tensor]:
        """The vectors by flat names; references."""
        sides = (("left", self._left), ("right", self._right))
        return {f"{side}/{n}": vector for side, vectors in sides for n, vector in vectors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        names = [name for name in self._live if f"left/{name}" in tensors]
        like = {f"left/{n}": self._base[n][:, 0].to(wide(self._base[n])) for n in names}
        like |= {f"right/{n}": self._base[n][0].to(wide(self._base[n])) for n in names}
        check_fits(tensors, like)
        self._left = {n: _copied(tensors[f"left/{n}"], self._base[n]) for n in names}
        self._right = {n: _copied(tensors[f"right/{n}"], self._base[n]) for n in names}


@float32_products()
def leading_pair(
    update_mn: Float[Tensor, "m n"], start_n: Float[Tensor, " n"] | None, iterations: int
) -> tuple[Float[Tensor, " m"], Float[Tensor, ""], Float[Tensor, " n"]]:
    """Approximate leading singular pair, `update @ right = value * left`.

    The value never exceeds the spectral norm and never falls from iteration to iteration. Where the
    longest row is longer under the update than the start is, the iteration starts from that row, so
    that a start that the update has left behind, or is orthogonal to, does no harm.

    Args:
        update_mn: Not zero.
        start_n: A right vector of unit norm to start from; None for none.
        iterations: Pairs of products, with the update and with its transpose; at least
            `COLD_ITERATIONS` are made without a start.

    Returns:
        Left vector, singular value, right vector; both vectors of unit norm.
    """
    row_n = update_mn[torch.linalg.vector_norm(update_mn, dim=1).argmax()]
    right_n = row_n / torch.linalg.vector_norm(row_n)
    image_m = update_mn @ right_n
    if start_n is None:
        iterations = max(iterations, COLD_ITERATIONS)
    else:
        other_m = update_mn @ start_n
        if torch.linalg.vector_norm(other_m) >= torch.linalg.vector_norm(image_m):
            image_m = other_m
    for iteration in range(iterations):
        left_m = image_m / torch.linalg.vector_norm(image_m)
        right_n = left_m @ update_mn
        value = torch.linalg.vector_norm(right_n)
        right_n = right_n / value
        if iteration + 1 < iterations:
            image_m = update_mn @ right_n
    return left_m, value, right_n


def _mean(values: list[Tensor]) -> float | None:
    return torch.stack([value.cpu() for value in values]).mean().item() if values else None


def _copied(vector: Tensor, like: Tensor) -> Tensor:
    return vector.to(like.device, copy=True)
