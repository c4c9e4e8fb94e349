"""AlphaRL's prediction: leading singular components of an update, regressed on progress.

All numbers here are float64; matrices are read in pieces of rows.

Source: arXiv 2510.00553. Departures are named at `AlphaPLS`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.linalg.singular_values import above_rounding

PIECE = 2**20
"""Elements of a matrix that are widened to float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """Leading singular components of a matrix `sum_i s_i u_i v_i^T`, largest first.

    Attributes:
        scaled: Column i is `alpha s_i u_i`, with alpha the Frobenius norm of the matrix over that
            of its leading components; zero for a matrix of zeros.
        right: Column i is `v_i`.
    """

    scaled: Float64[Tensor, "m k"]
    right: Float64[Tensor, "n k"]

    def aligned(self, before: Float64[Tensor, "m k"]) -> "Components":
        """The same components, each with the sign that points along the one of `before`."""
        agreement = (self.scaled * before).sum(dim=0)
        signs = torch.where(agreement < 0, -1.0, 1.0).to(self.scaled)
        return Components(scaled=self.scaled * signs, right=self.right * signs)


def leading_components(matrix: Float[Tensor, "m n"], rank: int) -> Components:
    """The `rank` leading singular components, from the Gram matrix of the shorter side.

    Args:
        matrix: Any floating dtype.
        rank: Number of components; at most the shorter side.
    """
    rows, columns = matrix.shape
    is_tall = rows >= columns
    products = _gram(matrix) if is_tall else _gram(matrix.T)
    values, vectors = torch.linalg.eigh(products)
    energies, short = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    counts = above_rounding(energies, max(rows, columns))
    energies = torch.where(counts, energies, 0.0)
    sizes = energies.sqrt()
    if is_tall:
        left, right = _product(matrix, short), short
    else:
        left, right = short * sizes, _product(matrix.T, short) / _nonzero(sizes)
    share = energies.sum() / _nonzero(products.trace())
    return Components(scaled=left / _nonzero(share.sqrt()), right=right)


def _gram(tall: Tensor) -> Float64[Tensor, "n n"]:
    """`tall^T tall`."""
    columns = tall.shape[1]
    total = torch.zeros(columns, columns, dtype=torch.float64, device=tall.device)
    for piece in _pieces(tall):
        total += piece.T @ piece
    return total


def _product(matrix: Tensor, narrow: Float64[Tensor, "n k"]) -> Float64[Tensor, "m k"]:
    """`matrix @ narrow`."""
    return torch.cat([piece @ narrow for piece in _pieces(matrix)])


def _pieces(matrix: Tensor) -> Iterator[Float64[Tensor, "r n"]]:
    """A few rows at a time."""
    height = max(1, PIECE // matrix.shape[1])
    for start in range(0, matrix.shape[0], height):
        yield matrix[start : start + height].double()


def _nonzero(value: Tensor) -> Tensor:
    """The divisor itself, or 1 where the dividend is zero as well."""
    return torch.where(value > 0, value, torch.ones_like(value))


# Partial least squares ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProgressFit:
    """One component of partial least squares: `x = centre + t loading`, `y = mean + t slope`.

    With centred X and y: `w = X^T y / ||X^T y||`, `t = X w`, `loading = X^T t / t^T t` and
    `slope = y^T t / t^T t`, which is least squares of y on the projection t.
    """

    centre: Float64[Tensor, "d"]
    weight: Float64[Tensor, "d"]
    loading: Float64[Tensor, "d"]
    mean: float
    slope: float

    def progress_at(self, x: Float64[Tensor, "d"]) -> float:
        """Progress the fit sees at `x`."""
        return self.mean + self.slope * float((x - self.centre) @ self.weight)

    def point_at(self, progress: float) -> Float64[Tensor, "d"]:
        """The point on the component where the fit sees `progress`; the slope must not be 0."""
        return self.centre + (progress - self.mean) / self.slope * self.loading


def fit_progress(x: Float64[Tensor, "T d"], y: Float64[Tensor, "T"]) -> ProgressFit:
    """The fit to T observations; slope 0 where X and y have nothing in common."""
    centre, mean = x.mean(dim=0), y.mean()
    x, y = x - centre, y - mean
    covariance = y @ x
    weight = covariance / _nonzero(covariance.norm())
    projection = x @ weight
    energy = _nonzero(projection @ projection)
    return ProgressFit(
        centre=centre,
        weight=weight,
        loading=(projection @ x) / energy,
        mean=float(mean),
        slope=float(y @ projection / energy),
    )


def leave_one_out_r2(x: Float64[Tensor, "T d"], y: Float64[Tensor, "T"]) -> float:
    """`1 - sum (y_j - prediction without j)^2 / sum (y_j - mean)^2`; -inf for a constant y."""
    spread = float((y - y.mean()).square().sum())
    if spread == 0.0:
        return -math.inf
    missed = 0.0
    for j in range(len(y)):
        rest = [i for i in range(len(y)) if i != j]
        missed += (float(y[j]) - fit_progress(x[rest], y[rest]).progress_at(x[j])) ** 2
    return 1 - missed / spread


def predicted_components(
    x: Float64[Tensor, "T d"], y: Float64[Tensor, "T"], *, target: float, min_r2: float
) -> Float64[Tensor, "d"] | None:
    """Where the fit sees progress `target`; None where it does not hold up."""
    fit = fit_progress(x, y)
    holds = fit.slope != 0.0 and leave_one_out_r2(x, y) >= min_r2
    return fit.point_at(target) if holds else None
