"""Advantages from rewards: relative to a group of responses, or estimated by a critic.

Axes: G groups (prompts), R responses of each group, S sequences (responses), N tokens of all
sequences, one sequence after the other. Everything returned is detached. Shapes and lengths that
disagree raise a ParameterMismatchError, settings out of range a ConfigError, numbers that are not
finite a NonFiniteError: this is computed once a step, where waiting for the device costs little.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.objectives.projection import accumulation_dtype
from effopd.objectives.token_checks import (
    check_finite,
    check_lengths,
    check_range,
    check_shapes,
)

GroupScale = Literal["std", "none"]

GROUP_EPSILON = 1e-4
"""Added to a group's standard deviation before dividing by it."""
WHITEN_EPSILON = 1e-8
"""Added to the tokens' standard deviation before dividing by it."""


class AdvantageEstimate(NamedTuple):
    """What `gae` returns: advantages, and the critic's targets `advantages + values`."""

    advantages_N: Tensor
    returns_N: Tensor


def group_advantages(rewards_GR: Float[Tensor, "G R"], scale: GroupScale) -> Float[Tensor, "G R"]:
    """`(r - mean) / (std + 1e-4)` within each group; `r - mean` for the scale "none".

    Of R >= 2 responses to each prompt; all tokens of a response have its advantage. The standard
    deviation is the unbiased one (R - 1). A group of equal rewards gets exactly 0. Accumulates in
    fp32 (float64 for float64 rewards).

    Source: GRPO, arXiv 2402.03300 ("std"); Dr. GRPO, arXiv 2503.20783 ("none"). Epsilon and the
    unbiased deviation are those of TRL; the papers state neither.
    """
    if scale not in {"std", "none"}:
        raise ConfigError(f"scale is {scale!r}; expected 'std' or 'none'.")
    differ_G1 = informative_groups(rewards_GR)[:, None]
    wide_GR = rewards_GR.detach().to(accumulation_dtype(rewards_GR))
    centred_GR = wide_GR - wide_GR.mean(dim=1, keepdim=True)
    if scale == "std":
        centred_GR = centred_GR / (wide_GR.std(dim=1, keepdim=True) + GROUP_EPSILON)
    return torch.where(differ_G1, centred_GR, 0.0)


def informative_groups(rewards_GR: Float[Tensor, "G R"]) -> Bool[Tensor, "G"]:
    """Whether the rewards of a group of R >= 2 differ, so that its advantages are not all 0.

    Source: dynamic sampling of DAPO, arXiv 2503.14476, which keeps only such groups.
    """
    if rewards_GR.dim() != 2 or rewards_GR.shape[1] < 2:
        raise ParameterMismatchError(
            f"rewards of shape {tuple(rewards_GR.shape)}; expected [groups, responses] with two or "
            "more responses to each prompt, since a response is compared with the others."
        )
    finite_GR = rewards_GR.isfinite()
    if not bool(finite_GR.all()):
        group, response = (~finite_GR).nonzero()[0].tolist()
        raise NonFiniteError(
            f"the reward of response {response} of group {group} is "
            f"{rewards_GR[group, response].item()}; expected a finite number. Have the verifier "
            "return one for every response, 0 for those it cannot judge."
        )
    return (rewards_GR != rewards_GR[:, :1]).any(dim=1)


def overlong_penalties(lengths: Sequence[int], longest: int, buffer: int) -> Float[Tensor, "S"]:
    """`clamp((longest - buffer - length) / buffer, -1, 0)`, to be added to the rewards.

    0 up to `longest - buffer` tokens, then linearly down to -1 at `longest`, the cap of responses;
    a buffer of 0 turns it off. float64 on the CPU.

    Source: soft overlong punishment of DAPO, arXiv 2503.14476, equation (13).
    """
    check_lengths(lengths)
    if not 0 <= buffer <= longest:
        raise ConfigError(
            f"buffer is {buffer} tokens; expected 0 (off) to {longest}, the longest response. "
            "Shorten the buffer or allow longer responses."
        )
    if buffer == 0:
        return torch.zeros(len(lengths), dtype=torch.float64)
    excess_S = torch.tensor(lengths, dtype=torch.float64) - (longest - buffer)
    return -(excess_S / buffer).clamp(0.0, 1.0)


def gae(
    rewards_N: Float[Tensor, "N"],
    values_N: Float[Tensor, "N"],
    lengths: Sequence[int],
    gamma: float,
    lam: float,
) -> AdvantageEstimate:
    """`A_t = d_t + gamma lam A_(t+1)` with `d_t = r_t + gamma V_(t+1) - V_t`, and `A + V`.

    Each sequence by itself; value and advantage after its last token are 0, also where a response
    was cut off at the longest length. Takes log2(longest sequence) passes over all tokens.
    Accumulates in fp32 (float64 for float64 inputs).

    Args:
        rewards_N: Reward of every token; a response's reward stands at its last token.
        values_N: The critic's value before every token.
        lengths: Tokens of every sequence; they sum to N.
        gamma: Discount of rewards and values, in [0, 1].
        lam: Discount of temporal differences, in [0, 1]: 0 trusts the critic, 1 the rewards.

    Source: generalised advantage estimation, arXiv 1506.02438, equation (16).
    """
    check_range("gamma", gamma, 0.0, 1.0)
    check_range("lam", lam, 0.0, 1.0)
    check_shapes(rewards=rewards_N, values=values_N)
    check_finite(rewards_N + values_N, rewards=rewards_N, values=values_N)
    check_lengths(lengths)
    if sum(lengths) != len(values_N):
        raise ParameterMismatchError(
            f"{len(lengths)} sequences have {sum(lengths)} tokens together, but there are "
            f"{len(values_N)} values; expected one per token. Use the lengths of this batch."
        )
    dtype = accumulation_dtype(rewards_N, values_N)
    rewards_N, values_N = rewards_N.detach().to(dtype), values_N.detach().to(dtype)
    # How many tokens of its sequence follow each token.
    lengths_S = torch.tensor(lengths, dtype=torch.int64, device=values_N.device)
    ends_N = lengths_S.cumsum(0).repeat_interleave(lengths_S)
    after_N = ends_N - 1 - torch.arange(len(ends_N), device=values_N.device)
    # Discounted sums to the sequence's end, over windows of 1, 2, 4, ... tokens.
    advantages_N, window = rewards_N + gamma * _ahead(values_N, 1, after_N) - values_N, 1
    while window < max(lengths, default=0):
        discount = (gamma * lam) ** window
        advantages_N = advantages_N + discount * _ahead(advantages_N, window, after_N)
        window *= 2
    return AdvantageEstimate(advantages_N=advantages_N, returns_N=advantages_N + values_N)


def whiten(advantages_N: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """`(A - mean) / (std + 1e-8)` over all tokens: mean 0, variance 1; equal ones give exactly 0.

    The advantages are those of a whole batch, not of a micro-batch; the result is in fp32 (float64
    for float64 ones).
    """
    check_shapes(advantages=advantages_N)
    check_finite(advantages_N, advantages=advantages_N)
    wide_N = advantages_N.detach().to(accumulation_dtype(advantages_N))
    if not bool((wide_N != wide_N[:1]).any()):
        return torch.zeros_like(wide_N)
    return (wide_N - wide_N.mean()) / (wide_N.std(correction=0) + WHITEN_EPSILON)


def explained_variance(returns_N: Float[Tensor, "N"], values_N: Float[Tensor, "N"]) -> float | None:
    """`1 - Var(returns - values) / Var(returns)`, how much of the returns of `gae` a critic knows.

    At most 1, where the critic is right up to a constant; 0 for a constant critic, negative for one
    that is worse; None where the returns do not vary.
    """
    check_shapes(returns=returns_N, values=values_N)
    check_finite(returns_N + values_N, returns=returns_N, values=values_N)
    dtype = accumulation_dtype(returns_N, values_N)
    returns_N, values_N = returns_N.detach().to(dtype), values_N.detach().to(dtype)
    if not bool((returns_N != returns_N[:1]).any()):
        return None
    unexplained = (returns_N - values_N).var(correction=0) / returns_N.var(correction=0)
    return 1.0 - unexplained.item()


def _ahead(values_N: Tensor, distance: int, after_N: Tensor) -> Tensor:
    """The value `distance` tokens ahead in the same sequence, 0 past its end."""
    shifted_N = torch.zeros_like(values_N)
    shifted_N[:-distance] = values_N[distance:]
    return torch.where(after_N >= distance, shifted_N, 0.0)
