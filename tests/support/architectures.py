"""Random tiny models of many architectures, saved as a user's model directory would be."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from effopd.doctor.smoke import ROWS, byte_tokenizer

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {},
    "gemma": {"head_dim": 8},
    "mistral": {"sliding_window": None, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8,
    },
}  # fmt: skip
"""`model_type` -> what it needs besides the common sizes."""


VISION: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4,
            },
        },
        "vision_config": {
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 16, "fullatt_block_indexes": [0],
        },
    },
    "qwen3_vl": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4,
            },
        },
        "vision_config": {
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 16, "deepstack_visual_indexes": [0],
        },
    },
    "mistral3": {
        "text_config": {"model_type": "mistral"},
        "vision_config": {
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
        },
    },
    "gemma3": {
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    },
}  # fmt: skip
"""`model_type` with a tower for images -> what it needs besides the common sizes."""


def save_vision(directory: Path, kind: str, *, seed: int = 0, rows: int = ROWS) -> Path:
    """Saves an untrained model of `VISION` with the tokenizer; returns `directory`."""
    common = {
        "vocab_size": rows, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.25,
        "head_dim": 8,
    }  # fmt: skip
    own = VISION[kind]
    text = {**common, **own.get("text_config", {})}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=own["vision_config"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def make(kind: str, *, seed: int = 0, rows: int = ROWS, **sizes: Any) -> Any:
    """An untrained model of 16 numbers' width and two layers, or as `sizes` says."""
    common = {
        "vocab_size": rows, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.25,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**common, **ARCHITECTURES.get(kind, {}), **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def save(directory: Path, kind: str, **options: Any) -> Path:
    """Saves `make(kind, ...)` with the tokenizer; returns `directory`."""
    make(kind, **options).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def write_problems(path: Path, count: int = 12) -> Path:
    """Sums, one a line."""
    rows = [{"question": f"{i} + {i} =", "answer": str(2 * i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
