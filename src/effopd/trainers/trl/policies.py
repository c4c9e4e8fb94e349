"""A trainer's models as the objectives see them: PEFT's wrapper off, FSDP2's root gathered."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import is_peft_model
from torch.distributed.fsdp import FSDPModule

from effopd.models.policy import Policy


def policy_of(model: Any, tokenizer: Any) -> Policy:
    """The policy of a model.

    Args:
        model: Hugging Face or PEFT model, unwrapped; sharded by FSDP2 or not.
        tokenizer: Its tokenizer.

    Returns:
        The policy; raises a ParameterMismatchError for heads it cannot apply (soft-capped logits).
    """
    plain = model.base_model.model if is_peft_model(model) else model
    with gathered(plain):
        return Policy(plain, tokenizer)


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Parameters that belong to the root or the head of an FSDP2 model are whole inside.

    The layers below gather theirs for their own forward pass.
    """
    parts = [model, model.get_output_embeddings()]
    sharded = [part for part in parts if isinstance(part, FSDPModule)]
    for part in sharded:
        part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.reshard()
