"""Reinforcement learning on rewards: one clipped surrogate, of which the algorithms are settings.

Axes: N tokens of all responses, one response after the other; log-probabilities are in nats.
The loss of a mini-batch is `sum_n w_n (i_n s_n + kl_coefficient k_n)` with `w` from
`token_weights`, `i` from `importance_weights`, `s` from `clipped_surrogate` and `k` from
`k3_divergence`. Shapes that disagree raise a ParameterMismatchError, settings out of range a
ConfigError; NaN and infinity in an input come out in the loss (`check_finite`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.objectives.advantages import GroupScale
from effopd.objectives.token_checks import (
    check_lengths,
    check_positive,
    check_range,
    check_shapes,
)

AdvantageKind = Literal["group", "gae"]
Aggregation = Literal["sequence", "token", "constant"]


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """Policy gradient on rewards, with or without a teacher's advantage added.

    The defaults are DAPO without what it adds to sampling (dynamic sampling, overlong penalty):
    no reference model, no critic, no refills. `grpo()`, `dapo()`, `dr_grpo()` and `ppo()` are the
    published settings.

    Attributes:
        type: Name of this objective in a configuration.
        advantage: `"group"`, relative to the other responses to the prompt, or `"gae"`, from a
            critic and whitened over the batch.
        group_scale: `"std"` divides group advantages by the group's standard deviation, `"none"`
            does not.
        clip_low: The ratio to the sampling policy counts down to `1 - clip_low`, in (0, 1].
        clip_high: And up to `1 + clip_high`, above 0.
        aggregation: `"token"`, mean over all tokens; `"sequence"`, mean over each response's
            tokens, then over responses; `"constant"`, sum over responses * longest length allowed.
        kl_coefficient: Weight of the divergence from the reference model; 0 turns it off.
        importance_cap: Upper bound of the weight trainer over rollout engine, above 0.
        dynamic_sampling: Whether groups whose rewards are all equal are replaced by new ones.
        max_refills: Extra batches sampled for that in one step, at least 1.
        overlong_buffer: Tokens before the longest length over which the length penalty falls from
            0 to -1; 0 turns it off.
        gae_gamma: Discount of rewards, in [0, 1].
        gae_lambda: Discount of temporal differences, in [0, 1].
        value_clip: How far a value may move from the one at sampling, above 0; large is off.
        critic_lr: Learning rate of the critic.
        critic_warmup_steps: First steps, in which only the critic learns.
        distillation: Weight of the advantage `log q - log p` of a teacher q at every token, added
            to that of the rewards; 0 needs no teacher.
    """

    type: Literal["policy_gradient"] = "policy_gradient"
    advantage: AdvantageKind = "group"
    group_scale: GroupScale = "std"
    clip_low: float = 0.2
    clip_high: float = 0.28
    aggregation: Aggregation = "token"
    kl_coefficient: float = 0.0
    importance_cap: float = 5.0
    dynamic_sampling: bool = False
    max_refills: int = 10
    overlong_buffer: int = 0
    gae_gamma: float = 1.0
    gae_lambda: float = 0.95
    value_clip: float = 0.2
    critic_lr: float = 1e-5
    critic_warmup_steps: int = 0
    distillation: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("advantage", self.advantage, AdvantageKind)
        _check_choice("group_scale", self.group_scale, GroupScale)
        _check_choice("aggregation", self.aggregation, Aggregation)
        for name in ("clip_low", "clip_high", "importance_cap", "value_clip", "critic_lr"):
            check_positive(name, getattr(self, name))
        check_range("clip_low", self.clip_low, 0.0, 1.0)
        check_range("max_refills", self.max_refills, 1, math.inf)
        for name in ("gae_gamma", "gae_lambda"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        for name in ("kl_coefficient", "distillation", "overlong_buffer", "critic_warmup_steps"):
            check_range(name, getattr(self, name), 0, math.inf)
        for name in ("clip_high", "critic_lr", "kl_coefficient", "distillation"):
            if math.isinf(getattr(self, name)):
                raise ConfigError(f"{name} is infinite; expected a finite number.")
        if self.dynamic_sampling and self.advantage != "group":
            raise ConfigError(
                f"dynamic_sampling with advantage = {self.advantage!r}; only group advantages "
                "vanish where rewards are equal. Turn one of them off."
            )

    @classmethod
    def grpo(cls) -> "PolicyGradient":
        """Group-relative policy optimisation.

        Source: arXiv 2402.03300, equations (3) and (4). The KL coefficient is the 1e-3 of
        arXiv 2501.12948; the first paper's own experiment takes 0.04.
        """
        return cls(clip_high=0.2, aggregation="sequence", kl_coefficient=1e-3)

    @classmethod
    def dapo(cls) -> "PolicyGradient":
        """Decoupled clip, dynamic sampling, token-level loss, soft overlong punishment, no KL.

        Source: arXiv 2503.14476, section 4.1, for responses of up to 20,480 tokens; shorten the
        buffer for shorter ones. The bound on refills is ours: the paper samples until the batch
        is full.
        """
        return cls(dynamic_sampling=True, overlong_buffer=4096)

    @classmethod
    def dr_grpo(cls) -> "PolicyGradient":
        """GRPO without its biases: no deviation, a constant instead of each length, no KL.

        Source: arXiv 2503.20783.
        """
        return cls(clip_high=0.2, group_scale="none", aggregation="constant")

    @classmethod
    def ppo(cls) -> "PolicyGradient":
        """Proximal policy optimisation with a critic.

        Source: arXiv 1707.06347, clip 0.2 and lambda 0.95. Departures: gamma is 1 instead of 0.99,
        since the reward comes once, at the end; the clipped value loss and the whitening are those
        of the authors' implementation.
        """
        return cls(advantage="gae", clip_high=0.2)

    @property
    def needs_critic(self) -> bool:
        """Whether advantages come from a critic."""
        return self.advantage == "gae"

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model has to score the tokens."""
        return self.kl_coefficient > 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher has to score the tokens."""
        return self.distillation > 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ClippedSurrogate:
    """What `clipped_surrogate` returns.

    Attributes:
        loss_N: Loss of every token; carries the gradient.
        clipped_N: Whether the clip took away the token's gradient.
    """

    loss_N: Float[Tensor, "N"]
    clipped_N: Bool[Tensor, "N"]

    @property
    def clipped_share(self) -> float:
        """Fraction of tokens whose gradient the clip took away; 0 without tokens."""
        return self.clipped_N.sum().item() / max(1, len(self.clipped_N))


def token_weights(
    lengths: Sequence[int], aggregation: Aggregation, *, longest: int, sequences: int, tokens: int
) -> Float[Tensor, "N"]:
    """Weights with which `sum_n w_n loss_n` is the loss of a mini-batch.

    `"token"`: `1 / tokens`. `"sequence"`: `1 / (sequences * length)` with the length of the token's
    own response. `"constant"`: `1 / (sequences * longest)`. With the counts of the whole
    mini-batch, its micro-batches add up to it exactly.

    Args:
        lengths: Tokens of every response of this micro-batch; one of 0 counts as a response.
        aggregation: How tokens are averaged.
        longest: Tokens that a response may have.
        sequences: Responses of the whole mini-batch.
        tokens: Tokens of the whole mini-batch.

    Returns:
        One weight per token of this micro-batch, float64 on the CPU.

    Raises:
        ParameterMismatchError: If there is more here than in the whole, or a response is too long.

    Source: GRPO ("sequence"), DAPO ("token") and Dr. GRPO ("constant"), arXiv 2402.03300,
    2503.14476 and 2503.20783.
    """
    _check_choice("aggregation", aggregation, Aggregation)
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

    Differentiable in `log p` alone; NaN where the ratio overflows. At r = 1 the gradient is `-A`.

    Args:
        log_probs_N: Log-probability of each sampled token, with gradient.
        old_log_probs_N: The same before the first update on these responses.
        advantages_N: Advantages.
        clip_low: See `PolicyGradient`.
        clip_high: See `PolicyGradient`.

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

    Differentiable in `log p`, with derivative `1 - exp(d)`. The expected gradient is not that of
    `KL(p || r)` but that of `KL(r || p)`.

    Args:
        log_probs_N: Log-probability of each sampled token under the policy p, with gradient.
        reference_log_probs_N: The same under the reference r.

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

    Differentiable in V.

    Args:
        values_N: The critic's values, with gradient.
        old_values_N: Its values before the first update on these responses.
        returns_N: From `gae`.
        clip: How far a value may move, above 0.

    Source: the authors' implementation of PPO; not in arXiv 1707.06347.
    """
    check_positive("clip", clip)
    check_shapes(values=values_N, old=old_values_N, returns=returns_N)
    old_values_N, returns_N = old_values_N.detach(), returns_N.detach()
    near_N = values_N.clamp(old_values_N - clip, old_values_N + clip)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (near_N - returns_N) ** 2)


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; expected one of {get_args(choices)}.")
