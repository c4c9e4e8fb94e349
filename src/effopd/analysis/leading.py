"""The leading part of an update's spectrum, about a hundred times cheaper than all of it.

Axes: the update is m by n, p = min(m, n), q = max(m, n), k counts the leading values asked for, b
is the width of a block and d of the whole basis.

Values only: a block Krylov basis of `H = A^T A` on the short side, two products with A for each
block, and the eigenvalues of H in that basis, which are never larger than those of H. How much
larger the true sums can be is stated with every result. There is no effective rank here: it needs
every value.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.analysis.krylov import orthonormal_rest
from effopd.analysis.singular_values import power_of_two, squared_norm
from effopd.analysis.spectra import check_shares, share_count
from effopd.errors import ConfigError
from effopd.objectives.projection import (
    accumulation_dtype,
    fast_matmul_precision,
    float32_matmul_precision,
)

OVERSAMPLING = 5
"""Least number of random columns of a block beyond the k values asked for."""
ALIGNMENT = 16
"""Blocks are a multiple of this wide: others cost more for fewer columns."""
SAFETY = 2.0
"""Factor on the residual bound, for the one number in it that is an estimate."""
ROUNDING = 16
"""Relative error of the products, in units of the rounding of their dtype."""


@dataclass(frozen=True, kw_only=True)
class LeadingMetrics:
    """What the leading values say about an update; the ratios are None if it never moved.

    Attributes:
        shape: (m, n).
        frobenius_norm: Root of the summed squares; exact.
        spectral_norm: The largest value.
        spectral_share: Spectral norm over Frobenius norm; equation 14.
        stable_rank: Squared Frobenius norm over squared spectral norm.
        top_ratios: Share -> norm of the `ceil(share * p)` leading components over the norm of
            all. Equation 17 counts a share of the rank, which is p unless the update is deficient.
        relative_error: Bound on the relative error of the spectral norm and of every ratio; the
            stable rank's is twice it. All true norms are larger than these, none smaller.
        blocks: How many blocks it took.

    Source: arXiv 2605.11739, equations 14 and 17.
    """

    shape: tuple[int, int]
    frobenius_norm: float
    spectral_norm: float
    spectral_share: float | None
    stable_rank: float | None
    top_ratios: Mapping[float, float | None]
    relative_error: float
    blocks: int

    @property
    def never_moved(self) -> bool:
        """Whether the update is zero everywhere."""
        return self.frobenius_norm == 0


def leading_metrics(
    update_mn: Float[Tensor, "m n"],
    *,
    top: Sequence[float] = (0.01,),
    tolerance: float = 1e-5,
    max_blocks: int = 8,
    seed: int = 0,
) -> LeadingMetrics:
    """Spectral norm and norm ratios, with a bound on their error.

    `4 m n b` floating-point operations for each block of b columns, k and some more, in fp32
    (float64 for float64 updates) and at fp32 accuracy whatever the caller's matmul precision.
    Memory: `d = blocks * b` vectors of both lengths, and a copy of a half-precision update.

    Blocks are added until the stated error is at most `tolerance`. A few strong directions above a
    flat rest need three or four. A spectrum without any, such as noise, does not get there: read
    `relative_error`, and where it is too large use `spectral_metrics`.

    Args:
        update_mn: The update, of any floating dtype, on any device.
        top: Shares of p whose norm ratio is wanted, each in (0, 1]; the largest sets the cost.
        tolerance: Relative error that is good enough.
        max_blocks: Blocks after which to stop anyway, 2 or more.
        seed: Of the random start.

    Returns:
        The metrics and their error.

    Raises:
        ConfigError: No share, fewer than 2 blocks, or no tolerance.
    """
    if not top or max_blocks < 2 or not tolerance > 0:
        raise ConfigError(
            f"top={top}, max_blocks={max_blocks}, tolerance={tolerance}; expected a share or more,"
            " 2 blocks or more, and a tolerance above 0"
        )
    check_shares(top)
    scale = 2.0 ** power_of_two(update_mn)
    matrix_mn = update_mn.detach().to(accumulation_dtype(update_mn))
    matrix_qp = matrix_mn.T if matrix_mn.shape[0] < matrix_mn.shape[1] else matrix_mn
    total = squared_norm(matrix_mn, scale)
    counts = {share: share_count(share, matrix_qp.shape[1]) for share in top}
    best = _Leading.nothing()
    if total > 0:
        start = _random_block(matrix_qp, max(counts.values()), seed)
        for best in _growing(matrix_qp, scale, start, total, sorted({1, *counts.values()})):
            if best.relative_error <= tolerance or best.blocks == max_blocks:
                break
    return _metrics(update_mn, scale, total, counts, best)


@dataclass(frozen=True)
class _Leading:
    """Sums of leading squared values after some blocks, by their count."""

    sums: Mapping[int, float]
    relative_error: float
    blocks: int

    @classmethod
    def nothing(cls) -> "_Leading":
        return cls({}, 0.0, 0)


def _metrics(
    update_mn: Tensor, scale: float, total: float, counts: Mapping[float, int], found: _Leading
) -> LeadingMetrics:
    moved = total > 0
    spectral = math.sqrt(found.sums[1]) if moved else 0.0
    norm = math.sqrt(total)
    return LeadingMetrics(
        shape=(update_mn.shape[0], update_mn.shape[1]),
        frobenius_norm=norm * scale,
        spectral_norm=spectral * scale,
        spectral_share=spectral / norm if moved else None,
        stable_rank=total / spectral**2 if moved else None,
        top_ratios={
            share: min(math.sqrt(found.sums[count] / total), 1.0) if moved else None
            for share, count in counts.items()
        },
        relative_error=found.relative_error,
        blocks=found.blocks,
    )


# Iteration ----------------------------------------------------------------------------------------


def _random_block(matrix_qp: Tensor, k: int, seed: int) -> Float[Tensor, "p b"]:
    p = matrix_qp.shape[1]
    generator = torch.Generator().manual_seed(seed)
    width = min(math.ceil((k + OVERSAMPLING) / ALIGNMENT) * ALIGNMENT, p)
    drawn = torch.randn(p, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.to(matrix_qp)


def _growing(
    matrix_qp: Tensor, scale: float, block_pb: Tensor, total: float, counts: Sequence[int]
) -> Iterator[_Leading]:
    """The leading sums of `A / scale` after each block, until the blocks fill what there is.

    With the basis P, `H P = P G + N [0 ... 0 L]`: G from the images `A P`, N the next block.
    """
    basis_pd = block_pb.new_empty(block_pb.shape[0], 0)
    images_qd = block_pb.new_empty(matrix_qp.shape[0], 0, dtype=torch.float64)
    size, blocks = 0.0, 0
    precision = fast_matmul_precision(matrix_qp.device.type)
    while block_pb.shape[1]:
        with float32_matmul_precision(precision):
            image_qb = (matrix_qp @ block_pb).mul_(1 / scale)
            back_pb = (matrix_qp.T @ image_qb).mul_(1 / scale)
        outside = float(torch.linalg.matrix_norm(image_qb, 2)) ** 2
        basis_pd = torch.cat([basis_pd, block_pb], 1)
        images_qd = torch.cat([images_qd, image_qb.double()], 1)
        size, blocks = max(size, float(torch.linalg.matrix_norm(back_pb))), blocks + 1
        _, block_pb, beyond = orthonormal_rest(back_pb, basis_pd, size)
        values_d, vectors_dd = torch.linalg.eigh(images_qd.T @ images_qd)
        missed_ad = beyond.double() @ vectors_dd[len(vectors_dd) - beyond.shape[1] :]
        upper_d = _upper_values(values_d, missed_ad, outside, counts[-1])
        sums, error = _sums(values_d, upper_d, max(total - values_d.sum().item(), 0.0), counts)
        rounding = ROUNDING * torch.finfo(matrix_qp.dtype).eps
        yield _Leading(sums, error + rounding, blocks)


def _sums(
    values_d: Tensor, upper_d: Tensor, left_over: float, counts: Sequence[int]
) -> tuple[dict[int, float], float]:
    """Sums of leading squared values, and the largest relative error of their roots.

    Besides the bound of `_upper_values`, no sum can lack more than the energy outside the basis.
    """
    lower, upper = values_d.flip(0).cumsum(0), upper_d.flip(0).cumsum(0)
    sums = {count: lower[min(count, len(lower)) - 1].item() for count in counts}
    lacking = {
        count: min(SAFETY * (upper[min(count, len(upper)) - 1].item() - value), left_over)
        for count, value in sums.items()
    }
    return sums, max(lacking[count] / value for count, value in sums.items()) / 2


def _upper_values(
    values_d: Float64[Tensor, "d"], missed_ad: Float64[Tensor, "a d"], outside: float, k: int
) -> Float64[Tensor, "d"]:
    """Upper bounds on the leading k eigenvalues of H, ascending; infinite where there is none.

    In the basis and its complement H is `[[Theta, R^T], [R, C]]` with R of `R^T R = M^T M`, M what
    the basis misses. By the inertia of the Schur complement, H has no more eigenvalues above
    `t > |C|` than `Theta + R^T R / (t - |C|)` has; so the first k of H are at most those of
    `Theta + R^T R / (theta_k - |C|)`. `|C|` is estimated from the newest block, which was
    orthogonal to all before it; that block having been added, C is a part of what it was.
    """
    gap = values_d[-min(k, len(values_d))].item() - outside
    if len(missed_ad) == 0:
        return values_d
    if gap <= 0:
        return torch.full_like(values_d, math.inf)
    return torch.linalg.eigvalsh(values_d.diag() + missed_ad.T @ missed_ad / gap)
