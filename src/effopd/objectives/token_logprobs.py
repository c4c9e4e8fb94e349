"""Log-probabilities of given tokens and entropies, from hidden states and an lm_head.

Axes: N tokens, D hidden width, V vocabulary, C tokens of one chunk. Nothing of size [N, V] ever
exists: the forward pass keeps [N] numbers, the backward pass projects each chunk again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.objectives.projection import (
    Head,
    HeadGradients,
    accumulation_dtype,
    check_head,
    project_,
    token_chunks,
)
from effopd.precision import MatmulPrecision


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenLogProbs:
    """What `token_log_probs` returns.

    Attributes:
        log_probs_N: `log p(target)` of every token, nats, at most 0; carries the gradient.
        entropies_N: Entropy of every token's distribution, nats, in [0, log V]. Detached: an
            entropy bonus through it would have no gradient.
    """

    log_probs_N: Float[Tensor, "N"]
    entropies_N: Float[Tensor, "N"]


@dataclass(frozen=True, kw_only=True)
class _Settings:
    temperature: float
    chunk_tokens: int | None
    precision: MatmulPrecision | None


def token_log_probs(
    hidden_ND: Float[Tensor, "N D"],
    weight_VD: Float[Tensor, "V D"],
    targets_N: Int[Tensor, "N"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    matmul_precision: MatmulPrecision | None = "highest",
) -> TokenLogProbs:
    """`log softmax((hidden @ weight.T + bias) / temperature)[target]` and the entropy, per token.

    Accumulates in fp32 (float64 for float64 inputs) also from bf16. Costs one product forward and
    three backward, two tiles [C, V] of memory; differentiable in hidden states, weight and bias.

    Args:
        hidden_ND: Hidden states before the lm_head.
        weight_VD: The lm_head.
        targets_N: The tokens to score, integers in [0, V).
        bias: Bias of the lm_head.
        temperature: Divides the logits; use the sampling temperature to score what was sampled.
        chunk_tokens: Tokens in a tile, or None for a default that fits vocabulary and device.
        matmul_precision: Of fp32 products. "high" and "medium" may round their operands, as
            `torch.set_float32_matmul_precision` says; None takes what the caller has set there.

    Returns:
        Log-probabilities and entropies, shape [N] each, in the accumulation dtype.

    Raises:
        ParameterMismatchError: If shapes disagree or a target is outside the vocabulary.
        NonFiniteError: If a result is NaN or infinite.
        ConfigError: If the temperature or the chunk length is not positive.
    """
    head = Head(hidden_ND, weight_VD, bias)
    _check(head, targets_N, temperature)
    settings = _Settings(
        temperature=temperature, chunk_tokens=chunk_tokens, precision=matmul_precision
    )
    log_probs_N, entropies_N = _TokenLogProbsFunction.apply(  # type: ignore[no-untyped-call]
        *head, targets_N, settings
    )
    _check_finite(log_probs_N, entropies_N)
    return TokenLogProbs(log_probs_N=log_probs_N, entropies_N=entropies_N)


class _TokenLogProbsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        head = Head(hidden_ND, weight_VD, bias_V)
        log_probs_N, entropies_N = _forward_sweep(head, targets_N, settings)
        ctx.save_for_backward(*head, targets_N)
        ctx.settings = settings
        ctx.mark_non_differentiable(entropies_N)
        return log_probs_N, entropies_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N = ctx.saved_tensors
        head = Head(hidden_ND, weight_VD, bias_V)
        gradients = HeadGradients(head, ctx.needs_input_grad[:3], ctx.settings.precision)
        _backward_sweep(head, targets_N, grad_N, ctx.settings, gradients)
        return (*gradients.release(1.0 / ctx.settings.temperature), None, None)


def _forward_sweep(head: Head, targets_N: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
    tile_CV, chunks = _tile(head, settings)
    product_CV = torch.empty_like(tile_CV)
    log_probs_N = tile_CV.new_empty(len(targets_N))
    entropies_N = torch.empty_like(log_probs_N)
    for chunk in chunks:
        length = chunk.stop - chunk.start
        logits_CV, probs_CV = tile_CV[:length], product_CV[:length]
        project_(logits_CV, chunk, head, settings.temperature, settings.precision)
        torch.log_softmax(logits_CV, -1, out=logits_CV)
        log_probs_N[chunk] = logits_CV.gather(1, targets_N[chunk, None])[:, 0]
        torch.exp(logits_CV, out=probs_CV)
        entropies_N[chunk] = probs_CV.mul_(logits_CV).sum(-1).neg_()
    return log_probs_N, entropies_N


def _backward_sweep(
    head: Head, targets_N: Tensor, grad_N: Tensor, settings: _Settings, gradients: HeadGradients
) -> None:
    """Adds `g (e_target - p)`, the logits' gradient, chunk by chunk."""
    tile_CV, chunks = _tile(head, settings)
    for chunk in chunks:
        logits_CV = tile_CV[: chunk.stop - chunk.start]
        project_(logits_CV, chunk, head, settings.temperature, settings.precision)
        torch.softmax(logits_CV, -1, out=logits_CV)
        gradient_C1 = grad_N[chunk, None]
        logits_CV.mul_(-gradient_C1).scatter_add_(1, targets_N[chunk, None], gradient_C1)
        gradients.add_(logits_CV, chunk, head)


def _tile(head: Head, settings: _Settings) -> tuple[Tensor, list[slice]]:
    tokens, vocabulary = head.hidden_ND.shape[0], head.weight_VD.shape[0]
    device = head.hidden_ND.device
    rows, chunks = token_chunks(tokens, vocabulary, device, settings.chunk_tokens)
    dtype = accumulation_dtype(head.hidden_ND, head.weight_VD)
    return torch.empty(rows, vocabulary, dtype=dtype, device=device), chunks


def _check(head: Head, targets_N: Tensor, temperature: float) -> None:
    check_head("token_log_probs", head)
    tokens, vocabulary = head.hidden_ND.shape[0], head.weight_VD.shape[0]
    if targets_N.shape != (tokens,) or targets_N.dtype != torch.int64:
        raise ParameterMismatchError(
            f"targets are {targets_N.dtype} of shape {tuple(targets_N.shape)}; expected int64 of "
            f"shape ({tokens},), one per hidden state."
        )
    if tokens and not 0 <= int(targets_N.min()) <= int(targets_N.max()) < vocabulary:
        raise ParameterMismatchError(
            f"targets run from {int(targets_N.min())} to {int(targets_N.max())}, outside the "
            f"{vocabulary} rows of the lm_head. Drop masked tokens (-100) first; if the lm_head "
            "was trimmed, the tokens come from a larger vocabulary."
        )
    if not temperature > 0.0:
        raise ConfigError(f"temperature is {temperature}; expected a positive number.")


def _check_finite(log_probs_N: Tensor, entropies_N: Tensor) -> None:
    finite = log_probs_N.isfinite() & entropies_N.isfinite()
    if not bool(finite.all()):
        token = int((~finite).nonzero()[0])
        raise NonFiniteError(
            f"token {token} has log-probability {log_probs_N[token].item()} and entropy "
            f"{entropies_N[token].item()}, and {int((~finite).sum())} of {len(finite)} tokens are "
            "alike; expected finite numbers. Check the hidden states for NaN or infinity (a "
            "learning rate too high, fp16 overflow) and the lm_head bias for masked tokens."
        )
