"""How far a student has come to its teacher: what their distributions share, by position.

Axes: N tokens, V vocabulary, K likeliest tokens, C sampled tokens, B = 10 deciles of an answer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effopd.errors import ParameterMismatchError
from effopd.objectives.projection import Head, accumulation_dtype, check_head, project_
from effopd.objectives.token_checks import check_lengths
from effopd.precision import MatmulPrecision

DECILES = 10
HEALTH = ("tokens", "overlap", "overlap_advantage", "student_entropy", "teacher_entropy")
"""Columns of `health_sums`, sums over the tokens of a decile."""


@torch.no_grad()
def health_sums(
    student: Head,
    teacher: Head,
    lengths: Sequence[int],
    *,
    k: int = 16,
    every: int = 1,
    first: int = 0,
    at_most: int = 32,
    teacher_temperature: float = 1.0,
    matmul_precision: MatmulPrecision | None = "highest",
) -> Float[Tensor, "10 5"]:
    """Sums over tokens of what `HEALTH` names, one row a decile of the answers' positions.

    Divide by the first column for means; add up those of micro-batches before. "overlap": share of
    the K likeliest tokens that student and teacher have in common. "overlap_advantage": `sum_v p
    (log q - log p)` over those, p and q renormalised on them; at most 0, and 0 where none is
    shared. The entropies are in nats, over the whole vocabulary.

    Looks at every n-th token, n at least `every` and so that `at_most` are left: a micro-batch of
    any size costs at most two products of `at_most` rows. No random numbers are drawn.

    Args:
        student: Hidden states [N, D] and head.
        teacher: Hidden states [N, E] of the same tokens, and head, on the same device.
        lengths: Tokens of each answer; sums to N.
        k: Likeliest tokens of each that are compared; the vocabulary's size where that is less.
        every: Distance of tokens that are looked at, at least 1.
        first: The first of them, so that a distance goes on from micro-batch to micro-batch.
        at_most: Tokens that are looked at.
        teacher_temperature: Divides the teacher's logits, above 0.
        matmul_precision: Of fp32 products, see `fused_divergence`.

    Raises:
        ParameterMismatchError: If shapes or lengths disagree.

    Source: overlap ratio, overlap-token advantage and entropy gap of arXiv 2604.13016. Departures:
    deciles of each answer's length, and a sample of the tokens.
    """
    check_head("student", student)
    check_head("teacher", teacher)
    check_lengths(lengths)
    tokens = len(student.hidden_ND)
    same_rows = student.weight_VD.shape[0] == teacher.weight_VD.shape[0]
    if len(teacher.hidden_ND) != tokens or sum(lengths) != tokens or not same_rows:
        raise ParameterMismatchError(
            f"{tokens} and {len(teacher.hidden_ND)} tokens of {sum(lengths)} in answers, heads of "
            f"{student.weight_VD.shape[0]} and {teacher.weight_VD.shape[0]} rows; expected equal "
            "counts."
        )
    dtype, device = accumulation_dtype(student.hidden_ND), student.hidden_ND.device
    chosen = slice(first, tokens, max(1, every, -(-tokens // at_most)))
    log_p_CV = _log_probs(student, chosen, dtype, 1.0, matmul_precision)
    log_q_CV = _log_probs(teacher, chosen, dtype, teacher_temperature, matmul_precision)
    count = min(k, log_p_CV.shape[1])
    ours_CK, theirs_CK = (log_CV.topk(count).indices for log_CV in (log_p_CV, log_q_CV))
    shared_CK = (ours_CK[:, :, None] == theirs_CK[:, None]).any(-1)
    p_CK, q_CK = (
        log_CV.gather(1, ours_CK).masked_fill(~shared_CK, -torch.inf).log_softmax(-1)
        for log_CV in (log_p_CV, log_q_CV)
    )
    gains_CK = (p_CK.exp() * (q_CK - p_CK)).masked_fill(~shared_CK, 0.0)
    columns = [
        torch.ones(len(ours_CK), dtype=dtype, device=device),
        shared_CK.to(dtype).mean(-1),
        gains_CK.sum(-1),
        -(log_p_CV.exp() * log_p_CV).sum(-1),
        -(log_q_CV.exp() * log_q_CV).sum(-1),
    ]
    sums_B5 = torch.zeros(DECILES, len(columns), dtype=dtype, device=device)
    return sums_B5.index_add_(0, _deciles(lengths)[chosen].to(device), torch.stack(columns, 1))


def health_row(sums_B5: Float[Tensor, "10 5"]) -> dict[str, Any]:
    """Means of what `health_sums` added up, as fields of `metrics.jsonl`; None where no token was.

    "overlap", "overlap_advantage" (nats) and "entropy_gap" (the student's entropy minus the
    teacher's, nats) over all tokens; "overlap_by_decile" and "entropy_gap_by_decile", ten each.
    """
    tokens, overlap, advantage, ours, theirs = sums_B5.sum(0).tolist()
    deciles = sums_B5.tolist()
    return {
        "overlap": _ratio(overlap, tokens),
        "overlap_advantage": _ratio(advantage, tokens),
        "entropy_gap": _ratio(ours - theirs, tokens),
        "overlap_by_decile": [_ratio(row[1], row[0]) for row in deciles],
        "entropy_gap_by_decile": [_ratio(row[3] - row[4], row[0]) for row in deciles],
    }


def _ratio(total: float, count: float) -> float | None:
    """A mean; None of nothing, or where it is not finite."""
    return total / count if count and math.isfinite(total) else None


def _deciles(lengths: Sequence[int]) -> Int[Tensor, "N"]:
    """The tenth of its answer that each token lies in, 0 to 9."""
    parts = [torch.arange(length) * DECILES // max(1, length) for length in lengths]
    return torch.cat([torch.zeros(0, dtype=torch.long), *parts])


def _log_probs(
    head: Head,
    chosen: slice,
    dtype: torch.dtype,
    temperature: float,
    precision: MatmulPrecision | None,
) -> Float[Tensor, "C V"]:
    """Log-probabilities of the chosen tokens over the vocabulary."""
    few = head._replace(hidden_ND=head.hidden_ND[chosen])
    tile_CV = torch.empty(
        len(few.hidden_ND), len(head.weight_VD), dtype=dtype, device=head.hidden_ND.device
    )
    project_(tile_CV, slice(0, len(tile_CV)), few, temperature, precision)
    return torch.log_softmax(tile_CV, -1)
