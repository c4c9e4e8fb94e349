"""Small checkpoints on disk, as transformers and PEFT write them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from effopd.models.directory import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, SINGLE

transformers_logging.disable_progress_bar()

_SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 20, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 12, "decoder_sparse_step": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SMALL,
    "qwen2": _SMALL,
    "qwen3": _SMALL,
    "mistral": _SMALL,
    "gemma2": _SMALL,
    "phi3": _SMALL,
    "qwen2_moe": _SMALL | _EXPERTS,
    "qwen3_moe": _SMALL | _EXPERTS,
    "mixtral": _SMALL | {"num_local_experts": 3},
    "gpt_oss": _SMALL | {"num_local_experts": 3},
    "gpt_neox": _SMALL,
    "gpt2": {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 8, "vocab_size": 20},
}


def family_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """An untrained two-layer model whose norms and biases are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **(FAMILIES[family] | changes))
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def save_family(
    directory: Path, family: str = "qwen3", *, shard_size: str = "1GB", **changes: Any
) -> Path:
    """Writes an untrained model as transformers does.

    Args:
        directory: To create.
        family: One of `FAMILIES`.
        shard_size: Such as "8KB", for several files.
        changes: `seed`, `dtype` and settings of the config.

    Returns:
        `directory`.
    """
    dtype = changes.pop("dtype", torch.float32)
    family_model(family, **changes).to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    return directory


def save_tensors(
    directory: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> Path:
    """Writes tensors of any names as a model of one file; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), directory / SINGLE, {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config or {"model_type": "qwen3"}))
    return directory


def save_shards(directory: Path, *shards: Mapping[str, Tensor]) -> Path:
    """Writes `a.safetensors`, `b.safetensors`, ... and their index; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    shard_of = {}
    for letter, tensors in zip("abcdef", shards, strict=False):
        save_file(dict(tensors), directory / f"{letter}.safetensors", {"format": "pt"})
        shard_of |= dict.fromkeys(tensors, f"{letter}.safetensors")
    write_index(directory, shard_of)
    return directory


def write_index(directory: Path, shard_of: Mapping[str, str]) -> None:
    """Writes the index of a sharded model."""
    content = {"metadata": {}, "weight_map": dict(shard_of)}
    (directory / INDEX).write_text(json.dumps(content))


def save_adapter(directory: Path, tensors: Mapping[str, Tensor], **settings: Any) -> Path:
    """Writes a LoRA adapter in PEFT's format.

    Args:
        directory: To create.
        tensors: By PEFT's names after `base_model.model.`, such as `lm_head.lora_A.weight`.
        settings: Merged over those of rank 2 and alpha 8 in adapter_config.json.

    Returns:
        `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    plain = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 2,
        "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "use_rslora": False,
        "use_dora": False, "fan_in_fan_out": False, "init_lora_weights": True, "rank_pattern": {},
        "alpha_pattern": {}, "modules_to_save": None, "layer_replication": None,
        "target_modules": ["q_proj"], "target_parameters": None, "loftq_config": {},
    }  # fmt: skip
    (directory / ADAPTER_CONFIG).write_text(json.dumps(plain | settings))
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, directory / ADAPTER_WEIGHTS, {"format": "pt"})
    return directory
