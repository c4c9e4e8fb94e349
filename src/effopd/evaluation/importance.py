"""One policy judged on the answers of another: importance weights and what they estimate.

Legend: B answers, T token positions, the longest answer's. Answers are padded with zeros. All of it
is float64 on the host.

A token of an answer was reached by sampling the tokens before it. Under the candidate that has
`rho = prod_{j < t} candidate(y_j) / behaviour(y_j)` times the probability, so `E[rho_t f_t]` over
answers of the behaviour is `E[f_t]` over the candidate's own (f_t 0 after the end; rho stays at its
last value there). The weights are self-normalised at every position over all B answers, ended ones
included, for all of which `E[rho_t] = 1`.

Why not clipped: a clipped weight loses mass where the candidate goes most, which makes a divergence
look smaller than it is, and a search picks what looks best. Self-normalised weights sum to B at
every position, so no estimate exceeds the largest value there and none shrinks as ratios fade;
they are 1 for the behaviour itself; their bias is of order 1 / B. What remains is variance, which
grows like `exp(2 k3 t)`: `effective_share` tells when it is too much.

Source: weighted per-decision importance sampling of Precup, Sutton and Singh (2000).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

TokenValues = Sequence[Sequence[float]]


def padded(values: TokenValues) -> Float[Tensor, "B T"]:
    """One row an answer, zeros after its end."""
    return pad_sequence([torch.tensor(v, dtype=torch.float64) for v in values], batch_first=True)


def prefix_weights(
    candidate: TokenValues, behaviour: TokenValues
) -> tuple[Float[Tensor, "B T"], Float[Tensor, " B"]]:
    """Self-normalised ratios of the tokens before each position, and of whole answers.

    Args:
        candidate: Log-probability of every token under the candidate, one row an answer.
        behaviour: The same under the policy that wrote the answers.

    Returns:
        Weights of each position and of whole answers; each column's mean is 1.
    """
    cumulative_BT = (padded(candidate) - padded(behaviour)).cumsum(dim=1)
    before_BT = cumulative_BT.roll(1, dims=1)
    before_BT[:, 0] = 0.0
    answers = len(cumulative_BT)
    weights_BT = torch.softmax(before_BT, dim=0) * answers
    return weights_BT, torch.softmax(cumulative_BT[:, -1], dim=0) * answers


def weighted_sums(
    weights_BT: Float[Tensor, "B T"], values_BT: Float[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Per answer the weighted sum over tokens, linearised in the normaliser.

    `sum_t m_t + w_t (v_t - m_t)` with `m_t` the weighted mean at position t: their mean over
    answers is the self-normalised estimate `sum_t m_t`, and the spread around it gives that
    estimate's standard error (delta method). With weights of 1 they are the plain sums.

    Args:
        weights_BT: From `prefix_weights`.
        values_BT: A value a token, 0 after the end.

    Returns:
        One number an answer.
    """
    means_T = (weights_BT * values_BT).mean(dim=0)
    return (means_T + weights_BT * (values_BT - means_T)).sum(dim=1)


def ratio_values(
    sums_B: Float[Tensor, " B"], lengths_B: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Per answer the ratio of two means, linearised.

    `R + (s - R l) / mean(l)` with `R = mean(s) / mean(l)`: their mean is R, their spread gives its
    standard error (delta method).

    Args:
        sums_B: Numerators.
        lengths_B: Denominators, of positive mean.

    Returns:
        One number an answer.
    """
    ratio = sums_B.mean() / lengths_B.mean()
    return ratio + (sums_B - ratio * lengths_B) / lengths_B.mean()


def mean_k3(candidate: TokenValues, behaviour: TokenValues) -> float:
    """Mean over tokens of `r - 1 - log r`, r the ratio of a token: `KL(behaviour || candidate)`.

    In nats per token; never negative.
    """
    log_ratio_BT = padded(candidate) - padded(behaviour)
    k3_BT = torch.expm1(log_ratio_BT) - log_ratio_BT  # 0 where padded
    return k3_BT.sum().item() / sum(map(len, behaviour))


def effective_share(weights_B: Float[Tensor, " B"]) -> float:
    """Kish's effective sample size over the sample size, in (0, 1]; 1 for equal weights."""
    return (weights_B.sum().square() / weights_B.square().sum()).item() / len(weights_B)
