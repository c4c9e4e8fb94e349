"""Plain twins of the objectives: full logits, log_softmax, autograd, one formula a line."""

from itertools import pairwise

import torch
from torch import Tensor


def log_distributions(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """Log-probabilities of the whole vocabulary, [N, V]."""
    logits = hidden_ND @ weight_VD.T
    if bias is not None:
        logits = logits + bias
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits / temperature, dim=-1)


def token_log_probs(log_p_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution."""
    chosen = [log_p[target] for log_p, target in zip(log_p_NV, targets_N, strict=True)]
    entropies = -(log_p_NV.exp() * log_p_NV).sum(-1)
    return (torch.stack(chosen) if chosen else log_p_NV.sum(-1)), entropies


def kl(log_a_NV: Tensor, log_b_NV: Tensor) -> Tensor:
    """KL(a || b) per token."""
    return (log_a_NV.exp() * (log_a_NV - log_b_NV)).sum(-1)


def divergences(name: str, log_p_NV: Tensor, log_q_NV: Tensor, beta: float = 0.5) -> Tensor:
    """Divergence of student p and teacher q per token, from the definitions."""
    if name == "reverse":
        return kl(log_p_NV, log_q_NV)
    if name == "forward":
        return kl(log_q_NV, log_p_NV)
    log_m = (beta * log_q_NV.exp() + (1 - beta) * log_p_NV.exp()).log()
    return beta * kl(log_q_NV, log_m) + (1 - beta) * kl(log_p_NV, log_m)


def coarsened(log_p_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Log-probabilities of the named tokens and, where a token is left, of all others: [N][K + 1].

    Token by token, with a sum over the others; ids outside the vocabulary are skipped.
    """
    rows = []
    for log_p, ids in zip(log_p_NV, ids_NK.tolist(), strict=True):
        named = [i for i in ids if 0 <= i < len(log_p)]
        others = [i for i in range(len(log_p)) if i not in named]
        parts = [log_p[i] for i in named] + [log_p[others].logsumexp(0)] * bool(others)
        rows.append(torch.stack(parts))
    return torch.stack(rows)


def exopd_advantage(student: float, teacher: float, reference: float, scale: float) -> float:
    """The printed form: reward minus the log-ratio to the reference."""
    return scale * (teacher - reference) - (student - reference)


def micro_batches(tokens: int, cuts: tuple[int, ...]) -> list[slice]:
    """Slices between the cuts."""
    return [slice(start, stop) for start, stop in pairwise((0, *cuts, tokens))]
