"""Plain twins of the interventions: whole models in float64, from the formulas alone."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

Point = Mapping[str, Tensor]


def scaled(base: Point, tuned: Point, scale: float) -> dict[str, Tensor]:
    """`base + scale * (tuned - base)`."""
    return {n: base[n].double() + scale * (tuned[n].double() - base[n].double()) for n in base}


def scaled_each(base: Point, tuned: Point, scales: Mapping[str, float]) -> dict[str, Tensor]:
    """The same with a factor for each tensor."""
    return {n: scaled({n: base[n]}, {n: tuned[n]}, scales[n])[n] for n in base}


def norms(base: Point, tuned: Point) -> dict[str, float]:
    """Root of the sum of squares of every tensor's update."""
    return {
        n: math.sqrt(float((tuned[n].double() - base[n].double()).square().sum())) for n in base
    }


def whole_norm(base: Point, tuned: Point) -> float:
    """Root of the sum of squares over all tensors."""
    return math.sqrt(sum(value**2 for value in norms(base, tuned).values()))


def mixed(base: Point, tuned: Point, names: Collection[str]) -> dict[str, Tensor]:
    """The tuned tensors of these names, the base's of all others."""
    return {n: (tuned if n in names else base)[n].double() for n in base}


def singular_part(update: Tensor, share: float, end: str) -> Tensor:
    """The first or last `ceil(share * r)` of the r singular components, summed one by one."""
    left, values, right = torch.linalg.svd(update.double(), full_matrices=False)
    if values[0] == 0:
        return torch.zeros_like(update, dtype=torch.float64)
    rank = int((values > max(update.shape) * 2.0**-52 * values[0]).sum())
    k = math.ceil(round(share * rank, 9))
    kept = range(k) if end == "top" else range(rank - k, rank)
    found = torch.zeros_like(update, dtype=torch.float64)
    for i in kept:
        found += values[i] * torch.outer(left[:, i], right[i])
    return found
