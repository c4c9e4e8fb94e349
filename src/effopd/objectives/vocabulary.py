"""One vocabulary for two models whose lm_heads are padded differently."""

from jaxtyping import Float
from torch import Tensor

from effopd.errors import ParameterMismatchError


def aligned_vocabulary_size(student_rows: int, teacher_rows: int, tokenizer_size: int) -> int:
    """Number of lm_head rows on which student and teacher are compared.

    Rows past the tokenizer are padding that no token uses, so models that share a tokenizer may
    differ in them (Qwen: 151936 against 152064). The smaller count is kept: the smaller model's
    distribution stays untouched, the larger one is renormalised without its extra padding. Rows
    are only ever dropped: padding the smaller model would give it probabilities it never had.

    Args:
        student_rows: Rows of the student's lm_head.
        teacher_rows: Rows of the teacher's lm_head.
        tokenizer_size: Number of ids the shared tokenizer uses, added tokens included.

    Returns:
        `min(student_rows, teacher_rows)`.

    Raises:
        ParameterMismatchError: A model lacks rows for real tokens.
    """
    rows = min(student_rows, teacher_rows)
    if rows < tokenizer_size:
        raise ParameterMismatchError(
            f"the lm_heads have {student_rows} (student) and {teacher_rows} (teacher) rows, but "
            f"the tokenizer uses {tokenizer_size} ids; only padding rows may be trimmed. Resize "
            "the smaller model's embeddings, or drop the added tokens it does not know."
        )
    return rows


def trim_rows(weight_VD: Float[Tensor, "V ..."], size: int) -> Float[Tensor, "rows ..."]:
    """The first `size` rows, a view; works on an lm_head's weight and on its bias.

    Args:
        weight_VD: Weight [V, D] or bias [V].
        size: Rows to keep, from `aligned_vocabulary_size`.

    Returns:
        The same tensor if nothing is to be dropped, else a view; gradients reach the rows kept.

    Raises:
        ParameterMismatchError: If there are fewer rows than asked for.
    """
    rows = weight_VD.shape[0]
    if not 0 < size <= rows:
        raise ParameterMismatchError(
            f"cannot keep {size} of {rows} vocabulary rows; expected 1 to {rows}. Ask "
            "aligned_vocabulary_size for a count that both models have."
        )
    return weight_VD if size == rows else weight_VD[:size]
