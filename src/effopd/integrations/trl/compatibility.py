"""What the plug-in was tested with, and what it refuses, with the reason."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.utils.quantization_config import QuantizationMethod
from trl import DistillationTrainer, GRPOTrainer

from effopd.errors import ConfigError
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
    reasons = [*_search(search), *_kind(trainer, own_validator)]
    if isinstance(trainer, DistillationTrainer | GRPOTrainer):
        reasons += [*_precision(trainer), *_distribution(trainer), *_rollouts(trainer)]
        reasons += _adapters(trainer.model)
    if reasons:
        raise ConfigError("the search cannot run here:\n" + "\n".join(f"- {r}" for r in reasons))


def check_sharded(trainer: Any, parameters: Mapping[str, Tensor]) -> None:
    """Refuses FSDP that was asked for and did not happen."""
    asked = trainer.is_fsdp_enabled or trainer.is_distributed_loading_by_transformers
    if asked and not any(isinstance(p, DTensor) for p in parameters.values()):
        raise ConfigError(
            "sharding was asked for, but no parameter is a DTensor: every process trains the whole "
            "model. accelerate does this silently with FSDP2 on a CPU; run on GPUs, or without FSDP"
        )


def _search(search: Search) -> Iterator[str]:
    if isinstance(search.direction, AlphaPLS):
        yield "direction 'alpha_pls' asks for the progress of each batch, which TRL does not tell"


def _kind(trainer: Any, own_validator: bool) -> Iterator[str]:
    if not isinstance(trainer, DistillationTrainer | GRPOTrainer):
        yield (
            f"{type(trainer).__name__} is neither a DistillationTrainer nor a GRPOTrainer: others "
            "generate apart from training (asynchronous trainers) or not at all"
        )
    elif not own_validator and _lacks_teacher(trainer):
        yield "the teacher is not in this process: pass validate= with a score of your own"


def _lacks_teacher(trainer: Any) -> bool:
    return isinstance(trainer, DistillationTrainer) and trainer.teacher_model is None


def _precision(trainer: Any) -> Iterator[str]:
    if trainer.args.fp16:
        yield "fp16 skips updates at overflow and still counts them: use bf16=True"
    if trainer.args.auto_find_batch_size:
        yield "auto_find_batch_size starts over in the middle: choose the batch size"
    trained = (p for p in trainer.model.parameters() if p.requires_grad)
    if any(parameter.dtype == torch.float16 for parameter in trained):
        yield (
            "the weights that train are in float16, where AdamW's eps is 0 and one update makes "
            "them NaN: load them in bfloat16 or float32 (model_init_kwargs)"
        )
    quantized = getattr(trainer.model, "quantization_method", None)
    if isinstance(quantized, QuantizationMethod | str):
        yield f"the model is quantized ({quantized}): load it without"


def _distribution(trainer: Any) -> Iterator[str]:
    if trainer.is_deepspeed_enabled:
        yield (
            "DeepSpeed ZeRO keeps fp32 masters of its own, which undo every move at the next "
            "update: use FSDP2, DDP or one process"
        )
    if trainer._dist.fsdp_version == 1:
        yield "FSDP1 flattens parameters, so that names and shapes are gone: use fsdp_version 2"


def _rollouts(trainer: Any) -> Iterator[str]:
    if trainer._is_vlm:
        yield "images in prompts are not scored: pass a tokenizer instead of a processor"
    if trainer.tools:
        yield "tools are not called while candidates are scored: train without tools="
    if isinstance(trainer, GRPOTrainer):
        if trainer.rollout_func is not None or trainer.environment_factories is not None:
            yield "rollout_func and environments have state of their own: train without"
        if trainer.use_transformers_continuous_batching:
            yield "continuous batching casts the model in place: switch it off"


def _adapters(model: Any) -> Iterator[str]:
    if not is_peft_model(model):
        return
    for settings in model.peft_config.values():
        kind = getattr(settings.peft_type, "value", settings.peft_type)
        if kind != "LORA":
            yield f"PEFT {kind} is not extrapolated: use LoRA, or train the weights"
        elif settings.use_dora or settings.modules_to_save or settings.trainable_token_indices:
            yield "of LoRA, only its two factors are extrapolated: no DoRA, no modules_to_save"
