"""Loading Hugging Face causal language models and tokenizers, safely."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.weights import check_weight_files

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


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

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path must be a model directory or a Hugging Face repository id")


def load_model(settings: ModelSettings, device: str = "cpu") -> Any:
    """The causal language model in evaluation mode, from safetensors only, no remote code.

    Raises:
        ConfigError: No such device; a local directory without config.json or safetensors weights;
            or transformers cannot load it.
        ParameterMismatchError: Tensors of the model are missing in the weights, or differ in shape.
    """
    _check_device(device)
    path = _located(settings.path)
    if Path(path).is_dir():
        check_weight_files(Path(path))
    with _explained(path):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            revision=settings.revision or "main",
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attention,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
        )
    _check_complete(path, report)
    if settings.gradient_checkpointing:
        with warnings.catch_warnings():  # renamed in transformers 5.x; this name works in all of it
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(device).eval()


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer, with a padding token.

    Raises:
        ConfigError: There is none, or it has no end-of-sequence token.
    """
    path = _located(settings.path)
    present = [name for name in _TOKENIZER_FILES if (Path(path) / name).is_file()]
    if Path(path).is_dir() and not present:  # transformers would make up an empty one
        raise ConfigError(
            f"{path} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}): write it there "
            "with tokenizer.save_pretrained(...)"
        )
    with _explained(path):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=settings.revision or "main", trust_remote_code=False
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizers_agree(first: Any, second: Any) -> bool:
    """Whether both map the same strings to the same ids."""
    return bool(first.get_vocab() == second.get_vocab())


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """What transformers cannot load is a wrong setting, not a crash."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(f"{path} needs code of its own, which effopd never runs") from error
        raise ConfigError(f"cannot load {path}: {error}") from error


def _check_complete(path: str, report: Mapping[str, Any]) -> None:
    """Transformers gives tensors that are not in the file random values and goes on."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise ParameterMismatchError(
            f"{len(missing)} tensors of the model are not in {path}, for example {missing[0]}: "
            "complete the download, or export the whole model"
        )
    if report["mismatched_keys"]:
        name, found, expected = sorted(report["mismatched_keys"])[0]
        raise ParameterMismatchError(
            f"{name} in {path} has shape {tuple(found)}, the config asks for {tuple(expected)}: "
            "config.json and weights belong to different models"
        )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {error}") from None


def _located(path: str) -> str:
    """The path of a model directory, or the repository id as it is."""
    directory = Path(path).expanduser()
    if not directory.is_dir():
        if path.startswith((".", "/", "~")):
            raise ConfigError(f"no model directory at {path}")
        return path
    if (directory / "adapter_config.json").is_file():
        raise ConfigError(f"{path} is an adapter: merge it into its base model and save that")
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{path} is no Hugging Face model directory: config.json is missing")
    return str(directory)
