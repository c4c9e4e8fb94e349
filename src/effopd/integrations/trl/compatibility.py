"""TRL's internals: what was tested, what is refused, and a trainer's models as policies."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.utils.quantization_config import QuantizationMethod
from trl import DistillationTrainer, GRPOTrainer

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.policy import Policy
from effopd.search.direction import AlphaPLS
from effopd.search.settings import Search

TESTED = {"trl": "1.16", "transformers": "5.24", "accelerate": "1.15"}
"""Package -> the minor version whose internals this plug-in was written and tested against."""


def check_versions() -> None:
    """Refuses other versions: the plug-in calls TRL's internals, which change without notice."""
    found = {name: version(name) for name in TESTED}
    other = {name: v for name, v in found.items() if minor(v) != TESTED[name]}
    if other:
        there = ", ".join(f"{name} {v}" for name, v in other.items())
        wanted = " ".join(f"'{name}=={TESTED[name]}.*'" for name in other)
        raise ConfigError(
            f"the search in TRL was not tested with {there}, and calls what may have changed "
            f"there: pip install {wanted}, or pass allow_untested_versions=True and compare a run "
            "that rejects everything with one without the callback"
        )


def minor(full: str) -> str:
    """`"1.16"` of `"1.16.2"`."""
    return ".".join(full.split(".")[:2])


def check_trainer(trainer: Any, search: Search, *, own_validator: bool) -> None:
    """Refuses what the search cannot do exactly."""
    is_known, name = isinstance(trainer, DistillationTrainer | GRPOTrainer), type(trainer).__name__
    reasons = {
        "direction 'alpha_pls' asks for the progress of each batch, which TRL does not tell": (
            isinstance(search.direction, AlphaPLS)
        ),
        f"{name} is neither a DistillationTrainer nor a GRPOTrainer: others generate apart from "
        "training (asynchronous trainers) or not at all": not is_known,
    }
    if is_known:
        reasons |= _reasons(trainer, own_validator)
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ConfigError("the search cannot run here:\n" + "\n".join(f"- {r}" for r in found))


def _reasons(trainer: Any, own_validator: bool) -> dict[str, Any]:
    """What of a trainer cannot be searched exactly -> whether it is so."""
    model, args, grpo = trainer.model, trainer.args, isinstance(trainer, GRPOTrainer)
    trained = [parameter.dtype for parameter in model.parameters() if parameter.requires_grad]
    quantized = getattr(model, "quantization_method", None)
    adapters = list(model.peft_config.values()) if is_peft_model(model) else []
    kinds = [str(getattr(each.peft_type, "value", each.peft_type)) for each in adapters]
    return {
        "the teacher is not in this process: pass validate= with a score of your own": (
            not grpo and trainer.teacher_model is None and not own_validator
        ),
        "fp16 skips updates at overflow and still counts them: use bf16=True": args.fp16,
        "auto_find_batch_size starts over in the middle: choose the batch size": (
            args.auto_find_batch_size
        ),
        "the weights that train are in float16, where AdamW's eps is 0 and one update makes them "
        "NaN: load them in bfloat16 or float32 (model_init_kwargs)": torch.float16 in trained,
        f"the model is quantized ({quantized}): load it without": isinstance(
            quantized, QuantizationMethod | str
        ),
        "DeepSpeed ZeRO keeps fp32 masters of its own, which undo every move at the next update: "
        "use FSDP2, DDP or one process": trainer.is_deepspeed_enabled,
        "FSDP1 flattens parameters, so that names and shapes are gone: use fsdp_version 2": (
            trainer._dist.fsdp_version == 1
        ),
        "images in prompts are not scored: pass a tokenizer instead of a processor": (
            trainer._is_vlm
        ),
        "tools of a GRPOTrainer are not called while candidates are scored, since its rewards see "
        "their calls: train without tools=, or distil": grpo and trainer.tools,
        "rollout_func and environments have state of their own: train without": grpo
        and (trainer.rollout_func is not None or trainer.environment_factories is not None),
        "continuous batching casts the model in place: switch it off": grpo
        and trainer.use_transformers_continuous_batching,
        f"PEFT {', '.join(kinds)} is not extrapolated: use LoRA, or train the weights": any(
            kind != "LORA" for kind in kinds
        ),
        "of LoRA, only its two factors are extrapolated: no DoRA, no modules_to_save": any(
            kind == "LORA"
            and (each.use_dora or each.modules_to_save or each.trainable_token_indices)
            for kind, each in zip(kinds, adapters, strict=True)
        ),
    }


def check_sharded(trainer: Any, parameters: Mapping[str, Tensor]) -> None:
    """Refuses FSDP that was asked for and did not happen."""
    asked = trainer.is_fsdp_enabled or trainer.is_distributed_loading_by_transformers
    if asked and not any(isinstance(p, DTensor) for p in parameters.values()):
        raise ConfigError(
            "sharding was asked for, but no parameter is a DTensor: every process trains the whole "
            "model. accelerate does this silently with FSDP2 on a CPU; run on GPUs, or without FSDP"
        )


# Models -------------------------------------------------------------------------------------------


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
