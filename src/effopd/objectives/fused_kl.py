"""Full-vocabulary divergences of two language models, from hidden states, in one pass.

Axes: N tokens, D the student's width, E the teacher's width, V vocabulary, C tokens of one chunk.

The gradients of hidden states and lm_head are computed in the forward pass, while the chunk's
logits are at hand, and scaled by the incoming gradient in the backward pass. Nothing of size
[N, V] ever exists and every head is projected once: 4 products, where recomputing in the backward
pass takes 6.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.objectives.projection import Head, HeadGradients, check_head, project_, tiles
from effopd.objectives.token_checks import check_positive, check_range
from effopd.precision import MatmulPrecision

Divergence = Literal["reverse", "forward", "jsd"]
TileDivergence = Callable[[Tensor, Tensor], Tensor]
"""From the logits [C, V] of student and teacher to the divergence [C] of every token in nats.

It destroys both tiles and leaves the gradient with respect to the student's logits in its tile. A
whole row is present, so both softmaxes are exact and each head is projected once.
"""

_BLOCK_ELEMENTS = {"cpu": 2**18}  # temporaries of 1 MiB stay in the cache
_DEFAULT_BLOCK_ELEMENTS = 2**26
_LARGEST = 80.0  # its exponential is finite in fp32


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedDivergence:
    """What `fused_divergence` returns.

    Attributes:
        loss: Sum over tokens divided by the normalizer, nats; carries the gradient.
        per_token_N: Divergence of every token, nats, detached.
    """

    loss: Float[Tensor, ""]
    per_token_N: Float[Tensor, "N"]


class PassSettings(NamedTuple):
    """How `OnePass` goes over the vocabulary: tiles beside the student's, and `project_`'s."""

    scratch: int
    temperature: float
    chunk_tokens: int | None
    precision: MatmulPrecision | None


def fused_divergence(
    student_hidden_ND: Float[Tensor, "N D"],
    student_weight_VD: Float[Tensor, "V D"],
    teacher_hidden_NE: Float[Tensor, "N E"],
    teacher_weight_VE: Float[Tensor, "V E"],
    *,
    divergence: Divergence = "reverse",
    beta: float = 0.5,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    chunk_tokens: int | None = None,
    student_bias: Float[Tensor, "V"] | None = None,
    teacher_bias: Float[Tensor, "V"] | None = None,
    student_cap: float | None = None,
    teacher_cap: float | None = None,
    normalizer: float | None = None,
    matmul_precision: MatmulPrecision | None = "highest",
) -> FusedDivergence:
    """`sum_n D(p_n, q_n) / normalizer` of student p and teacher q over the whole vocabulary.

    `"reverse"`: `KL(p || q)`. `"forward"`: `KL(q || p)`. `"jsd"`: `KL(q || m) / (1 - beta) +
    KL(p || m) / beta` with `m = beta q + (1 - beta) p`, which tends to the forward KL for beta to 0
    and to the reverse KL for beta to 1, and is half the chi-squared distance near p = q whatever
    beta is: beta does not scale the learning rate. Accumulates in fp32 (float64 for float64 inputs)
    also from bf16; beyond the gradients it allocates two tiles [C, V]. The teacher receives no
    gradient. One backward pass only: it consumes the gradients kept by the forward pass.

    Args:
        student_hidden_ND: Student's hidden states before the lm_head, masked tokens dropped.
        student_weight_VD: Student's lm_head; may be tied to the embeddings.
        teacher_hidden_NE: Teacher's hidden states at the same tokens.
        teacher_weight_VE: Teacher's lm_head with the same vocabulary rows.
        divergence: Which divergence.
        beta: Weight of the teacher in the mixture of `"jsd"`, 0 to 1, the limits included.
        temperature: Divides both models' logits. The loss is not multiplied by its square.
        teacher_temperature: Divides the teacher's logits on top of that; below 1 sharpens it.
        chunk_tokens: Tokens in a tile, or None for a default that fits vocabulary and device;
            fewer take less memory and more time.
        student_bias: Bias of the student's lm_head.
        teacher_bias: Bias of the teacher's lm_head.
        student_cap: Bound of the student's soft-capped logits `cap * tanh(z / cap)`, above 0; None
            for logits without one. A capped student takes one more tile.
        teacher_cap: The same of the teacher.
        normalizer: Divides the sum, or None for the number of tokens here. With micro-batches pass
            the token count of the whole batch: the gradients then add up to the full batch's.
        matmul_precision: Of fp32 products. "high" and "medium" may round their operands, as
            `torch.set_float32_matmul_precision` says; None takes what the caller has set there.

    Returns:
        Loss and per-token values; NaN where a model's logits are not finite (`check_finite`).

    Raises:
        ParameterMismatchError: If shapes, vocabulary sizes or devices disagree.
        ConfigError: If a setting is out of range.

    Source: equation (24) of arXiv 2605.11739 with the contexts frozen; the mixture is that of GKD,
    arXiv 2306.13649, and of TRL, whose JSD is this one times `beta (1 - beta)`, except at 0 and 1,
    which name the two KLs there too.
    """
    student = Head(student_hidden_ND, student_weight_VD, student_bias, student_cap)
    teacher = Head(teacher_hidden_NE, teacher_weight_VE, teacher_bias, teacher_cap)
    check_head("student", student)
    check_head("teacher", teacher)
    if student_weight_VD.shape[0] != teacher_weight_VE.shape[0]:
        raise ParameterMismatchError(
            f"the student's lm_head has {student_weight_VD.shape[0]} rows and the teacher's "
            f"{teacher_weight_VE.shape[0]}; expected equal vocabularies. If the tokenizers agree, "
            "keep the first aligned_vocabulary_size(...) rows of both."
        )
    if student_hidden_ND.shape[0] != teacher_hidden_NE.shape[0]:
        raise ParameterMismatchError(
            f"{student_hidden_ND.shape[0]} student tokens and {teacher_hidden_NE.shape[0]} teacher "
            "tokens; expected the same ones. Apply one mask to both."
        )
    check_normalizer(normalizer)
    check_positive("temperature", temperature)
    check_positive("teacher_temperature", teacher_temperature)
    kernel = tile_divergence(divergence, beta)

    def evaluate(student_CV: Tensor, scratch_CV: Sequence[Tensor], chunk: slice) -> Tensor:
        (teacher_CV,) = scratch_CV
        heat = temperature * teacher_temperature
        project_(teacher_CV, chunk, teacher, heat, matmul_precision)
        return kernel(student_CV, teacher_CV)

    scale = 1.0 / (max(1, student_hidden_ND.shape[0]) if normalizer is None else normalizer)
    settings = PassSettings(1, temperature, chunk_tokens, matmul_precision)
    loss, per_token_N = OnePass.apply(  # type: ignore[no-untyped-call]
        *student, evaluate, settings, scale, torch.is_grad_enabled()
    )
    return FusedDivergence(loss=loss, per_token_N=per_token_N)


def check_normalizer(normalizer: float | None) -> None:
    """Refuses what a sum over tokens cannot be divided by."""
    if normalizer is not None and not normalizer > 0.0:
        raise ConfigError(
            f"normalizer is {normalizer}; expected a positive number, such as the token count of "
            "the whole batch."
        )


class DivergenceSettings(TypedDict, total=False):
    """Keywords of `fused_divergence` that shape the value of a token."""

    divergence: Divergence
    beta: float
    temperature: float
    teacher_temperature: float
    chunk_tokens: int | None
    student_bias: Tensor | None
    teacher_bias: Tensor | None
    student_cap: float | None
    teacher_cap: float | None
    matmul_precision: MatmulPrecision | None


@torch.no_grad()
def token_divergences(
    student_hidden_ND: Float[Tensor, "N D"],
    student_weight_VD: Float[Tensor, "V D"],
    teacher_hidden_NE: Float[Tensor, "N E"],
    teacher_weight_VE: Float[Tensor, "V E"],
    **settings: Unpack[DivergenceSettings],
) -> Float[Tensor, "N"]:
    """Divergence of every token in nats, without gradients; raises what `fused_divergence` does.

    Takes its arguments but for the normalizer; [N] values in the accumulation dtype.
    """
    result = fused_divergence(
        student_hidden_ND, student_weight_VD, teacher_hidden_NE, teacher_weight_VE, **settings
    )
    return result.per_token_N


TileEvaluation = Callable[[Tensor, Sequence[Tensor], slice], Tensor]
"""From the student's logits [C, V], scratch tiles and the chunk to the values [C] of its tokens.

It leaves the gradient with respect to the logits in the student's tile.
"""


class OnePass(torch.autograd.Function):
    """Sum over tokens of a function of a head's logits, whose gradient the forward pass computes.

    Returns the sum times `scale`, and the values [N] without gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        cap: float | None,
        evaluate: TileEvaluation,  # holds the teacher, which autograd does not see
        settings: PassSettings,
        scale: float | Tensor,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        """Projects, evaluates and, where wanted, adds up the gradients, one chunk at a time."""
        student = Head(hidden_ND, weight_VD, bias_V, cap)
        needed = ctx.needs_input_grad[:3] if grad_enabled else ()
        gradients = HeadGradients(student, needed, settings.precision) if any(needed) else None
        sloped = cap is not None and gradients is not None
        held, chunks = tiles(1 + settings.scratch + sloped, student, settings.chunk_tokens)
        per_token_N = held[0].new_empty(len(hidden_ND))
        for chunk in chunks:
            student_CV, *scratch_CV = (tile[: chunk.stop - chunk.start] for tile in held)
            slope_CV = scratch_CV.pop() if sloped else None
            project_(student_CV, chunk, student, settings.temperature, settings.precision, slope_CV)
            per_token_N[chunk] = evaluate(student_CV, scratch_CV, chunk)
            if gradients is not None:  # the student's tile holds the gradient of its logits now
                if slope_CV is not None:
                    student_CV.mul_(slope_CV)
                gradients.add_(student_CV, chunk, student)
        ctx.gradients, ctx.scale = gradients, scale / settings.temperature
        ctx.mark_non_differentiable(per_token_N)
        return per_token_N.sum() * scale, per_token_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Hands out the gradients that the forward pass kept, once."""
        if ctx.gradients is None:
            raise ConfigError(
                "backward through a fused divergence a second time: its gradients were handed out "
                "by the first. Compute it again instead of using retain_graph=True."
            )
        gradients, ctx.gradients = ctx.gradients, None
        return (*gradients.release(grad_loss * ctx.scale), None, None, None, None, None)


# Kernels ------------------------------------------------------------------------------------------


def check_divergence(divergence: str, beta: float) -> None:
    """Refuses an unknown divergence, and a beta outside [0, 1] where it is the mixture's."""
    if divergence not in get_args(Divergence):
        raise ConfigError(f"divergence is {divergence!r}; expected one of {get_args(Divergence)}.")
    if divergence == "jsd":
        check_range("beta", beta, 0.0, 1.0)


def tile_divergence(divergence: Divergence, beta: float) -> TileDivergence:
    """The function of (student logits, teacher logits) that the module describes."""
    check_divergence(divergence, beta)
    if divergence == "reverse" or (divergence == "jsd" and beta == 1.0):
        return reverse_kl_
    if divergence == "forward" or beta == 0.0:
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
    """`KL(q || m) / (1 - beta) + KL(p || m) / beta` with `m = beta q + (1 - beta) p`.

    Gradient `p (log p - log m - KL(p || m)) / beta`: the mixture's own derivatives cancel. The log
    ratio of m and the nearer of p and q comes from `log1p`, so that dividing by a small weight
    divides no rounding error of a logarithm.
    """
    torch.log_softmax(student_BV, -1, out=student_BV)
    torch.log_softmax(teacher_BV, -1, out=teacher_BV)
    ratio = teacher_BV - student_BV  # log q - log p
    if beta <= 0.5:
        over_student = _log_mixed(ratio, beta)
        over_teacher = over_student - ratio
    else:
        over_teacher = _log_mixed(-ratio, 1.0 - beta)
        over_student = over_teacher + ratio
    teacher_kl = teacher_BV.exp_().mul_(over_teacher).sum(-1).neg_()
    probability = torch.exp(student_BV, out=student_BV)
    student_kl = torch.mul(probability, over_student, out=teacher_BV).sum(-1).neg_()
    probability.mul_(over_student.add_(student_kl[:, None])).mul_(-1.0 / beta)
    return teacher_kl.div_(1.0 - beta).add_(student_kl, alpha=1.0 / beta)


def _log_mixed(ratio: Tensor, weight: float) -> Tensor:
    """`log(1 - weight + weight exp(ratio))`, exact for small weights, finite for large ratios."""
    return torch.log1p(weight * ratio.clamp(max=_LARGEST).expm1()) + (ratio - _LARGEST).relu_()


def _in_row_blocks(block_divergence: TileDivergence) -> TileDivergence:
    """Apply a function that needs temporaries to a few rows at a time."""

    def divergence(student_CV: Tensor, teacher_CV: Tensor) -> Tensor:
        elements = _BLOCK_ELEMENTS.get(student_CV.device.type, _DEFAULT_BLOCK_ELEMENTS)
        rows = max(1, elements // max(1, student_CV.shape[1]))
        pairs = zip(torch.split(student_CV, rows), torch.split(teacher_CV, rows), strict=True)
        return torch.cat([block_divergence(student, teacher) for student, teacher in pairs])

    return divergence
