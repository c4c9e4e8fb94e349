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

from effopd.errors import ParameterMismatchError
from effopd.objectives.projection import Head, HeadGradients, check_head, project_, tiles
from effopd.objectives.token_checks import check_positive
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


def token_log_probs(
    hidden_ND: Float[Tensor, "N D"],
    weight_VD: Float[Tensor, "V D"],
    targets_N: Int[Tensor, "N"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    cap: float | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    matmul_precision: MatmulPrecision | None = "highest",
) -> TokenLogProbs:
    """`log softmax((hidden @ weight.T + bias) / temperature)[target]` and the entropy, per token.

    Accumulates in fp32 (float64 for float64 inputs) also from bf16. Costs one product forward and
    three backward, two tiles [C, V] of memory; differentiable in hidden states, weight and bias.
    With a soft cap the logits are `cap * tanh((hidden @ weight.T + bias) / cap)`.

    Args:
        hidden_ND: Hidden states before the lm_head.
        weight_VD: The lm_head.
        targets_N: The tokens to score, integers in [0, V).
        bias: Bias of the lm_head.
        cap: Bound of soft-capped logits, above 0 (Gemma 2: 30); None for logits without one.
        temperature: Divides the logits; use the sampling temperature to score what was sampled.
        chunk_tokens: Tokens in a tile, or None for a default that fits vocabulary and device.
        matmul_precision: Of fp32 products. "high" and "medium" may round their operands, as
            `torch.set_float32_matmul_precision` says; None takes what the caller has set there.

    Returns:
        Log-probabilities and entropies, shape [N] each, in the accumulation dtype; NaN where the
        logits are not finite (`check_finite`), and at a target outside the vocabulary on a GPU,
        where looking at it would wait for the device.

    Raises:
        ParameterMismatchError: If shapes disagree, or a target on the CPU is outside the
            vocabulary.
        ConfigError: If the temperature or the chunk length is not positive.
    """
    head = Head(hidden_ND, weight_VD, bias, cap)
    check_head("token_log_probs", head)
    check_positive("temperature", temperature)
    tokens, vocabulary = hidden_ND.shape[0], weight_VD.shape[0]
    if targets_N.shape != (tokens,) or targets_N.dtype != torch.int64:
        raise ParameterMismatchError(
            f"targets are {targets_N.dtype} of shape {tuple(targets_N.shape)}; expected int64 of "
            f"shape ({tokens},), one per hidden state."
        )
    on_cpu = targets_N.device.type == "cpu"
    if on_cpu and tokens and not 0 <= int(targets_N.min()) <= int(targets_N.max()) < vocabulary:
        raise ParameterMismatchError(
            f"targets run from {int(targets_N.min())} to {int(targets_N.max())}, outside the "
            f"{vocabulary} rows of the lm_head. Drop masked tokens (-100) first; if the lm_head "
            "was trimmed, the tokens come from a larger vocabulary."
        )
    log_probs_N, entropies_N = _TokenLogProbsFunction.apply(  # type: ignore[no-untyped-call]
        *head, targets_N, temperature, chunk_tokens, matmul_precision
    )
    return TokenLogProbs(log_probs_N=log_probs_N, entropies_N=entropies_N)


class _TokenLogProbsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        cap: float | None,
        targets_N: Tensor,
        temperature: float,
        chunk_tokens: int | None,
        precision: MatmulPrecision | None,
    ) -> tuple[Tensor, Tensor]:
        head = Head(hidden_ND, weight_VD, bias_V, cap)
        (tile_CV,), chunks = tiles(1, head, chunk_tokens)
        product_CV = torch.empty_like(tile_CV)
        known_N = targets_N.clamp(0, weight_VD.shape[0] - 1)  # one outside would end the process
        log_probs_N = tile_CV.new_empty(len(targets_N))
        entropies_N = torch.empty_like(log_probs_N)
        for chunk in chunks:
            length = chunk.stop - chunk.start
            logits_CV, probs_CV = tile_CV[:length], product_CV[:length]
            project_(logits_CV, chunk, head, temperature, precision)
            torch.log_softmax(logits_CV, -1, out=logits_CV)
            log_probs_N[chunk] = logits_CV.gather(1, known_N[chunk, None])[:, 0]
            torch.exp(logits_CV, out=probs_CV)
            entropies_N[chunk] = probs_CV.mul_(logits_CV).sum(-1).neg_()
        log_probs_N.masked_fill_(known_N != targets_N, torch.nan)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, known_N)
        ctx.settings = (cap, temperature, chunk_tokens, precision)
        ctx.mark_non_differentiable(entropies_N)
        return log_probs_N, entropies_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N = ctx.saved_tensors
        cap, temperature, chunk_tokens, precision = ctx.settings
        head = Head(hidden_ND, weight_VD, bias_V, cap)
        gradients = HeadGradients(head, ctx.needs_input_grad[:3], precision)
        (tile_CV, *slope), chunks = tiles(1 if cap is None else 2, head, chunk_tokens)
        for chunk in chunks:
            # The logits' gradient is g (e_target - p), times the slope of the cap.
            logits_CV, *slope_CV = (tile[: chunk.stop - chunk.start] for tile in (tile_CV, *slope))
            project_(logits_CV, chunk, head, temperature, precision, *slope_CV)
            torch.softmax(logits_CV, -1, out=logits_CV)
            gradient_C1 = grad_N[chunk, None]
            logits_CV.mul_(-gradient_C1).scatter_add_(1, targets_N[chunk, None], gradient_C1)
            for slopes_CV in slope_CV:
                logits_CV.mul_(slopes_CV)
            gradients.add_(logits_CV, chunk, head)
        return (*gradients.release(1.0 / temperature), None, None, None, None, None)
