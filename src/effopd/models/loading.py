"""Loading Hugging Face causal language models and tokenizers, safely."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from effopd.errors import ConfigError, EffopdError, NonFiniteError, ParameterMismatchError
from effopd.models.chat_templates import check_chat_template
from effopd.models.directory import built_from, check_config, check_model, check_texts
from effopd.models.hub import fetch
from effopd.models.lora import LoraStudent, add_adapters_
from effopd.models.weights import is_finite, read_config, read_object

_GENERATION_CONFIG = "generation_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_OF_TRANSFORMERS = (
    OSError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError,
    RuntimeError, ImportError, SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What it raises on settings and files that are not what it expects."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, in which precision.

    Attributes:
        path: Directory or Hugging Face repository id.
        revision: Commit, tag or branch of a repository.
        dtype: Precision of the weights.
        attention: Attention implementation passed to transformers.
        gradient_checkpointing: Recompute activations in the backward pass.
        lora: Adapters to train in place of the weights; None trains the weights.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    lora: LoraStudent | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path must be a model directory or a Hugging Face repository id")


def load_model(settings: ModelSettings, device: str = "cpu") -> Any:
    """The causal language model in evaluation mode, from safetensors only, no remote code.

    Everything in its directory is checked before transformers opens it (docs/safety.md), and every
    number of the weights afterwards, which reads them once more.
    """
    _check_device(device)
    directory = _located(settings, weights=True)
    contents = check_model(directory)
    if (directory / _GENERATION_CONFIG).exists():
        read_object(directory / _GENERATION_CONFIG)  # transformers passes over one that is damaged
    with _Explained(settings.path), built_from(directory, contents):
        model, report = AutoModelForCausalLM.from_pretrained(
            str(directory),
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attention,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
        )
    _check_complete(settings.path, report)
    _check_tied(settings.path, model)
    if settings.gradient_checkpointing:
        with warnings.catch_warnings():  # renamed in transformers 5.x; this name works in all of it
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.lora is not None:
        add_adapters_(model, settings.lora)
    model = model.to(device).eval()
    _check_finite(settings.path, model)
    return model


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer, with a padding token.

    Its files are checked first, and its chat template is tried out with limits
    (`check_chat_template`).

    Raises:
        ConfigError: There is none, or it has no end-of-sequence token.
    """
    path, directory = settings.path, _located(settings, weights=False)
    check_texts(directory)
    check_config(directory / "config.json", read_config(directory))
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(  # transformers would make up an empty one
            f"{path} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}): write it there "
            "with tokenizer.save_pretrained(...)"
        )
    with _Explained(path):
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(tokenizer.chat_template, str):  # a byte order mark would be in every prompt
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")
    check_chat_template(path, tokenizer)
    return tokenizer


def tokenizers_agree(first: Any, second: Any) -> bool:
    """Whether both map the same strings to the same ids."""
    return bool(first.get_vocab() == second.get_vocab())


class _Explained:
    """What transformers cannot load is a wrong setting, not a crash.

    Args:
        path: The model as the user named it.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, EffopdError):
            return
        # Damaged files are a bare Exception of tokenizers, and sizes that do not fit anything.
        if kind is Exception or isinstance(error, _OF_TRANSFORMERS):
            if "trust_remote_code" in str(error):
                raise ConfigError(
                    f"{self._path} needs code of its own, which effopd never runs"
                ) from error
            raise ConfigError(
                f"cannot load {self._path}: {error or type(error).__name__}"
            ) from error


def _check_complete(path: str, report: Mapping[str, Any]) -> None:
    """Transformers gives tensors that are not in the file random values, and leaves others out."""
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
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        raise ParameterMismatchError(
            f"{len(unexpected)} tensors in {path} have no place in the model, for example "
            f"{unexpected[0]}: config.json and weights belong to different models"
        )


def _check_tied(path: str, model: Any) -> None:
    """Transformers unties a head that is stored with other values than the embedding."""
    ties = model.config.get_text_config().to_dict().get("tie_word_embeddings", False)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if ties and head is not None and head.weight is not embedding.weight:
        raise ParameterMismatchError(
            f"config.json of {path} ties the head to the embedding, but the two are stored with "
            "different values: set tie_word_embeddings to what the weights are"
        )


def _check_finite(path: str, model: Any) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.itemsize > 1 and not is_finite(tensor):
            raise NonFiniteError(
                f"{name} in {path} holds a NaN or an infinity: download or export the model again"
            )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {error}") from None


def _located(settings: ModelSettings, *, weights: bool) -> Path:
    """The directory of a model, which is downloaded if it is a repository of the Hub."""
    path, directory = settings.path, Path(settings.path).expanduser()
    if not directory.is_dir():
        if path.startswith((".", "/", "~")):
            raise ConfigError(f"no model directory at {path}")
        directory = fetch(path, settings.revision, weights=weights)
    if (directory / "adapter_config.json").is_file():
        raise ConfigError(
            f"{path} is an adapter: merge it into its base model and save that, or give the base "
            "and train on from the adapter (student.lora.adapter)"
        )
    if not os.path.lexists(directory / "config.json"):
        raise ConfigError(f"{path} is no Hugging Face model directory: config.json is missing")
    return directory
