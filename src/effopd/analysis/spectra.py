"""How large an update is and how few directions it uses: the numbers of Table 1.

Axes: an update is m by n, p = min(m, n), r is its rank.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.errors import ConfigError
from effopd.linalg.singular_values import numerical_rank, singular_values, value_entropy

POINTS = 2**16
"""Intervals of the quadrature of the Marchenko-Pastur law."""


@dataclass(frozen=True, kw_only=True)
class SpectralMetrics:
    """How large an update is and how few directions it uses; what Table 1 averages.

    An update that is zero everywhere never moved: its norms and its rank are 0 and what divides by
    its norm is None. The rank r counts values above `max(m, n) * 2**-52` of the largest one.

    `spectral_share` is the spectral norm over the Frobenius norm (equation 14); `effective_rank`
    the exponential of the entropy of the values over their sum, not of their squares (15);
    `stable_rank` the squared ratio of the norms; `top_ratios` share of the rank -> norm of the
    `ceil(share * r)` leading components over the norm of all, not squared (17).

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

    @property
    def never_moved(self) -> bool:
        """Whether the update is zero everywhere."""
        return self.rank == 0


def spectral_metrics(
    update_mn: Float[Tensor, "m n"], *, top: Sequence[float] = (0.01, 0.05)
) -> SpectralMetrics:
    """All metrics of one update, exact: relative error at most 1e-9.

    `top` are the shares of the rank, each in (0, 1], whose norm ratio is wanted.
    """
    values_p = singular_values(update_mn)
    return metrics_of(values_p, (update_mn.shape[0], update_mn.shape[1]), top=top)


def metrics_of(
    values_p: Float64[Tensor, "p"], shape: tuple[int, int], *, top: Sequence[float] = (0.01, 0.05)
) -> SpectralMetrics:
    """The metrics of an update whose singular values are known."""
    assert values_p.shape == (min(shape),), "zeros are singular values too"
    values_p = values_p.double()
    spectral_norm = values_p[0].item()
    if spectral_norm == 0:
        numbers = dict.fromkeys(("spectral_share", "effective_rank", "stable_rank"))
        still: dict[str, Any] = {"rank": 0, "frobenius_norm": 0.0, "spectral_norm": 0.0, **numbers}
        return SpectralMetrics(shape=shape, top_ratios=dict.fromkeys(top), **still)
    relative_p = values_p / spectral_norm
    rank = numerical_rank(relative_p, shape)
    energies_p = relative_p.square().cumsum(0)
    total = energies_p[-1].item()
    ratios = {
        share: math.sqrt(energies_p[share_count(share, rank) - 1].item() / total) for share in top
    }
    return SpectralMetrics(
        shape=shape,
        rank=rank,
        frobenius_norm=spectral_norm * math.sqrt(total),
        spectral_norm=spectral_norm,
        spectral_share=1 / math.sqrt(total),
        effective_rank=math.exp(value_entropy(relative_p)),
        stable_rank=total,
        top_ratios=ratios,
    )


def check_shares(top: Sequence[float]) -> None:
    """Refuses shares of the rank outside (0, 1]."""
    wrong = [share for share in top if not 0 < share <= 1]
    if wrong:
        raise ConfigError(
            f"shares of the rank are fractions in (0, 1], got {wrong[0]}; the top 1% is 0.01"
        )


def share_count(share: float, rank: int) -> int:
    """`ceil(share * rank)` of the share as it is written, so that 7% of 100 are 7."""
    return math.ceil(Fraction(str(share)) * rank)


def noise_metrics(
    m: int, n: int, frobenius_norm: float, *, top: Sequence[float] = (0.01, 0.05)
) -> SpectralMetrics:
    """The metrics of an update of this shape and norm whose entries are independent Gaussians.

    Those of `noise_singular_values`. They are what a sampled matrix has to about `p**(-2/3)` at
    the edge (spectral norm) and `1/p` elsewhere: no sampling, no error bars.
    """
    return metrics_of(noise_singular_values(m, n, frobenius_norm), (m, n), top=top)


def noise_singular_values(m: int, n: int, frobenius_norm: float) -> Float64[Tensor, "p"]:
    """Where the Marchenko-Pastur law places the p singular values, descending.

    The value i has the share `(i - 1/2) / p` of the law above it; all are scaled so that their
    squares sum to the squared norm. With `x = 1 + y + 2 sqrt(y) cos(phi)` for the squared values
    over their mean, the law is `2/pi sin(phi)**2 / x d phi` on [0, pi]: smooth, whatever the shape.

    Source: Marchenko and Pastur 1967. Not in arXiv 2605.11739.
    """
    p, y = min(m, n), min(m, n) / max(m, n)
    middles = (np.arange(POINTS) + 0.5) * (np.pi / POINTS)
    density = np.sin(middles) ** 2 / (1 + y + 2 * np.sqrt(y) * np.cos(middles))
    above = np.concatenate([[0.0], np.cumsum(density)])
    edges = np.arange(POINTS + 1) * (np.pi / POINTS)
    angles = np.interp((np.arange(p) + 0.5) / p, above / above[-1], edges)
    values_p = torch.from_numpy(np.sqrt(1 + y + 2 * np.sqrt(y) * np.cos(angles)))
    return values_p * (frobenius_norm / values_p.norm())
