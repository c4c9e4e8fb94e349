"""Heads: one vocabulary for two models; projection and its gradients, in the caller's tiles.

Axes: N tokens, C tokens of one chunk, D hidden width, V vocabulary rows. Products accumulate in
fp32 (float64 for float64 inputs) whatever the inputs' dtype.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.objectives.token_checks import check_positive
from effopd.precision import MatmulPrecision, float32_products

_TILE_ELEMENTS = 2**23  # 32 MiB of fp32
_CAST_ROWS = 4096  # rows of a half-precision head that are held in fp32 at a time


class Head(NamedTuple):
    """Hidden states and the lm_head that turns them into logits.

    Logits are `z = hidden @ weight.T + bias`; with a soft cap `cap * tanh(z / cap)`, as Gemma 2's.
    """

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None = None
    cap: float | None = None


def aligned_vocabulary_size(student_rows: int, teacher_rows: int, tokenizer_size: int) -> int:
    """Number of lm_head rows on which student and teacher are compared: the smaller count.

    Rows past the tokenizer are padding that no token uses, so models that share a tokenizer may
    differ in them (Qwen: 151936 against 152064). The smaller model's distribution stays untouched,
    the larger one is renormalised without its extra padding. Rows are only ever dropped: padding
    the smaller model would give it probabilities it never had.

    Raises:
        ParameterMismatchError: A model lacks rows for tokens that the tokenizer uses.
    """
    rows = min(student_rows, teacher_rows)
    if rows < tokenizer_size:
        raise ParameterMismatchError(
            f"the lm_heads have {student_rows} (student) and {teacher_rows} (teacher) rows, but "
            f"the tokenizer uses {tokenizer_size} ids; only padding rows may be trimmed. Resize "
            "the smaller model's embeddings, or drop the added tokens it does not know."
        )
    return rows


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is, else float32."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def tiles(count: int, head: Head, chunk_tokens: int | None) -> tuple[list[Tensor], list[slice]]:
    """Empty tiles [C, V] of the accumulation dtype, and slices that cover all tokens in order.

    The default tile holds 32 MiB of fp32, but never fewer than 128 tokens (1,024 on a GPU): each
    chunk reads and writes the whole gradient of the lm_head once, which a short one cannot repay.
    """
    tokens, vocabulary = head.hidden_ND.shape[0], head.weight_VD.shape[0]
    device = head.hidden_ND.device
    if chunk_tokens is None:
        least = 128 if device.type == "cpu" else 1024
        chunk_tokens = max(least, min(1024, _TILE_ELEMENTS // max(1, vocabulary)))
    if chunk_tokens < 1:
        raise ConfigError(
            f"chunk_tokens is {chunk_tokens}; expected at least 1, or None for the default."
        )
    starts = range(0, tokens, chunk_tokens)
    slices = [slice(start, min(start + chunk_tokens, tokens)) for start in starts]
    dtype = accumulation_dtype(head.hidden_ND, head.weight_VD)
    shape = (count, min(chunk_tokens, tokens), vocabulary)
    return list(torch.empty(shape, dtype=dtype, device=device).unbind()), slices


def check_head(name: str, head: Head) -> None:
    """Refuses hidden states and an lm_head that do not fit together; `name` says whose."""
    hidden, weight, bias, cap = head
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ParameterMismatchError(
            f"{name}: hidden states of shape {tuple(hidden.shape)} do not fit an lm_head of shape "
            f"{tuple(weight.shape)}; expected [tokens, width] and [vocabulary, width]. Flatten the "
            "batch and drop masked tokens first."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ParameterMismatchError(
            f"{name}: bias of shape {tuple(bias.shape)} for {weight.shape[0]} vocabulary rows; "
            "expected one value per row. Trim both alike."
        )
    if hidden.device != weight.device:
        raise ParameterMismatchError(
            f"{name}: hidden states on {hidden.device} and lm_head on {weight.device}; move one."
        )
    if cap is not None:
        check_positive(f"{name}: the soft cap", cap)


def project_(
    logits_CV: Float[Tensor, "C V"],
    chunk: slice,
    head: Head,
    temperature: float,
    precision: MatmulPrecision | None,
    slope_CV: Float[Tensor, "C V"] | None = None,
) -> None:
    """Overwrites a tile with a head's logits, divided by the temperature, of one chunk.

    The tile is of the accumulation dtype; `precision` is that of fp32 products, None the caller's.
    `slope_CV` receives the derivative of a soft cap, by which gradients of the logits have to be
    multiplied.
    """
    operand = _operand_dtype(head.hidden_ND, logits_CV.dtype)
    hidden_CD = head.hidden_ND[chunk].to(operand)
    for rows, weight in _weight_blocks(head.weight_VD, operand):
        _multiply_(logits_CV[:, rows], hidden_CD, weight.t(), False, precision)
    if head.bias_V is not None:
        logits_CV.add_(head.bias_V)
    if head.cap is not None:
        logits_CV.div_(head.cap).tanh_()
        if slope_CV is not None:
            torch.mul(logits_CV, logits_CV, out=slope_CV).neg_().add_(1.0)
        logits_CV.mul_(head.cap / temperature)
    elif temperature != 1.0:
        logits_CV.mul_(1.0 / temperature)


class HeadGradients:
    """Gradients of a head, summed over chunks in buffers of the accumulation dtype.

    The lm_head's buffer is accumulated, scaled and handed out in place, so only one ever exists.
    """

    def __init__(
        self, head: Head, wanted: Sequence[bool], precision: MatmulPrecision | None
    ) -> None:
        dtype = accumulation_dtype(head.hidden_ND, head.weight_VD)
        bias = head.weight_VD[:, 0] if head.bias_V is None else head.bias_V
        self._parameter_dtypes = (head.hidden_ND.dtype, head.weight_VD.dtype, bias.dtype)
        self._precision: MatmulPrecision | None = precision
        # The first chunk's product becomes the lm_head's buffer: zeros would be one more pass.
        weight = head.weight_VD[:0] if len(head.hidden_ND) else head.weight_VD
        self.hidden_ND, self.weight_VD, self.bias_V = (
            tensor.new_zeros(tensor.shape, dtype=dtype) if want else None
            for want, tensor in zip(wanted, (head.hidden_ND, weight, bias), strict=True)
        )

    def add_(self, gradient_CV: Float[Tensor, "C V"], chunk: slice, head: Head) -> None:
        """Adds what the gradient of one chunk's logits contributes."""
        operand = _operand_dtype(head.hidden_ND, gradient_CV.dtype)
        tile_CV = gradient_CV.to(operand)
        if self.hidden_ND is not None:
            for rows, weight in _weight_blocks(head.weight_VD, operand):
                _multiply_(self.hidden_ND[chunk], tile_CV[:, rows], weight, True, self._precision)
        if self.weight_VD is not None:
            hidden_CD = head.hidden_ND[chunk].to(operand)
            is_first = len(self.weight_VD) == 0
            if is_first:
                self.weight_VD = self.weight_VD.new_empty(head.weight_VD.shape)
            _multiply_(self.weight_VD, tile_CV.t(), hidden_CD, not is_first, self._precision)
        if self.bias_V is not None:
            self.bias_V.add_(gradient_CV.sum(0))

    def release(self, scale: Tensor | float) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Scales the buffers in place and hands them out, each in the dtype of its parameter.

        Gradients of hidden states, weight and bias; None where not wanted.
        """
        buffers = (self.hidden_ND, self.weight_VD, self.bias_V)
        self.hidden_ND = self.weight_VD = self.bias_V = None
        hidden, weight, bias = (
            None if buffer is None else buffer.mul_(scale).to(dtype)
            for buffer, dtype in zip(buffers, self._parameter_dtypes, strict=True)
        )
        return hidden, weight, bias


def _operand_dtype(hidden_ND: Tensor, accumulation: torch.dtype) -> torch.dtype:
    # GPUs multiply half-precision operands into fp32 results; CPU products have one dtype.
    half = hidden_ND.dtype in {torch.bfloat16, torch.float16}
    return hidden_ND.dtype if half and hidden_ND.device.type == "cuda" else accumulation


def _weight_blocks(weight_VD: Tensor, operand: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a head in the dtype of its operands, cast a block at a time into one buffer."""
    rows, width = weight_VD.shape
    if weight_VD.dtype == operand:
        yield slice(0, rows), weight_VD
        return
    buffer = weight_VD.new_empty((min(_CAST_ROWS, rows), width), dtype=operand)
    for start in range(0, rows, _CAST_ROWS):
        block = slice(start, min(start + _CAST_ROWS, rows))
        yield block, buffer[: block.stop - start].copy_(weight_VD[block])


def _multiply_(
    out: Tensor, left: Tensor, right: Tensor, accumulate: bool, precision: MatmulPrecision | None
) -> None:
    with float32_products(precision):
        if left.dtype != out.dtype and accumulate:
            torch.addmm(out, left, right, out.dtype, out=out)
        elif left.dtype != out.dtype:
            torch.mm(left, right, out.dtype, out=out)
        elif accumulate:
            out.addmm_(left, right)
        else:
            torch.mm(left, right, out=out)
