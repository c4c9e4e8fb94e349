"""Divergences per token summed up: how large, at which positions, carried by how few tokens.

What is summed up is what `completion_reverse_kl` of the evaluation gives, whoever the two policies
are and whoever wrote the text. Legend: N tokens of all answers, A answers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.records import Row

TokenValues = Sequence[Sequence[float]]
"""Nats at every token of every answer."""
CARRIED = {"tokens_carrying_50": 0.5, "tokens_carrying_80": 0.8, "tokens_carrying_95": 0.95}
"""Columns of `divergence_summary` and the share of the whole divergence that each stands for."""


def divergence_summary(kl_nats: TokenValues) -> Row:
    """How large the divergence is per token, and how it is spread over tokens.

    The standard error `se_nats` allows tokens of one answer to depend on one another (None with a
    single answer); `answer_nats` is the mean over answers of the sum over tokens.

    Source: arXiv 2605.11739, equation 24 with the contexts given. Appendix F.4 reports a mean and
    does not say over what; here every token counts alike, and `answer_nats` is the other reading.
    """
    values_N, owners_N = _packed(kl_nats)
    ascending_N = values_N.sort().values
    mean, error = _mean_and_error(values_N, owners_N)
    return {
        "answers": len(kl_nats),
        "tokens": len(values_N),
        "mean_nats": mean,
        "se_nats": error,
        "answer_nats": float(values_N.sum()) / len(kl_nats),
        "median_nats": quantile(ascending_N, 0.5),
        "p95_nats": quantile(ascending_N, 0.95),
        "max_nats": float(ascending_N[-1]),
        **{name: share_of_tokens(kl_nats, share) for name, share in CARRIED.items()},
    }


def share_of_tokens(kl_nats: TokenValues, share: float) -> float | None:
    """The smallest share of tokens, in (0, 1], whose divergences add up to `share` of the whole.

    A divergence over the whole vocabulary is below 0 only by rounding, and then counts as 0.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share must be above 0 and at most 1, got {share}")
    values_N, _ = _packed(kl_nats)
    carried_N = values_N.clamp(min=0).sort(descending=True).values.cumsum(0)
    total = float(carried_N[-1])
    if total == 0:
        return None
    return (int((carried_N < share * total).sum()) + 1) / len(values_N)


def position_rows(kl_nats: TokenValues) -> list[Row]:
    """The divergence by position in the answer, in ranges that double: 1, 2, 3-4, 5-8, 9-16, ..."""
    values_N, owners_N = _packed(kl_nats)
    positions_N = torch.cat([torch.arange(1, len(answer) + 1) for answer in kl_nats])
    total = float(values_N.sum())
    rows: list[Row] = []
    longest, last = int(positions_N.max()), 0
    while last < longest:  # each range ends at a power of two, or at the end
        first, last = last + 1, min(max(1, 2 * last), longest)
        inside_N = (positions_N >= first) & (positions_N <= last)
        own_N, by_N = values_N[inside_N], owners_N[inside_N]
        mean, error = _mean_and_error(own_N, by_N)
        row: Row = {"first": first, "last": last}
        row |= {"answers": len(by_N.unique()), "tokens": len(own_N)}
        row |= {"mean_nats": mean, "se_nats": error}
        rows.append(row | {"share": float(own_N.sum()) / total if total > 0 else None})
    return rows


def kl_gap_closed(now_nats: float, base_nats: float) -> float | None:
    """`1 - KL / KL of the base`: 0 at the base, 1 at the teacher, below 0 where it moved away."""
    return 1.0 - now_nats / base_nats if base_nats > 0 else None


def quantile(ascending_N: Tensor, share: float) -> float:
    """The value below which a share of sorted values lies, linear between neighbours."""
    place = share * (len(ascending_N) - 1)
    low = int(place)
    high = min(low + 1, len(ascending_N) - 1)
    return float(torch.lerp(ascending_N[low], ascending_N[high], place - low))


def _packed(kl_nats: TokenValues) -> tuple[Tensor, Tensor]:
    """All values in float64, and the number of the answer that each belongs to."""
    lengths = [len(answer) for answer in kl_nats]
    if min(lengths, default=0) < 1:
        raise ConfigError(
            f"{len(lengths)} answers of {sum(lengths)} tokens, expected at least one answer and "
            "one token in each: leave out empty answers"
        )
    values_N = torch.cat([torch.tensor(answer, dtype=torch.float64) for answer in kl_nats])
    owners_N = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    if not bool(values_N.isfinite().all()):
        token = int((~values_N.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"token {token} has a divergence of {float(values_N[token])}: look for NaN in the "
            "logits of the two models"
        )
    return values_N, owners_N


def _mean_and_error(values_N: Tensor, owners_N: Tensor) -> tuple[float, float | None]:
    """Mean over tokens and its standard error with answers as clusters; None for one answer.

    `se^2 = A / (A - 1) * sum_a (sum_{n in a} (x_n - mean))^2 / N^2`, the linearised variance of a
    ratio of sums.
    """
    mean = float(values_N.mean())
    _, numbers_N, counts_A = owners_N.unique(return_inverse=True, return_counts=True)
    answers = len(counts_A)
    if answers < 2:
        return mean, None
    sums_A = torch.zeros(answers, dtype=torch.float64).index_add(0, numbers_N, values_N - mean)
    variance = answers / (answers - 1) * float(sums_A.square().sum())
    return mean, math.sqrt(variance) / len(values_N)
