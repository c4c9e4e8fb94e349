"""Plain twins of the directions: whole singular value decompositions, textbook formulas, float64.

Written from the description of each, with none of the code under test.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def scaled_components(update: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`alpha s_i u_i` and `v_i` as rows, from the whole decomposition."""
    left, sizes, right = torch.linalg.svd(update.double(), full_matrices=False)
    alpha = sizes.norm() / sizes[:rank].norm()
    scaled = [alpha * sizes[i] * left[:, i] for i in range(min(rank, len(sizes)))]
    return torch.stack(scaled), right[:rank]


def flipped_to(before: Tensor, scaled: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Each component with the sign that agrees with the one before."""
    signs = [-1.0 if torch.dot(b, s) < 0 else 1.0 for b, s in zip(before, scaled, strict=True)]
    column = torch.tensor(signs, dtype=torch.float64)[:, None]
    return column * scaled, column * right


def pls_line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean of x, weight, loading, intercept and slope of a one-component regression."""
    centred, target = x - x.mean(0), y - y.mean()
    weight = centred.T @ target
    weight = weight / weight.norm()
    projection = centred @ weight
    loading = torch.linalg.lstsq(projection[:, None], centred).solution[0]
    design = torch.stack([torch.ones_like(projection), projection], dim=1)
    intercept, slope = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    return x.mean(0), weight, loading, intercept, slope


def pls_leave_one_out_r2(x: Tensor, y: Tensor) -> float:
    """Of predictions for each observation from all the others, about the mean of all."""
    missed = []
    for j in range(len(y)):
        others = torch.arange(len(y)) != j
        mean, weight, _, intercept, slope = pls_line(x[others], y[others])
        missed.append(y[j] - intercept - slope * ((x[j] - mean) @ weight))
    return float(1 - torch.stack(missed).square().sum() / (y - y.mean()).square().sum())


def alpha_prediction(
    base: Tensor,
    snapshots: Sequence[Tensor],
    progress: Sequence[float],
    tip: Tensor,
    *,
    rank: int,
    target: float,
    min_r2: float,
) -> Tensor:
    """The weights predicted for progress `target`, or the tip."""
    aligned: list[Tensor] = []
    for snapshot in snapshots:
        scaled, right = scaled_components(snapshot - base, rank)
        aligned.append(flipped_to(aligned[-1], scaled, right)[0] if aligned else scaled)
    x = torch.stack([scaled.flatten() for scaled in aligned])
    y = torch.tensor(progress, dtype=torch.float64)
    if pls_leave_one_out_r2(x, y) < min_r2:
        return tip
    mean, _, loading, intercept, slope = pls_line(x, y)
    wanted = (mean + (target - intercept) / slope * loading).view_as(aligned[0])
    _, right = flipped_to(aligned[-1], *scaled_components(tip - base, rank))
    return base.double() + wanted.T @ right
