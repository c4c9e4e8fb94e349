"""Divergence between two tiles of logits, and its gradient, computed in the tiles themselves.

Axes: C tokens of one chunk, V vocabulary. Each function takes the student's and the teacher's
logits, destroys both, returns the divergence of every token in nats, and leaves the gradient with
respect to the student's logits in the student's tile. A whole row is present, so both softmaxes
are exact and each head is projected once.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import ConfigError

Divergence = Literal["reverse", "forward", "jsd"]
TileDivergence = Callable[[Tensor, Tensor], Tensor]

_BLOCK_ELEMENTS = {"cpu": 2**18}  # temporaries of 1 MiB stay in the cache
_DEFAULT_BLOCK_ELEMENTS = 2**26


def check_divergence(divergence: str, beta: float) -> None:
    """Refuses an unknown divergence, and a beta outside (0, 1) where it is the mixture's."""
    if divergence not in get_args(Divergence):
        raise ConfigError(f"divergence is {divergence!r}; expected one of {get_args(Divergence)}.")
    if divergence == "jsd" and not 0.0 < beta < 1.0:
        raise ConfigError(
            f"beta is {beta}; the mixture of 'jsd' needs 0 < beta < 1. What others call beta = 0 "
            "is divergence='forward', beta = 1 is divergence='reverse'."
        )


def tile_divergence(divergence: Divergence, beta: float) -> TileDivergence:
    """The function of (student logits, teacher logits) that the module describes."""
    check_divergence(divergence, beta)
    if divergence == "reverse":
        return reverse_kl_
    if divergence == "forward":
        return _in_row_blocks(_forward_kl_block_)
    return _in_row_blocks(lambda student, teacher: _jsd_block_(student, teacher, beta))


def reverse_kl_(student_CV: Float[Tensor, "C V"], teacher_CV: Float[Tensor, "C V"]) -> Tensor:
    """`k = sum_v p (log p - log q)` of student p and teacher q, per token.

    Gradient left in the student's tile: `p (log p - log q - k)`. Seven passes over the tiles, no
    temporary of their size.
    """
    torch.log_softmax(student_CV, -1, out=student_CV)
    torch.log_softmax(teacher_CV, -1, out=teacher_CV)
    torch.sub(student_CV, teacher_CV, out=teacher_CV)
    student_CV.exp_()
    teacher_CV.mul_(student_CV)
    divergence_C = teacher_CV.sum(-1)
    torch.addcmul(teacher_CV, student_CV, divergence_C[:, None], value=-1, out=student_CV)
    return divergence_C


def _forward_kl_block_(student_BV: Tensor, teacher_BV: Tensor) -> Tensor:
    """`sum_v q (log q - log p)`; gradient `p - q`."""
    torch.log_softmax(student_BV, -1, out=student_BV)
    torch.log_softmax(teacher_BV, -1, out=teacher_BV)
    target = teacher_BV.exp()
    divergence = teacher_BV.sub_(student_BV).mul_(target).sum(-1)
    student_BV.exp_().sub_(target)
    return divergence


def _jsd_block_(student_BV: Tensor, teacher_BV: Tensor, beta: float) -> Tensor:
    """`beta KL(q || m) + (1 - beta) KL(p || m)` with `m = beta q + (1 - beta) p`.

    Gradient `(1 - beta) p (log p - log m - KL(p || m))`: the mixture's own derivatives cancel.
    """
    torch.log_softmax(student_BV, -1, out=student_BV)
    torch.log_softmax(teacher_BV, -1, out=teacher_BV)
    mixture = torch.logaddexp(student_BV + math.log1p(-beta), teacher_BV + math.log(beta))
    target = teacher_BV.exp()
    teacher_kl = teacher_BV.sub_(mixture).mul_(target).sum(-1)
    probability = student_BV.exp()
    student_BV.sub_(mixture)
    student_kl = torch.mul(student_BV, probability, out=target).sum(-1)
    student_BV.sub_(student_kl[:, None]).mul_(probability).mul_(1.0 - beta)
    return teacher_kl.mul_(beta).add_(student_kl, alpha=1.0 - beta)


def _in_row_blocks(block_divergence: TileDivergence) -> TileDivergence:
    """Apply a function that needs temporaries to a few rows at a time."""

    def divergence(student_CV: Tensor, teacher_CV: Tensor) -> Tensor:
        elements = _BLOCK_ELEMENTS.get(student_CV.device.type, _DEFAULT_BLOCK_ELEMENTS)
        rows = max(1, elements // max(1, student_CV.shape[1]))
        pairs = zip(torch.split(student_CV, rows), torch.split(teacher_CV, rows), strict=True)
        return torch.cat([block_divergence(student, teacher) for student, teacher in pairs])

    return divergence
