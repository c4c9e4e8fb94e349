"""Divergences per token summed up: how large, at which positions, carried by how few tokens.

What is summed up is what `completion_reverse_kl` of the evaluation gives, whoever the two policies
are and whoever wrote the text. Legend: N tokens of all answers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.statistics import ratio
from effopd.records import Row

TokenValues = Sequence[Sequence[float]]
"""Nats at every token of every answer."""
CARRIED = {"tokens_carrying_50": 0.5, "tokens_carrying_80": 0.8, "tokens_carrying_95": 0.95}
"""Columns of `divergence_summary` and the share of the whole divergence that each stands for."""


def divergence_summary(kl_nats: TokenValues) -> Row:
    """How large the divergence is per token, and how it is spread over tokens.

    The standard error `se_nats` allows tokens of one answer to depend on one another (None with a
    single answer); `answer_nats` is the mean over answers of the sum over tokens. `CARRIED` are the
    smallest shares of tokens, in (0, 1], whose divergences add up to so much of the whole; what is
    below 0, by rounding, counts as 0 there.

    Source: arXiv 2605.11739, equation 24 with the contexts given. Appendix F.4 reports a mean and
    does not say over what; here every token counts alike, and `answer_nats` is the other reading.
    """
    _check(kl_nats)
    ascending_N = torch.cat([torch.tensor(each, dtype=torch.float64) for each in kl_nats]).sort()[0]
    sums = [math.fsum(answer) for answer in kl_nats]
    mean, error = ratio(sums, [len(answer) for answer in kl_nats])
    carried_N = ascending_N.flip(0).clamp(min=0).cumsum(0)
    total = float(carried_N[-1])
    return {
        "answers": len(kl_nats),
        "tokens": len(ascending_N),
        "mean_nats": mean,
        "se_nats": error,
        "answer_nats": math.fsum(sums) / len(kl_nats),
        "median_nats": quantile(ascending_N, 0.5),
        "p95_nats": quantile(ascending_N, 0.95),
        "max_nats": float(ascending_N[-1]),
        **{
            name: (int((carried_N < share * total).sum()) + 1) / len(ascending_N) if total else None
            for name, share in CARRIED.items()
        },
    }


def position_rows(kl_nats: TokenValues) -> list[Row]:
    """The divergence by position in the answer, in ranges that double: 1, 2, 3-4, 5-8, 9-16, ..."""
    _check(kl_nats)
    total = math.fsum(value for answer in kl_nats for value in answer)
    rows: list[Row] = []
    longest, last = max(map(len, kl_nats)), 0
    while last < longest:  # each range ends at a power of two, or at the end
        first, last = last + 1, min(max(1, 2 * last), longest)
        inside = [answer[first - 1 : last] for answer in kl_nats if len(answer) >= first]
        sums, counts = [math.fsum(part) for part in inside], [len(part) for part in inside]
        mean, error = ratio(sums, counts)
        row: Row = {"first": first, "last": last, "answers": len(inside), "tokens": sum(counts)}
        row |= {"mean_nats": mean, "se_nats": error}
        rows.append(row | {"share": math.fsum(sums) / total if total > 0 else None})
    return rows


def quantile(ascending_N: Tensor, share: float) -> float:
    """The value below which a share of sorted values lies, linear between neighbours."""
    place = share * (len(ascending_N) - 1)
    low = int(place)
    high = min(low + 1, len(ascending_N) - 1)
    return float(torch.lerp(ascending_N[low], ascending_N[high], place - low))


def _check(kl_nats: TokenValues) -> None:
    """Refuses empty answers and numbers that are not finite."""
    lengths = [len(answer) for answer in kl_nats]
    if min(lengths, default=0) < 1:
        raise ConfigError(
            f"{len(lengths)} answers of {sum(lengths)} tokens, expected at least one answer and "
            "one token in each: leave out empty answers"
        )
    for token, value in enumerate(value for answer in kl_nats for value in answer):
        if not math.isfinite(value):
            raise NonFiniteError(
                f"token {token} has a divergence of {value}: look for NaN in the logits of the two "
                "models"
            )
