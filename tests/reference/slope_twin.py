"""The slope rate written out: displacements are measured, not derived from moments."""

import torch
from torch import Tensor


def followed(
    start: Tensor, gradients: list[Tensor], lrs: list[float], betas: tuple[float, float]
) -> tuple[list[float], Tensor]:
    """Rates and last weights of AdamW on given gradients, in float64, at the default settings."""
    weights = start.clone().double().requires_grad_()
    optimizer = torch.optim.AdamW([weights], lr=1.0, betas=betas, weight_decay=0.0)
    factor, before, after, rates = 1.0, 0.0, 0.0, []
    moved = slope = None
    for gradient, lr in zip(gradients, lrs, strict=True):
        gradient = gradient.double()
        if moved is not None:
            before = (before + slope) / 2
            after = (after + float(gradient @ moved)) / 2
            share = after / before - 0.05 if before < 0 else -1.0
            factor *= 2 ** (min(max(share, -1.0), 1.0) / 2)
        rates.append(lr * factor)
        at = weights.detach().clone()
        optimizer.param_groups[0]["lr"] = rates[-1]
        weights.grad = gradient
        optimizer.step()
        moved = weights.detach() - at
        slope = float(gradient @ moved)
    return rates, weights.detach()
