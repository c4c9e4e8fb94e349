"""Plain twins of the analysis: whole singular value decompositions in float64, textbook formulas.

Written from the definitions, with none of the code under test.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor


def singular_values(update_mn: Tensor) -> list[float]:
    """Diagonal of Sigma in `U Sigma V^T`, descending."""
    return torch.linalg.svd(update_mn.double(), full_matrices=False)[1].tolist()


def spectral_metrics(update_mn: Tensor, top: Sequence[float]) -> dict[str, float]:
    """Equations 13 to 17 one after the other; a ratio is called `top 0.01`."""
    values = singular_values(update_mn)
    rank = sum(value > max(update_mn.shape) * 2**-52 * values[0] for value in values)
    squares = [value**2 for value in values]
    total = math.fsum(squares)
    shares = [value / math.fsum(values) for value in values]
    entropy = -math.fsum(share * math.log(share) for share in shares if share > 0)
    metrics = {
        "rank": float(rank),
        "frobenius_norm": math.sqrt(total),
        "spectral_norm": values[0],
        "spectral_share": values[0] / math.sqrt(total),
        "effective_rank": math.exp(entropy),
        "stable_rank": total / squares[0],
    }
    for share in top:
        count = math.ceil(Fraction(str(share)) * rank)
        metrics[f"top {share}"] = math.sqrt(math.fsum(squares[:count]) / total)
    return metrics


def bf16_unchanged_share(base: Tensor, tuned: Tensor) -> float:
    """Share of elements that bf16 cannot tell apart, one by one."""
    pairs = zip(base.bfloat16().flatten(), tuned.bfloat16().flatten(), strict=True)
    same = [before.item() == after.item() for before, after in pairs]
    return sum(same) / len(same)


def path(points: Sequence[Mapping[str, Tensor]]) -> dict[str, float | list[float]]:
    """Geometry of a trajectory that starts at the base, each point one long vector."""
    vectors = [torch.cat([point[n].double().flatten() for n in point]) for point in points]
    steps = [after - before for before, after in itertools.pairwise(vectors)]
    cosines = [
        (first @ second / (first.norm() * second.norm())).item()
        for first, second in itertools.pairwise(steps)
    ]
    length = sum(step.norm().item() for step in steps)
    displacement = (vectors[-1] - vectors[0]).norm().item()
    return {
        "step_norms": [step.norm().item() for step in steps],
        "displacements": [(vector - vectors[0]).norm().item() for vector in vectors[1:]],
        "cosines": cosines,
        "path_length": length,
        "straightness": displacement / length,
    }
