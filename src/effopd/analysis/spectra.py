"""Singular values of an update, and the numbers that say how concentrated they are.

Axes: an update is m by n, p = min(m, n) is its short side and q = max(m, n) its long one, E counts
experts. Everything is float64 on the update's device, whatever the update's dtype.

Exact values come from the p by p Gram matrix, whose eigenvalues are their squares. Squaring costs
half of the digits of small values: below `1e-8` of the largest one a Gram value is rounding noise,
and a few hundred of these move an effective rank by 1e-6. The error that the noise can cause is
therefore bounded from the eigenvalues themselves; where it may exceed `TOLERANCE`, or where a value
cannot be told from zero, the values are computed again from a QR factorisation and a singular value
decomposition of its triangle, several times slower and without squares.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError

TOLERANCE = 5e-10
"""Largest relative error of the effective rank that the Gram matrix may cause."""
PIECE = 2**22
"""Elements of an update that are widened to float64 at a time, 32 MiB."""
STRIP = 256
"""Rows of the Gram matrix that are computed at a time, up to the diagonal."""
EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class SpectralMetrics:
    """How large an update is and how few directions it uses; what Table 1 averages.

    An update that is zero everywhere never moved: its norms and its rank are 0 and what divides by
    its norm is None.

    Attributes:
        shape: (m, n).
        rank: Number of values above `max(m, n) * 2**-52` of the largest one, r.
        frobenius_norm: Root of the sum of squared values.
        spectral_norm: The largest value.
        spectral_share: Spectral norm over Frobenius norm, in (0, 1]; equation 14.
        effective_rank: Exponential of the entropy of the values over their sum (of the values, not
            of their squares), in [1, r]; equation 15.
        stable_rank: Squared Frobenius norm over squared spectral norm, in [1, r].
        top_ratios: Share of the rank -> norm of the `ceil(share * r)` leading components over the
            norm of all (of the norms, not of their squares), in (0, 1]; equation 17.

    Source: arXiv 2605.11739, equations 13 to 17; effective rank: Roy and Vetterli 2007. The stable
    rank is not in the paper.
    """

    shape: tuple[int, int]
    rank: int
    frobenius_norm: float
    spectral_norm: float
    spectral_share: float | None
    effective_rank: float | None
    stable_rank: float | None
    top_ratios: Mapping[float, float | None]

    def __post_init__(self) -> None:
        """Refuses what is not a number, and ratios of an update that never moved.

        Raises:
            NonFiniteError: A number is NaN or infinite.
            ConfigError: Some ratios are None while the update moved, or the other way round.
        """
        ratios = [self.spectral_share, self.effective_rank, self.stable_rank]
        ratios += self.top_ratios.values()
        numbers = [self.frobenius_norm, self.spectral_norm, *(x for x in ratios if x is not None)]
        if not all(map(math.isfinite, numbers)):
            raise NonFiniteError(
                f"spectral metrics are finite numbers, got {self}; check the update"
            )
        if any((ratio is None) != self.never_moved for ratio in ratios):
            raise ConfigError(f"ratios are None exactly where the rank is 0, got {self}")

    @property
    def never_moved(self) -> bool:
        """Whether the update is zero everywhere."""
        return self.rank == 0


# Metrics ------------------------------------------------------------------------------------------


def spectral_metrics(
    update_mn: Float[Tensor, "m n"], *, top: Sequence[float] = (0.01, 0.05)
) -> SpectralMetrics:
    """All metrics of one update, exact: relative error at most 1e-9.

    Args:
        update_mn: The update, of any floating dtype, on any device.
        top: Shares of the rank whose norm ratio is wanted, each in (0, 1].

    Returns:
        The metrics; of an update that is zero everywhere, those that say so.

    Raises:
        ParameterMismatchError: The update is not a matrix.
    """
    if update_mn.dim() != 2:
        raise ParameterMismatchError(
            f"an update of shape {tuple(update_mn.shape)}; expected [m, n]. expert_metrics takes a"
            " stack of matrices."
        )
    return metrics_of(singular_values(update_mn), (update_mn.shape[0], update_mn.shape[1]), top=top)


def expert_metrics(
    updates_Emn: Float[Tensor, "E m n"], *, top: Sequence[float] = (0.01, 0.05)
) -> list[SpectralMetrics]:
    """`spectral_metrics` of every matrix of a stack, such as the experts of one tensor.

    Args:
        updates_Emn: The stack.
        top: Shares of the rank whose norm ratio is wanted.

    Returns:
        The metrics of each.

    Raises:
        ParameterMismatchError: The update is not a stack of matrices.
    """
    if updates_Emn.dim() != 3:
        raise ParameterMismatchError(
            f"updates of shape {tuple(updates_Emn.shape)}; expected [experts, m, n]."
            " spectral_metrics takes one matrix."
        )
    return [spectral_metrics(update_mn, top=top) for update_mn in updates_Emn]


def metrics_of(
    values_p: Float64[Tensor, "p"], shape: tuple[int, int], *, top: Sequence[float] = (0.01, 0.05)
) -> SpectralMetrics:
    """The metrics of an update whose singular values are known.

    Args:
        values_p: All p of them, descending; never a truncated list, of which the effective rank
            would be another number.
        shape: (m, n).
        top: Shares of the rank whose norm ratio is wanted, each in (0, 1].

    Returns:
        The metrics.

    Raises:
        ParameterMismatchError: There are not p values.
    """
    if values_p.shape != (min(shape),):
        raise ParameterMismatchError(
            f"{tuple(values_p.shape)} singular values of an update of shape {shape}; expected all"
            f" {min(shape)}, zeros included."
        )
    check_shares(top)
    values_p = values_p.double()
    spectral_norm = values_p[0].item()
    if spectral_norm == 0:
        return _never_moved(shape, top)
    relative_p = values_p / spectral_norm
    rank = int((relative_p > max(shape) * EPSILON).sum().item())
    energies_p = relative_p.square().cumsum(0)
    total = energies_p[-1].item()
    ratios = {share: math.sqrt(energies_p[_count(share, rank) - 1].item() / total) for share in top}
    return SpectralMetrics(
        shape=shape,
        rank=rank,
        frobenius_norm=spectral_norm * math.sqrt(total),
        spectral_norm=spectral_norm,
        spectral_share=1 / math.sqrt(total),
        effective_rank=math.exp(_entropy(relative_p)),
        stable_rank=total,
        top_ratios=ratios,
    )


def check_shares(top: Sequence[float]) -> None:
    """Refuses shares of the rank outside (0, 1].

    Args:
        top: The shares.

    Raises:
        ConfigError: One is out of range.
    """
    wrong = [share for share in top if not 0 < share <= 1]
    if wrong:
        raise ConfigError(
            f"shares of the rank are fractions in (0, 1], got {wrong[0]}; the top 1 % is 0.01"
        )


def _never_moved(shape: tuple[int, int], top: Sequence[float]) -> SpectralMetrics:
    return SpectralMetrics(
        shape=shape,
        rank=0,
        frobenius_norm=0.0,
        spectral_norm=0.0,
        spectral_share=None,
        effective_rank=None,
        stable_rank=None,
        top_ratios=dict.fromkeys(top),
    )


def _count(share: float, rank: int) -> int:
    """`ceil(share * rank)` of the share as it is written, so that 7 % of 100 are 7."""
    return math.ceil(Fraction(str(share)) * rank)


def _entropy(values_p: Float64[Tensor, "p"]) -> float:
    """Entropy in nats of the values over their sum; zeros add nothing."""
    shares_p = values_p / values_p.sum()
    return float(torch.special.entr(shares_p).sum().item())


# Values -------------------------------------------------------------------------------------------


def singular_values(update: Float[Tensor, "*E m n"]) -> Float64[Tensor, "*E p"]:
    """All singular values, descending, accurate enough for every metric to 1e-9.

    `p*p*q` floating-point operations for the Gram matrix and about `4/3 p**3` for its eigenvalues;
    where the module's docstring sends them to QR, `2 p*p*q + 8/3 p**3` or more. Beside the update
    it needs `2 p*p + PIECE` float64 numbers, and with QR `2 p*q + 2 p*p`.

    Values above 1e-4 of the largest are accurate to 1e-9; for smaller ones one by one see
    `tail_singular_values`.

    Args:
        update: One update or a stack of them.

    Returns:
        Their values.
    """
    exponent = _exponent(update)
    if update.dim() == 3:
        return torch.stack([_values(each, exponent) for each in update])
    return _values(update, exponent)


def tail_singular_values(
    update_mn: Float[Tensor, "m n"], *, share: float = 1.0
) -> Float64[Tensor, "k"]:
    """The smallest singular values, descending, each to about 1e-15 of the largest one.

    From QR and a singular value decomposition of the triangle, without squares.

    Args:
        update_mn: The update.
        share: How many of the p values, `ceil(share * p)`; 0.5 are the bottom half.

    Returns:
        The values.
    """
    check_shares([share])
    exponent = _exponent(update_mn)
    values_p = _values_by_qr(update_mn, exponent)
    return values_p[len(values_p) - _count(share, len(values_p)) :]


def product_singular_values(
    left_mr: Float[Tensor, "m r"], right_rn: Float[Tensor, "r n"]
) -> Float64[Tensor, "p"]:
    """All singular values of `left_mr @ right_rn` without the product, such as a LoRA adapter's.

    The product rounded to fp32 has full rank; this one has the rank of its factors.

    Args:
        left_mr: The left factor, r small.
        right_rn: The right factor.

    Returns:
        The values, descending, zeros after the first r.

    Raises:
        ParameterMismatchError: The factors do not fit together.
    """
    if left_mr.dim() != 2 or right_rn.dim() != 2 or left_mr.shape[1] != right_rn.shape[0]:
        raise ParameterMismatchError(
            f"factors of shapes {tuple(left_mr.shape)} and {tuple(right_rn.shape)}; expected"
            " [m, r] and [r, n]."
        )
    exponents = _exponent(left_mr), _exponent(right_rn)
    left = _triangle(_widened(left_mr, exponents[0]))
    right = _triangle(_widened(right_rn.T, exponents[1]))
    values = torch.linalg.svdvals(left @ right.T) * 2.0 ** sum(exponents)
    p = min(left_mr.shape[0], right_rn.shape[1])
    return torch.nn.functional.pad(values[:p], (0, p - len(values[:p])))


def _exponent(update: Tensor) -> int:
    """Power of two just above the largest entry, so that no square over- or underflows.

    Raises:
        ParameterMismatchError: The update is no matrix of floating-point numbers.
        NonFiniteError: An entry is NaN or infinite.
    """
    if update.dim() not in {2, 3} or not update.is_floating_point() or update.numel() == 0:
        raise ParameterMismatchError(
            f"an update of shape {tuple(update.shape)} and {update.dtype}; expected [m, n] or"
            " [experts, m, n] of floating-point numbers, none of the sizes 0."
        )
    least, most = (bound.item() for bound in update.detach().aminmax())
    largest = max(-least, most)
    if not math.isfinite(least + most):
        raise NonFiniteError(
            f"an update of shape {tuple(update.shape)} has entries from {least} to {most}; its"
            " checkpoint is damaged or training diverged"
        )
    return min(max(math.frexp(largest)[1], -1000), 1000)


def _values(update_mn: Tensor, exponent: int) -> Tensor:
    squares_p = torch.linalg.eigvalsh(_lower_gram(update_mn, exponent)).flip(0).clamp_(min=0)
    if squares_p[0] == 0 or _is_resolved(squares_p):
        return squares_p.sqrt_().mul_(2.0**exponent)
    return _values_by_qr(update_mn, exponent)


def _lower_gram(update_mn: Tensor, exponent: int) -> Float64[Tensor, "p p"]:
    """Lower triangle of the Gram matrix of the short side; above it, parts and zeros."""
    short_pq = update_mn if update_mn.shape[0] <= update_mn.shape[1] else update_mn.T
    p, q = short_pq.shape
    gram_pp = torch.zeros(p, p, dtype=torch.float64, device=update_mn.device)
    width = max(1, PIECE // p)
    for start in range(0, q, width):
        piece = _widened(short_pq[:, start : start + width], exponent)
        for top in range(0, p, STRIP):
            stop = top + STRIP
            gram_pp[top:stop, :stop].addmm_(piece[top:stop], piece[:stop].T)
    return gram_pp


def _is_resolved(squares_p: Float64[Tensor, "p"]) -> bool:
    """Whether no value may be zero and the effective rank is safe from the eigenvalues' noise.

    The noise of an eigenvalue is below `p * 2**-52` of the largest; so much of it in every value
    changes the entropy, to first order, by at most `sum_i error_i (|log p_i| + entropy) / sum`.
    """
    noise = EPSILON * len(squares_p) * squares_p[0]
    if squares_p[-1] <= 2 * noise:
        return False
    values_p = squares_p.sqrt()
    errors_p = values_p - (squares_p - noise).sqrt()
    logs_p = (values_p / values_p.sum()).log().abs()
    weights_p = logs_p + _entropy(values_p)
    return bool((errors_p * weights_p).sum() < TOLERANCE * values_p.sum())


def _values_by_qr(update_mn: Tensor, exponent: int) -> Float64[Tensor, "p"]:
    tall_qp = update_mn if update_mn.shape[0] >= update_mn.shape[1] else update_mn.T
    return torch.linalg.svdvals(_triangle(_widened(tall_qp, exponent))).mul_(2.0**exponent)


def _triangle(tall_qp: Float64[Tensor, "q p"]) -> Float64[Tensor, "p p"]:
    """The R of a QR factorisation; of what is not taller than wide, that itself."""
    rows, columns = tall_qp.shape
    return torch.linalg.qr(tall_qp, mode="r").R if rows > columns else tall_qp


def _widened(part: Tensor, exponent: int) -> Float64[Tensor, "a b"]:
    """A part of the update in float64, its largest entry between 1/2 and 1."""
    return part.detach().to(torch.float64, copy=True).mul_(2.0**-exponent)
