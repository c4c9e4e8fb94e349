"""Divergences from a teacher of which k log-probabilities a token are known, as servers give them.

Axes: N tokens, K named tokens a position, V vocabulary, D hidden width, C tokens of one chunk.

Both distributions are coarsened to the named tokens and one bucket with the rest of the mass. That
is a function of the full distributions, so by the data processing inequality its divergence is a
lower bound of the divergence over the vocabulary, equal to it when every token is named; and never
below 0, where a sum over the named tokens alone may be. The gradient is that of the coarsened
divergence, exactly: nothing is clamped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from effopd.errors import ParameterMismatchError
from effopd.objectives.fused_kl import (
    Divergence,
    OnePass,
    PassSettings,
    check_normalizer,
    tile_divergence,
)
from effopd.objectives.projection import Head, accumulation_dtype, check_head
from effopd.precision import MatmulPrecision

ABSENT = -1e30
"""Log-probability of a column that takes no part, on both sides: finite, so that 0 * it is 0."""


class TopK(NamedTuple):
    """A teacher's log-probabilities (nats) of K tokens at each of N positions.

    Tokens of a position differ. A column to leave out has an id outside the vocabulary, such as -1;
    its mass belongs to the rest. A position of which nothing is known is NaN.
    """

    ids_NK: Int[Tensor, "N K"]
    log_probs_NK: Float[Tensor, "N K"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TopKDivergence:
    """What `top_k_divergence` returns.

    Attributes:
        loss: Sum over known tokens divided by the normalizer, nats; carries the gradient.
        per_token_N: Coarsened divergence of every token, nats, detached; 0 where it is not known.
        known_N: Whether the teacher said anything about a token.
        covered_N: Share of the teacher's mass on the named tokens, detached; 0 where not known.
    """

    loss: Float[Tensor, ""]
    per_token_N: Float[Tensor, "N"]
    known_N: Bool[Tensor, "N"]
    covered_N: Float[Tensor, "N"]


def top_k_divergence(
    hidden_ND: Float[Tensor, "N D"],
    weight_VD: Float[Tensor, "V D"],
    target: TopK,
    *,
    bias: Float[Tensor, "V"] | None = None,
    cap: float | None = None,
    divergence: Divergence = "reverse",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    normalizer: float | None = None,
    matmul_precision: MatmulPrecision | None = "highest",
) -> TopKDivergence:
    """`sum_n D(P_n, Q_n) / normalizer` on the named tokens and the rest as one outcome.

    P is the student's distribution and Q the teacher's, each as K probabilities and what is left of
    1. A lower bound of `fused_divergence`, which grows with every token that is named. One head is
    projected, so it costs 3 products and one tile [C, V] (two with a soft cap) beyond the
    gradients; one backward pass only.

    A teacher's K probabilities that sum to 1 or more by rounding leave the rest one rounding unit
    of their dtype, and all are divided by their sum.

    Args:
        hidden_ND: Student's hidden states before the lm_head, masked tokens dropped.
        weight_VD: Student's lm_head; may be tied to the embeddings.
        target: What is known of the teacher at the same tokens, on the student's device.
        bias: Bias of the student's lm_head.
        cap: Bound of the student's soft-capped logits, above 0; None for logits without one.
        divergence: Which divergence, see `fused_divergence`.
        beta: Weight of the teacher in the mixture of `"jsd"`.
        temperature: Divides the student's logits. The teacher's are taken as given: a list that is
            cut off cannot be sharpened.
        chunk_tokens: Tokens in a tile, or None for a default that fits vocabulary and device.
        normalizer: Divides the sum, or None for the number of known tokens here.
        matmul_precision: Of fp32 products, see `fused_divergence`.

    Returns:
        Loss, per-token values, and what the teacher said; NaN where the student's logits are not
        finite (`check_finite`).

    Raises:
        ParameterMismatchError: If shapes, dtypes or devices disagree, or a token is named twice at
            a position (looked for on the CPU, since it would wait for a GPU).
        ConfigError: If a setting is out of range.
    """
    student = Head(hidden_ND, weight_VD, bias, cap)
    check_head("student", student)
    check_normalizer(normalizer)
    kernel = tile_divergence(divergence, beta)
    _check_target(target, hidden_ND)
    with torch.no_grad():
        teacher = _coarsened(target, weight_VD.shape[0])

    def evaluate(student_CV: Tensor, _: Sequence[Tensor], chunk: slice) -> Tensor:
        named_CK, ids_CK = teacher.named_NK[chunk], teacher.ids_NK[chunk]
        # Named logits leave the tile, whose logsumexp is then that of the rest; in place.
        logits_CK = student_CV.gather(1, ids_CK)
        infinite = torch.where(named_CK, -torch.inf, 0.0).to(student_CV)
        student_CV.scatter_add_(1, ids_CK, infinite)
        largest_C = student_CV.amax(-1)
        largest_C = largest_C.masked_fill(largest_C == -torch.inf, 0.0)
        rest_C = student_CV.sub_(largest_C[:, None]).exp_().sum(-1)
        # The coarsened divergence is that of a vocabulary of K + 1, with these as its logits.
        coarse_CK1 = torch.cat([logits_CK, (largest_C + rest_C.log())[:, None]], 1)
        taking_part_CK1 = torch.cat([named_CK, teacher.rest_N[chunk, None]], 1)
        coarse_CK1 = coarse_CK1.masked_fill(~taking_part_CK1, -torch.inf).log_softmax(-1)
        coarse_CK1.masked_fill_(~taking_part_CK1, ABSENT)
        values_C = kernel(coarse_CK1, teacher.log_probs_NK1[chunk].to(coarse_CK1))
        coarse_CK1.masked_fill_(~taking_part_CK1, 0.0)
        # Its gradient: of a named logit as it is, of the rest in proportion to its probabilities.
        share_C = coarse_CK1[:, -1] / rest_C.masked_fill(rest_C == 0, 1.0)
        student_CV.mul_(share_C[:, None]).scatter_add_(1, ids_CK, coarse_CK1[:, :-1])
        return values_C

    known = teacher.known_N.sum().clamp(min=1).to(accumulation_dtype(hidden_ND, weight_VD))
    scale = 1.0 / (known if normalizer is None else normalizer)
    settings = PassSettings(0, temperature, chunk_tokens, matmul_precision)
    loss, per_token_N = OnePass.apply(  # type: ignore[no-untyped-call]
        *student, evaluate, settings, scale, torch.is_grad_enabled()
    )
    return TopKDivergence(
        loss=loss, per_token_N=per_token_N, known_N=teacher.known_N, covered_N=teacher.covered_N
    )


class _Coarsened(NamedTuple):
    """A target with K named tokens and the rest, ready for the tiles."""

    ids_NK: Tensor  # inside the vocabulary; 0 where not named
    named_NK: Tensor
    rest_N: Tensor  # whether any token is not named
    log_probs_NK1: Tensor  # of the named and the rest, normalised, float64
    known_N: Tensor
    covered_N: Tensor


def _coarsened(target: TopK, vocabulary: int) -> _Coarsened:
    """The teacher's K + 1 probabilities; all of it the rest, of divergence 0, where not known."""
    ids_NK, wide_NK = target.ids_NK, target.log_probs_NK.double()
    known_N = ~wide_NK.isnan().any(-1)
    named_NK = (ids_NK >= 0) & (ids_NK < vocabulary) & known_N[:, None]
    rest_N = named_NK.sum(-1) < vocabulary
    wide_NK = wide_NK.masked_fill(~named_NK, -torch.inf)
    covered_N = wide_NK.exp().sum(-1)
    unit = torch.finfo(target.log_probs_NK.dtype).eps
    left_N = (1.0 - covered_N).clamp(min=unit).log().masked_fill(~rest_N, -torch.inf)
    log_probs_NK1 = torch.cat([wide_NK, left_N[:, None]], 1).log_softmax(-1)
    absent_NK1 = ~torch.cat([named_NK, rest_N[:, None]], 1)
    return _Coarsened(
        torch.where(named_NK, ids_NK, 0),
        named_NK,
        rest_N,
        log_probs_NK1.masked_fill(absent_NK1, ABSENT),
        known_N,
        covered_N.to(target.log_probs_NK.dtype),
    )


def _check_target(target: TopK, hidden_ND: Tensor) -> None:
    """Refuses a target that does not belong to the hidden states."""
    ids_NK, log_probs_NK = target
    shaped = ids_NK.dim() == 2 and ids_NK.shape == log_probs_NK.shape and ids_NK.shape[1] > 0
    if not shaped or len(ids_NK) != len(hidden_ND) or ids_NK.dtype != torch.int64:
        raise ParameterMismatchError(
            f"the teacher's tokens are {ids_NK.dtype} of shape {tuple(ids_NK.shape)} and their "
            f"log-probabilities of shape {tuple(log_probs_NK.shape)}, for {len(hidden_ND)} hidden "
            "states; expected int64 and floats of one shape [tokens, k]."
        )
    if {ids_NK.device, log_probs_NK.device} != {hidden_ND.device}:
        raise ParameterMismatchError(
            f"the teacher's log-probabilities are on {log_probs_NK.device} and the hidden states "
            f"on {hidden_ND.device}; move one."
        )
    if ids_NK.device.type == "cpu":
        ordered_NK = ids_NK.masked_fill(log_probs_NK.isnan(), -1).sort(-1).values
        twice_N = ((ordered_NK[:, 1:] == ordered_NK[:, :-1]) & (ordered_NK[:, 1:] >= 0)).any(-1)
        if bool(twice_N.any()):
            raise ParameterMismatchError(
                f"token {int(twice_N.nonzero()[0])} of the answers has a teacher that names one "
                "token twice; expected k different ones. Drop the copies."
            )
