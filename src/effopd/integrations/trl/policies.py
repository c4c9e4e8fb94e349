"""A trainer's models as the objectives see them: PEFT's wrapper off, FSDP2's root gathered."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import is_peft_model
from torch.distributed.fsdp import FSDPModule

from effopd.errors import ParameterMismatchError
from effopd.models.policy import Policy


def policy_of(trainer: Any, model: Any) -> Policy:
    """The policy of a trainer's student or teacher, which scores as the trainer's loss is computed.

    With bf16=True, accelerate puts the whole model's forward pass under autocast, and that is how
    the student writes. The losses of distillation call the layers below it, past accelerate (TRL
    1.16): they compare student and teacher in the precision of the weights, and so does the score.
    The check of the head asks for the whole model's logits: all of it is under autocast.
    """
    unwrapped = trainer.accelerator.unwrap_model(model)
    plain = unwrapped.base_model.model if is_peft_model(unwrapped) else unwrapped
    with gathered(plain), trainer.accelerator.autocast():
        try:
            return Policy(plain, trainer._tokenizer)
        except ParameterMismatchError as error:
            raise ParameterMismatchError(
                f"{error}. In TRL, a DistillationTrainer trains such models, and the search takes "
                "a score of your own (validate=)"
            ) from None


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
