"""Divergences of two models with other tokens, on the classes of tokens that both can tell apart.

Axes: N tokens of the student, M of the teacher, C tokens of one chunk, B rows of the teacher for
them, V and W vocabularies of student and teacher, G classes, R members of rows.

A class holds tokens of both that begin alike, see `effopd.models.common_vocabulary`; the last one,
the tail, holds what has no counterpart. Both distributions of the next token are brought to the
classes, so that their divergence is one of the same outcomes. Where the student has more than one
token in a class, the teacher's next token does not tell which of them it means: `3` may become
`3 ;`, one token of the student. For the token that was written it is known, from the teacher's
distribution behind it: the class is split there into the token, the longer ones that its next token
would make of it, and the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from effopd.objectives.fused_kl import (
    Divergence,
    OnePass,
    PassSettings,
    TileDivergence,
    check_normalizer,
    tile_divergence,
)
from effopd.objectives.projection import Head, accumulation_dtype, check_head, project_
from effopd.objectives.top_k import ABSENT, TopKDivergence
from effopd.precision import MatmulPrecision


class Ragged(NamedTuple):
    """Lists of numbers, one after the other; list i is `values[starts[i] : starts[i + 1]]`."""

    starts: Int[Tensor, "V+1"]
    values: Int[Tensor, "R"]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> "Ragged":
        """The same lists."""
        lengths = torch.tensor([0, *map(len, lists)], dtype=torch.int64)
        flat = [value for each in lists for value in each]
        return cls(lengths.cumsum(0), torch.tensor(flat, dtype=torch.int64))

    def to(self, device: torch.device) -> "Ragged":
        """The same on a device."""
        return Ragged(self.starts.to(device), self.values.to(device))

    def lengths(self, chosen_R: Tensor) -> Tensor:
        """How much is in some of the lists."""
        return self.starts[chosen_R + 1] - self.starts[chosen_R]

    def of_rows(self, chosen_R: Tensor) -> tuple[Tensor, Tensor]:
        """The lists of some entries: which of them, and what."""
        count_R = self.lengths(chosen_R)
        row = torch.repeat_interleave(torch.arange(len(chosen_R), device=count_R.device), count_R)
        within = torch.arange(len(row), device=row.device) - (count_R.cumsum(0) - count_R)[row]
        return row, self.values[self.starts[chosen_R][row] + within]


class Classes(NamedTuple):
    """How the tokens of student and teacher go together.

    Attributes:
        student_V: Class of each row of the student's head, below `size`; the tail is the last.
        teacher_W: The same of the teacher.
        size: Classes, the tail included.
        one_more: For each token of the student, its tokens that the teacher writes as that one and
            one token more.
        longer: The same with two tokens more, or above.
        next_tokens: The tokens of the teacher that make a token one of its `one_more`.
    """

    student_V: Int[Tensor, "V"]
    teacher_W: Int[Tensor, "W"]
    size: int
    one_more: Ragged
    longer: Ragged
    next_tokens: Ragged

    def to(self, device: torch.device) -> "Classes":
        """The same on a device."""
        lists = (each.to(device) for each in (self.one_more, self.longer, self.next_tokens))
        return Classes(self.student_V.to(device), self.teacher_W.to(device), self.size, *lists)


class Places(NamedTuple):
    """Where the next tokens of both can be compared, N of the student's tokens in order.

    Attributes:
        student_N: Rows of the student's hidden states.
        teacher_N: Rows of the teacher's that have read the same text.
        written_N: The student's token there.
        path_N: Tokens of the teacher that write it, whose next distribution is known where it is
            needed; 0 where the class is not split.
        teacher_ids_M: The teacher's tokens, of all answers.
    """

    student_N: Int[Tensor, "N"]
    teacher_N: Int[Tensor, "N"]
    written_N: Int[Tensor, "N"]
    path_N: Int[Tensor, "N"]
    teacher_ids_M: Int[Tensor, "M"]


class _Split(NamedTuple):
    """Rows of a chunk whose class is split, and the column of each token that leaves its class.

    Column G has the written token and those that the teacher writes with two tokens more or above,
    column G + 1 those with one more.
    """

    rows_S: Tensor
    written_S: Tensor
    member_rows_R: Tensor
    members_R: Tensor
    columns_R: Tensor


def common_divergence(
    hidden_ND: Float[Tensor, "N D"],
    weight_VD: Float[Tensor, "V D"],
    teacher: Head,
    places: Places,
    classes: Classes,
    *,
    bias: Float[Tensor, "V"] | None = None,
    cap: float | None = None,
    divergence: Divergence = "reverse",
    beta: float = 0.5,
    teacher_temperature: float = 1.0,
    chunk_tokens: int | None = None,
    normalizer: float | None = None,
    matmul_precision: MatmulPrecision | None = "highest",
) -> TopKDivergence:
    """`sum_n D(P_n, Q_n) / normalizer` on the classes, at the places where it can be compared.

    With one class a token it is `fused_divergence`. Both heads are projected once; nothing of size
    [N, V] is kept. A difference of the teacher's probabilities that is 0 by rounding counts as one
    rounding unit of what was subtracted from.

    Args:
        hidden_ND: Student's hidden states before the lm_head, masked tokens dropped.
        weight_VD: Student's lm_head.
        teacher: Hidden states of the teacher's own tokens of the same answers, and its head.
        places: What is compared with what.
        classes: How the tokens of both go together.
        bias: Bias of the student's lm_head.
        cap: Bound of the student's soft-capped logits; None for logits without one.
        divergence: Which divergence, see `fused_divergence`.
        beta: Weight of the teacher in the mixture of `"jsd"`.
        teacher_temperature: Divides the teacher's logits; below 1 sharpens it.
        chunk_tokens: Tokens in a tile, or None for a default.
        normalizer: Divides the sum, or None for the number of places.
        matmul_precision: Of fp32 products, see `fused_divergence`.

    Returns:
        Values of all N tokens, 0 and not known outside the places; `covered_N` is the teacher's
        share outside the tail.

    Raises:
        ParameterMismatchError: If shapes or devices disagree.
        ConfigError: If a setting is out of range.
    """
    check_head("student", Head(hidden_ND, weight_VD, bias, cap))
    check_head("teacher", teacher)
    check_normalizer(normalizer)
    kernel = tile_divergence(divergence, beta)
    device = hidden_ND.device
    # Where a chunk's rows of the teacher begin and end is asked for on the host.
    reach_N = (places.teacher_N + places.path_N).clamp(max=len(teacher.hidden_ND) - 1)
    first_N, last_N = places.teacher_N.tolist(), reach_N.tolist()
    places = Places(*(part.to(device) for part in places))
    dtype = accumulation_dtype(hidden_ND, weight_VD)
    members_G = torch.bincount(classes.student_V, minlength=classes.size)
    covered = torch.zeros(len(hidden_ND), dtype=dtype, device=device)

    def evaluate(student_CV: Tensor, scratch_CV: Sequence[Tensor], chunk: slice) -> Tensor:
        rows = slice(first_N[chunk.start], max(last_N[chunk]) + 1)
        log_q_BW = torch.empty(
            (rows.stop - rows.start, len(classes.teacher_W)), dtype=dtype, device=device
        )
        project_(log_q_BW, rows, teacher, teacher_temperature, matmul_precision)
        torch.log_softmax(log_q_BW, -1, out=log_q_BW)
        part = Places(
            places.student_N[chunk],
            places.teacher_N[chunk] - rows.start,
            places.written_N[chunk],
            places.path_N[chunk],
            places.teacher_ids_M[rows],
        )
        split = _split(part, classes)
        log_q_CG, present_CG = _teacher(log_q_BW, part, classes, members_G, split)
        tail_C = log_q_CG[:, classes.size - 1].exp()
        covered[part.student_N] = 1.0 - tail_C
        return _compared(student_CV, scratch_CV[0], log_q_CG, present_CG, classes, split, kernel)

    compared = len(places.student_N)
    known_N = torch.zeros(len(hidden_ND), dtype=torch.bool, device=device)
    known_N[places.student_N] = True
    scale = 1.0 / (max(1, compared) if normalizer is None else normalizer)
    settings = PassSettings(1, 1.0, chunk_tokens, matmul_precision)
    loss, values = OnePass.apply(  # type: ignore[no-untyped-call]
        hidden_ND[places.student_N], weight_VD, bias, cap, evaluate, settings, scale,
        torch.is_grad_enabled(),
    )  # fmt: skip
    per_token_N = values.new_zeros(len(hidden_ND)).index_copy_(0, places.student_N, values)
    return TopKDivergence(loss=loss, per_token_N=per_token_N, known_N=known_N, covered_N=covered)


def _split(part: Places, classes: Classes) -> _Split:
    """Which classes of a chunk are split, and how."""
    rows_S = part.path_N.nonzero()[:, 0]
    written_S = part.written_N[rows_S]
    itself = torch.arange(len(rows_S), device=rows_S.device), written_S
    longer, one_more = (each.of_rows(written_S) for each in (classes.longer, classes.one_more))
    alike = torch.full_like(torch.cat([itself[1], longer[1]]), classes.size)
    return _Split(
        rows_S,
        written_S,
        torch.cat([rows_S[row] for row, _ in (itself, longer, one_more)]),
        torch.cat([ids for _, ids in (itself, longer, one_more)]),
        torch.cat([alike, torch.full_like(one_more[1], classes.size + 1)]),
    )


def _teacher(
    log_q_BW: Float[Tensor, "B W"],
    part: Places,
    classes: Classes,
    members_G: Tensor,
    split: _Split,
) -> tuple[Float[Tensor, "C G+2"], Bool[Tensor, "C G+2"]]:
    """The teacher's log-probabilities of the classes, and which of them the student can write."""
    path_B = log_q_BW.gather(1, part.teacher_ids_M[:, None])[:, 0].double()
    before_B = torch.cat([path_B.new_zeros(1), path_B.cumsum(0)])
    q_BW = log_q_BW.exp_()
    q_CG = q_BW.new_zeros((len(part.teacher_N), classes.size + 2))
    q_CG.index_add_(1, classes.teacher_W, q_BW[part.teacher_N])
    present_CG = torch.zeros_like(q_CG, dtype=torch.bool)
    present_CG[:, : classes.size] = members_G > 0
    unit, smallest = torch.finfo(q_CG.dtype).eps, torch.finfo(q_CG.dtype).tiny
    if len(split.rows_S):
        rows_S, written_S = split.rows_S, split.written_S
        behind_S = (part.teacher_N + part.path_N)[rows_S]
        token_S = (before_B[behind_S] - before_B[part.teacher_N[rows_S]]).exp().to(q_CG)
        row, following = classes.next_tokens.of_rows(written_S)
        onward_S = torch.zeros_like(token_S)
        onward_S.index_add_(0, row, q_BW[behind_S[row], following]).clamp_(max=1.0)
        # The token alone, one that its next token makes of it, and what else the class has.
        alone_S = token_S * (1.0 - onward_S).clamp(min=unit)
        own_S, one_more_S = classes.student_V[written_S], classes.one_more.lengths(written_S)
        class_S = q_CG[rows_S, own_S]
        rest_S = torch.maximum(class_S - token_S, unit * class_S)
        others_S = members_G[own_S] - 1 - one_more_S - classes.longer.lengths(written_S)
        q_CG[rows_S, classes.size] = alone_S + torch.where(others_S > 0, 0.0, rest_S)
        q_CG[rows_S, classes.size + 1] = token_S * onward_S
        q_CG[rows_S, own_S] = rest_S
        present_CG[rows_S, classes.size] = True
        present_CG[rows_S, classes.size + 1] = one_more_S > 0
        present_CG[rows_S, own_S] = others_S > 0
    return q_CG.clamp_(min=smallest).log_(), present_CG


def _compared(
    student_CV: Float[Tensor, "C V"],
    scratch_CV: Float[Tensor, "C V"],
    log_q_CG: Float[Tensor, "C G+2"],
    present_CG: Bool[Tensor, "C G+2"],
    classes: Classes,
    split: _Split,
    kernel: TileDivergence,
) -> Float[Tensor, "C"]:
    """The divergence of every row; leaves the gradient of the student's logits in its tile."""
    smallest = torch.finfo(student_CV.dtype).tiny
    p_CV = student_CV.sub_(student_CV.amax(-1, keepdim=True)).exp_()
    # Members of split classes are added apart.
    members = split.member_rows_R, split.members_R
    columns = split.member_rows_R, split.columns_R
    apart_R = p_CV[members]
    p_CV[members] = 0.0
    p_CG = torch.zeros_like(log_q_CG).index_add_(1, classes.student_V, p_CV)
    p_CG.index_put_(columns, apart_R, accumulate=True).clamp_(min=smallest)
    absent_CG = ~present_CG
    # Outcomes that the student cannot write take no part on either side.
    tiles = [
        each.masked_fill(absent_CG, -torch.inf).log_softmax(-1).masked_fill_(absent_CG, ABSENT)
        for each in (p_CG.log(), log_q_CG)
    ]
    values_C = kernel(*tiles)
    # The gradient of a class goes to its tokens in proportion to their probabilities.
    share_CG = tiles[0].masked_fill_(absent_CG, 0.0).div_(p_CG)
    torch.index_select(share_CG, 1, classes.student_V, out=scratch_CV)
    p_CV.mul_(scratch_CV)
    p_CV[members] = apart_R * share_CG[columns]
    return values_C
