"""Reinforcement learning on rewards: the terms of one clipped surrogate loss.

Axes: N tokens of all responses, one response after the other; log-probabilities are in nats.
The loss of a mini-batch is `sum_n w_n (i_n s_n + kl_coefficient k_n)` with `w` from
`token_weights`, `i` from `importance_weights`, `s` from `clipped_surrogate` and `k` from
`k3_divergence`. Shapes that disagree raise a ParameterMismatchError, settings out of range a
ConfigError; NaN and infinity in an input come out in the loss (`check_finite`).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import ParameterMismatchError
from effopd.objectives.token_checks import (
    check_choice,
    check_lengths,
    check_positive,
    check_shapes,
)

Aggregation = Literal["sequence", "token", "constant"]


class ClippedSurrogate(NamedTuple):
    """Loss of every token, with gradient, and whether the clip took its gradient away, bool."""

    loss_N: Tensor
    clipped_N: Tensor


def token_weights(
    lengths: Sequence[int], aggregation: Aggregation, *, longest: int, sequences: int, tokens: int
) -> Float[Tensor, "N"]:
    """Weights with which `sum_n w_n loss_n` is the loss of a mini-batch, float64 on the CPU.

    `"token"`: `1 / tokens`. `"sequence"`: `1 / (sequences * length)` with the length of the token's
    own response. `"constant"`: `1 / (sequences * longest)`. With the counts of the whole
    mini-batch, its micro-batches add up to it exactly.

    Args:
        lengths: Tokens of every response of this micro-batch; one of 0 counts as a response.
        aggregation: How tokens are averaged.
        longest: Tokens that a response may have.
        sequences: Responses of the whole mini-batch.
        tokens: Tokens of the whole mini-batch.

    Source: GRPO ("sequence"), DAPO ("token") and Dr. GRPO ("constant"), arXiv 2402.03300,
    2503.14476 and 2503.20783.
    """
    check_choice("aggregation", aggregation, Aggregation)
    check_lengths(lengths)
    here = {"sequences": len(lengths), "tokens": sum(lengths), "longest": max(lengths, default=0)}
    whole = {"sequences": sequences, "tokens": tokens, "longest": longest}
    if any(here[name] > whole[name] for name in here):
        raise ParameterMismatchError(
            f"this micro-batch has {here}, more than the {whole} it is a part of. Pass the counts "
            "of the whole mini-batch, and the length cap that its responses were sampled with."
        )
    divisors = {
        "token": [tokens] * len(lengths),
        "sequence": [sequences * length for length in lengths],
        "constant": [sequences * longest] * len(lengths),
    }
    repeats_S = torch.tensor(lengths, dtype=torch.int64)
    divisors_S = torch.tensor(divisors[aggregation], dtype=torch.float64)
    return 1.0 / divisors_S.repeat_interleave(repeats_S)


def clipped_surrogate(
    log_probs_N: Float[Tensor, "N"],
    old_log_probs_N: Float[Tensor, "N"],
    advantages_N: Float[Tensor, "N"],
    clip_low: float,
    clip_high: float,
) -> ClippedSurrogate:
    """`-min(r A, clamp(r, 1 - clip_low, 1 + clip_high) A)` with `r = p / p_old`.

    Differentiable in `log p` alone, `p_old` being the policy before the first update on these
    responses; NaN where the ratio overflows. At r = 1 the gradient is `-A`.

    Source: equation (7) of arXiv 1707.06347; two bounds as in DAPO, arXiv 2503.14476.
    """
    check_positive("clip_low", clip_low)
    check_positive("clip_high", clip_high)
    check_shapes(policy=log_probs_N, old=old_log_probs_N, advantages=advantages_N)
    advantages_N = advantages_N.detach()
    ratios_N = (log_probs_N - old_log_probs_N.detach()).exp()
    # The clip would hide an overflow.
    ratios_N = torch.where(ratios_N.isfinite(), ratios_N, torch.nan)
    limited_N = ratios_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    gain_N = torch.minimum(ratios_N * advantages_N, limited_N * advantages_N)
    beyond_N = torch.where(advantages_N > 0, ratios_N > 1.0 + clip_high, ratios_N < 1.0 - clip_low)
    return ClippedSurrogate(loss_N=-gain_N, clipped_N=beyond_N & (advantages_N != 0))


def k3_divergence(
    log_probs_N: Float[Tensor, "N"], reference_log_probs_N: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """`exp(d) - d - 1` nats with `d = log r - log p`: at least 0, in expectation `KL(p || r)`.

    Differentiable in `log p` of the sampled tokens, with derivative `1 - exp(d)`. The expected
    gradient is not that of `KL(p || r)` but that of `KL(r || p)`.

    Source: k3 of J. Schulman, "Approximating KL divergence" (2020); equation (4) of arXiv
    2402.03300.
    """
    check_shapes(policy=log_probs_N, reference=reference_log_probs_N)
    log_ratios_N = reference_log_probs_N.detach() - log_probs_N
    return torch.expm1(log_ratios_N) - log_ratios_N


def clipped_value_loss(
    values_N: Float[Tensor, "N"],
    old_values_N: Float[Tensor, "N"],
    returns_N: Float[Tensor, "N"],
    clip: float,
) -> Float[Tensor, "N"]:
    """`max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2) / 2` of every token.

    Differentiable in V; `V_old` are the values before the first update, the returns R are `gae`'s.

    Source: the authors' implementation of PPO; not in arXiv 1707.06347.
    """
    check_positive("clip", clip)
    check_shapes(values=values_N, old=old_values_N, returns=returns_N)
    old_values_N, returns_N = old_values_N.detach(), returns_N.detach()
    near_N = values_N.clamp(old_values_N - clip, old_values_N + clip)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (near_N - returns_N) ** 2)
