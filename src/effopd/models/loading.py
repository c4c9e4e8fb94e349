"""Loading Hugging Face causal language models and tokenizers, safely."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from effopd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, in which precision.

    Attributes:
        path: Directory or Hugging Face repository id.
        revision: Commit, tag or branch of a repository.
        dtype: Precision of the weights.
        attention: Attention implementation passed to transformers.
        gradient_checkpointing: Recompute activations in the backward pass.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False


def load_model(settings: ModelSettings, device: str = "cpu") -> Any:
    """The causal language model in evaluation mode, from safetensors only, no remote code.

    Raises:
        ConfigError: A local directory without config.json or safetensors weights.
    """
    _check_directory(settings.path)
    model = AutoModelForCausalLM.from_pretrained(
        settings.path,
        revision=settings.revision or "main",
        dtype=getattr(torch, settings.dtype),
        attn_implementation=settings.attention,
        use_safetensors=True,
        trust_remote_code=False,
    )
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device).eval()


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer, with a padding token.

    Raises:
        ConfigError: It has neither a padding nor an end-of-sequence token.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        settings.path, revision=settings.revision or "main", trust_remote_code=False
    )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {settings.path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizers_agree(first: Any, second: Any) -> bool:
    """Whether both map the same strings to the same ids."""
    return bool(first.get_vocab() == second.get_vocab())


def _check_directory(path: str) -> None:
    directory = Path(path)
    if not directory.is_dir():
        if path.startswith((".", "/", "~")):
            raise ConfigError(f"no model directory at {path}")
        return
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{path} is no Hugging Face model directory: config.json is missing")
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(
            f"{path} holds no *.safetensors weights (pickled weights are refused): convert them "
            "with model.save_pretrained(..., safe_serialization=True)"
        )
