"""Interventions on the singular components of every matrix of an update.

Axes: an update is m by n, p = min(m, n), r is its rank.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.analysis.interventions import Intervention
from effopd.analysis.modules import (
    Changed,
    Norms,
    check_choice,
    check_labels,
    check_norms,
    endpoints,
    module_factors,
    norm,
    part,
    tensor_modules,
)
from effopd.analysis.spectra import check_shares, share_count
from effopd.errors import ParameterMismatchError
from effopd.linalg.singular_values import (
    gram_eigenvectors,
    numerical_rank,
    product_svd,
    smallest_is_not_zero,
)
from effopd.models.layout import Heads, ModuleTensor, matrices
from effopd.models.updates import Update, read_module

Others = Literal["base", "tuned"]
End = Literal["top", "bottom"]


@dataclass(frozen=True, kw_only=True)
class _RankPart(Intervention):
    """Keeps `ceil(share * rank)` singular components of every attention and MLP matrix's update.

    All other tensors (embeddings, norms, head, biases, routers) are those of `others`.
    """

    swept: ClassVar[str | None] = "share"
    share: float
    others: Others = "base"

    def __post_init__(self) -> None:
        check_shares([self.share])
        check_choice("others", self.others, ("base", "tuned"))

    def _changed(
        self, update: Update, found: list[ModuleTensor], keep: Callable[[ModuleTensor], Tensor]
    ) -> Changed:
        """The base plus what `keep` gives for each matrix."""
        by_tensor: dict[str, list[ModuleTensor]] = {}
        for module in found:
            by_tensor.setdefault(module.name, []).append(module)

        def compute(name: str) -> Tensor:
            base, tuned = endpoints(update, name)
            if name not in by_tensor:
                return base if self.others == "base" else tuned
            out = base.to(torch.float64, copy=True)
            for module in by_tensor[name]:
                part(out, module).add_(keep(module))
            return out

        return Changed(update=update, compute=compute)


@dataclass(frozen=True, kw_only=True)
class TopRank(_RankPart):
    """The leading components, at a chosen norm.

    Source: arXiv 2605.11739, section 3.2 (figure 4a): the norm of the kept part is scaled so that
    two methods have the same. The paper does not say of what: here `norm` is that of each matrix by
    label, of all together, or None to leave it as it is. What never moved stays at the base.
    """

    kind: ClassVar[str] = "top_rank"
    norm: Norms | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm is not None:
            check_norms("norm", self.norm)

    @property
    def setting(self) -> str:
        """Norm and other tensors."""
        kept = "kept" if self.norm is None else "module"
        if isinstance(self.norm, float | int):
            kept = f"{self.norm:g}"
        return f"norm={kept} others={self.others}"

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The base with the kept part of the update.

        A norm of all matrices together decomposes each of them twice.
        """
        found, asked = _matrix_modules(update, heads), self.norm
        if isinstance(asked, Mapping):
            check_labels("norm", asked, found)
        scale = 1.0
        if isinstance(asked, float | int):
            parts = (kept_part(update, module, self.share, "top") for module in found)
            whole = math.hypot(*map(norm, parts))
            scale = asked / whole if whole > 0 else 1.0

        def keep(module: ModuleTensor) -> Tensor:
            kept = kept_part(update, module, self.share, "top")
            if not isinstance(asked, Mapping):
                return kept.mul_(scale)
            length = norm(kept)
            return kept.mul_(asked[module.label] / length) if length > 0 else kept

        return self._changed(update, found, keep)


@dataclass(frozen=True, kw_only=True)
class BottomRank(_RankPart):
    """The trailing components that are not zero, at their own norm.

    Source: arXiv 2605.11739, section 3.2 (figure 4b).
    """

    kind: ClassVar[str] = "bottom_rank"

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The base with the kept part of the update."""
        found = _matrix_modules(update, heads)
        return self._changed(update, found, lambda p: kept_part(update, p, self.share, "bottom"))


def kept_part(
    update: Update, module: ModuleTensor, share: float, end: End
) -> Float64[Tensor, "m n"]:
    """`components` of the update of one matrix; from its factors where the update has them.

    The product of factors `[m, r]` and `[r, n]`, of rank r at most such as a LoRA adapter's, has
    full rank once it is rounded to fp32, and most of its components are rounding.
    """
    factors = module_factors(update, module)
    if factors is None:
        return components(read_module(update, module), share, end)
    left_mk, values_k, right_nk = product_svd(*factors)
    kept = _kept(share, end, numerical_rank(values_k, (len(left_mk), len(right_nk))))
    return (left_mk[:, kept] * values_k[kept]) @ right_nk[:, kept].T


def components(update_mn: Float[Tensor, "m n"], share: float, end: End) -> Float64[Tensor, "m n"]:
    """The sum of the first or last `ceil(share * r)` of the r singular components; zero of zero.

    r is the `numerical_rank`. Which of the values that are tied at the cut are kept is arbitrary.
    The components are the projection onto singular vectors of the short side: eigenvectors of the
    Gram matrix; where it cannot tell the smallest value from zero, they come from a singular value
    decomposition, which costs several times as much.
    """
    is_wide = update_mn.shape[0] <= update_mn.shape[1]
    short_pq = (update_mn if is_wide else update_mn.T).double()
    squares_p, vectors_pp = gram_eigenvectors(short_pq)
    rank = len(squares_p)
    if not smallest_is_not_zero(squares_p):
        vectors_pp, values_p, _ = torch.linalg.svd(short_pq, full_matrices=False)
        rank = numerical_rank(values_p, (short_pq.shape[0], short_pq.shape[1]))
    kept_pk = vectors_pp[:, _kept(share, end, rank)]
    found_pq = kept_pk @ (kept_pk.T @ short_pq)
    return found_pq if is_wide else found_pq.T


def _kept(share: float, end: End, rank: int) -> slice:
    """Which of the descending components."""
    k = share_count(share, rank)
    return slice(0, k) if end == "top" else slice(rank - k, rank)


def _matrix_modules(update: Update, heads: Heads | None) -> list[ModuleTensor]:
    """The matrices of attention and MLP, at least one."""
    found = matrices(module for each in tensor_modules(update, heads).values() for module in each)
    if not found:
        raise ParameterMismatchError(
            "the model has no attention or MLP matrix whose name is known, for example "
            f"{next(iter(update.shapes), 'no tensor at all')}"
        )
    return found
