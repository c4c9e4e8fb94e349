"""Dense twins of the local theory: whole Jacobian, whole A, and (36) one step at a time.

For models whose trained tensors have hundreds of parameters; everything in float64.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from effopd.models.policy import Policy, Sample


@dataclass
class Dense:
    """J of every context [N, V, P], the distributions there, and A and b built from them."""

    jacobian: Tensor
    p: Tensor
    residual: Tensor
    A: Tensor
    b: Tensor


def precise(policy: Policy) -> Any:
    """The model in float64 with plain attention, training the same tensors."""
    model = copy.deepcopy(policy.model).double().eval()
    model.set_attn_implementation("eager")
    return model


def logits(model: Any, samples: Sequence[Sample], vocabulary: int) -> Tensor:
    """[N, V], one sequence at a time, without padding; in float64 where models ask for fp32."""
    found = []
    wide = {"float32": torch.float64, "float": torch.float64}
    for sample in samples:
        sequence = torch.tensor([sample.prompt_ids + sample.completion_ids])
        with patch.multiple(torch, **wide), patch.object(Tensor, "float", Tensor.double):
            whole = model(sequence).logits
        found.append(whole[0, len(sample.prompt_ids) - 1 : -1, :vocabulary])
    return torch.cat(found)


def trained(model: Any) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def reverse_kl(z: Tensor, target: Tensor) -> Tensor:
    p, q = z.log_softmax(-1), target.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def dense(policy: Policy, samples: Sequence[Sample], target: Tensor) -> Dense:
    """One backward pass for every logit."""
    model = precise(policy)
    z = logits(model, samples, target.shape[1])
    rows = [
        flat(torch.autograd.grad(value, trained(model), retain_graph=True)) for value in z.flatten()
    ]
    jacobian = torch.stack(rows).view(*z.shape, -1)
    p = z.detach().softmax(-1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    residual = target - z.detach()
    A = torch.einsum("nvp,nvw,nwq->pq", jacobian, fisher, jacobian) / len(z)
    b = torch.einsum("nvp,nvw,nw->p", jacobian, fisher, residual) / len(z)
    return Dense(jacobian=jacobian, p=p, residual=residual, A=A, b=b)


def loss_gradient(
    policy: Policy, samples: Sequence[Sample], target: Tensor
) -> tuple[float, Tensor]:
    """Mean reverse KL and its gradient, by autograd of the KL itself."""
    model = precise(policy)
    loss = reverse_kl(logits(model, samples, target.shape[1]), target).mean()
    return float(loss.detach()), flat(torch.autograd.grad(loss, trained(model)))


def loss_hessian(policy: Policy, samples: Sequence[Sample], target: Tensor) -> Tensor:
    """[P, P] of the mean reverse KL, by a second backward pass for every parameter."""
    model = precise(policy)
    loss = reverse_kl(logits(model, samples, target.shape[1]), target).mean()
    first = torch.autograd.grad(loss, trained(model), create_graph=True)
    slopes = torch.cat([g.flatten() for g in first])
    rows = [torch.autograd.grad(g, trained(model), retain_graph=True) for g in slopes]
    return torch.stack([flat(row) for row in rows])


def descent(A: Tensor, b: Tensor, rate: float, steps: int) -> Tensor:
    """Equation 36, step by step."""
    d = torch.zeros_like(b)
    for _ in range(steps):
        d = d - rate * (A @ d - b)
    return d


def descent_sum(A: Tensor, b: Tensor, rate: float, steps: int) -> Tensor:
    """Equation 39, term by term."""
    term, total = b, torch.zeros_like(b)
    for _ in range(steps):
        total = total + rate * term
        term = term - rate * (A @ term)
    return total


def descent_closed(A: Tensor, b: Tensor, rate: float, steps: int) -> Tensor:
    """Equation 41, with the pseudo-inverse."""
    eye = torch.eye(len(b), dtype=b.dtype)
    power = torch.linalg.matrix_power(eye - rate * A, steps)
    return (eye - power) @ (torch.linalg.pinv(A, hermitian=True, rtol=1e-10) @ b)


def semidefinite(values: Sequence[float], size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random symmetric matrix with these eigenvalues and zeros, and a vector in its range."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    spectrum = torch.zeros(size, dtype=torch.float64)
    spectrum[: len(values)] = torch.tensor(values, dtype=torch.float64)
    A = q @ spectrum.diag() @ q.mT
    b = q[:, : len(values)] @ torch.randn(len(values), generator=generator, dtype=torch.float64)
    return (A + A.mT) / 2, b


def covariance(rows: Tensor) -> Tensor:
    """[P, P], unbiased."""
    centred = rows - rows.mean(0)
    return centred.mT @ centred / (len(rows) - 1)
