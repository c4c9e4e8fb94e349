"""What chance alone would give: the spectrum of an update of independent Gaussian entries.

Axes: m by n, p = min(m, n), q = max(m, n), y = p / q.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from effopd.analysis.spectra import SpectralMetrics, metrics_of
from effopd.errors import ConfigError

POINTS = 2**16
"""Intervals of the quadrature of the Marchenko-Pastur law."""


def noise_metrics(
    m: int, n: int, frobenius_norm: float, *, top: Sequence[float] = (0.01, 0.05)
) -> SpectralMetrics:
    """The metrics of an update of this shape and norm whose entries are independent Gaussians.

    Those of `noise_singular_values`. They are what a sampled matrix has to about `p**(-2/3)` at
    the edge (spectral norm) and `1/p` elsewhere: no sampling, no error bars.

    Args:
        m: Rows.
        n: Columns.
        frobenius_norm: Norm of the update, above 0.
        top: Shares of the rank whose norm ratio is wanted.

    Returns:
        The metrics.
    """
    return metrics_of(noise_singular_values(m, n, frobenius_norm), (m, n), top=top)


def noise_singular_values(m: int, n: int, frobenius_norm: float) -> Float64[Tensor, "p"]:
    """Where the Marchenko-Pastur law places the p singular values, descending.

    The value i has the share `(i - 1/2) / p` of the law above it; all are scaled so that their
    squares sum to the squared norm. With `x = 1 + y + 2 sqrt(y) cos(phi)` for the squared values
    over their mean, the law is `2/pi sin(phi)**2 / x d phi` on [0, pi]: smooth, whatever the shape.

    Args:
        m: Rows.
        n: Columns.
        frobenius_norm: Norm of the update, above 0.

    Returns:
        The values.

    Raises:
        ConfigError: A size or the norm is not positive.

    Source: Marchenko and Pastur 1967. Not in arXiv 2605.11739.
    """
    if min(m, n) < 1 or not 0 < frobenius_norm < float("inf"):
        raise ConfigError(
            f"noise of shape ({m}, {n}) and norm {frobenius_norm}; expected sizes of 1 or more and"
            " a finite norm above 0. An update that never moved has no noise to compare with."
        )
    p, y = min(m, n), min(m, n) / max(m, n)
    middles = (np.arange(POINTS) + 0.5) * (np.pi / POINTS)
    density = np.sin(middles) ** 2 / (1 + y + 2 * np.sqrt(y) * np.cos(middles))
    above = np.concatenate([[0.0], np.cumsum(density)])
    edges = np.arange(POINTS + 1) * (np.pi / POINTS)
    angles = np.interp((np.arange(p) + 0.5) / p, above / above[-1], edges)
    values_p = torch.from_numpy(np.sqrt(1 + y + 2 * np.sqrt(y) * np.cos(angles)))
    return values_p * (frobenius_norm / values_p.norm())
