"""Loading Hugging Face causal language models and tokenizers, safely."""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, GenerationConfig

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.architecture import Architecture, Attention, Explained, read_architecture
from effopd.models.chat_templates import check_chat_template
from effopd.models.devices import real_device
from effopd.models.directory import built_from, check_config, check_model, check_texts
from effopd.models.hub import fetch
from effopd.models.lora import LoraStudent, add_adapters_
from effopd.models.names import (
    BUFFER,
    by_reason,
    described_prefixes,
    draft_layers,
    extra,
    in_tower,
    plain_names,
)
from effopd.models.paths import contents_instead
from effopd.models.saving import GENERATION
from effopd.models.tying import check_tied_shapes
from effopd.models.weights import (
    is_finite,
    open_weights,
    read_config,
    read_object,
    stored_tensors,
)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, in which precision.

    Attributes:
        path: Directory or Hugging Face repository id.
        revision: Commit, tag or branch of a repository.
        dtype: Precision of the weights.
        attention: Implementation in transformers; "auto" is "sdpa" where the architecture has it,
            else "eager".
        gradient_checkpointing: Recompute activations in the backward pass.
        lora: Adapters to train in place of the weights; None trains the weights.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Attention = "auto"
    gradient_checkpointing: bool = False
    lora: LoraStudent | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path must be a model directory or a Hugging Face repository id")


def load_model(
    settings: ModelSettings, device: str = "cpu", report: Callable[[str], None] = lambda text: None
) -> Any:
    """The causal language model in evaluation mode, from safetensors only, no remote code.

    Everything in its directory is checked before transformers opens it (docs/safety.md), and every
    number of the weights afterwards, which reads them once more.

    Args:
        settings: Which model.
        device: Where it goes.
        report: Receives sentences about what differs from the usual: attention, names, tensors
            that are in the files and not in the model.
    """
    device = real_device(device)
    path, directory = settings.path, _located(settings, weights=True)
    contents = check_model(directory)
    if (directory / GENERATION).exists():
        read_object(directory / GENERATION)  # transformers passes over one that is damaged
    found = read_architecture(directory, attention=settings.attention, path=path)
    if found.attention == "eager" != settings.attention:
        report(
            f"{path}: {found.model_class.__name__} has no 'sdpa' attention and runs with 'eager'"
        )
    options: dict[str, Any] = {
        "dtype": getattr(torch, settings.dtype),
        "attn_implementation": found.attention,
        "ignore_mismatched_sizes": True,  # reported, and refused below
        "output_loading_info": True,
    }
    stored = stored_tensors(directory)
    names = plain_names(stored, path)
    config = read_config(directory)
    shapes = {names[name]: each.shape for name, (_, each) in stored.items()}
    check_tied_shapes(shapes, config, path)
    prefixes = described_prefixes(names)
    with Explained(path), built_from(directory, contents):
        if prefixes:
            report(f"{path}: {prefixes}")
            model, info = _load_renamed(directory, found, options)
        else:
            model, info = found.loader.from_pretrained(
                str(directory), use_safetensors=True, trust_remote_code=False, **options
            )
    drafts = draft_layers(config)
    _check_complete(path, info, drafts)
    _check_tied(path, model)
    has = {extra(name) for name in model.state_dict()}
    for why, apart in by_reason({n: extra(n, drafts) for n in names.values()}).items():
        if why != BUFFER and why not in has:
            report(f"{path}: {len(apart)} tensors are not loaded, {why} ({apart[0]})")
    if settings.gradient_checkpointing:
        with warnings.catch_warnings():  # renamed in transformers 5.x; this name works in all of it
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, parameter in model.named_parameters():
        if in_tower(name):  # it has no gradient on text
            parameter.requires_grad_(False)
    if settings.lora is not None:
        add_adapters_(model, settings.lora)
    model = model.to(device).eval()
    _check_finite(path, model)
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
    with Explained(path):
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(tokenizer.chat_template, str):  # a byte order mark would be in every prompt
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")
    check_chat_template(path, tokenizer)
    return tokenizer


def _load_renamed(
    directory: Path, found: Architecture, options: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """A model whose tensors are stored under the names that wrappers gave them."""
    weights = open_weights(directory)
    model, info = found.model_class.from_pretrained(
        None,
        config=found.config,
        state_dict={name: weights.read(name) for name in weights.shapes},
        **options,
    )
    model.name_or_path = model.config._name_or_path = str(directory)
    if os.path.lexists(directory / GENERATION):
        model.generation_config = GenerationConfig.from_pretrained(str(directory))
    return model, info


def _check_complete(path: str, info: Mapping[str, Any], drafts: range) -> None:
    """Transformers gives tensors that are not in the file random values, and leaves others out."""
    unexpected = sorted(name for name in info["unexpected_keys"] if extra(name, drafts) is None)
    missing = sorted(info["missing_keys"])
    if missing:
        instead = f" (it holds {unexpected[0]}, which has no place in it)" if unexpected else ""
        raise ParameterMismatchError(
            f"{len(missing)} tensors of the model are not in {path}, for example {missing[0]}"
            f"{instead}: complete the download, or export the whole model"
        )
    if info["mismatched_keys"]:
        name, found, expected = sorted(info["mismatched_keys"])[0]
        raise ParameterMismatchError(
            f"{name} in {path} has shape {tuple(found)}, the config asks for {tuple(expected)}: "
            "config.json and weights belong to different models"
        )
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


def _located(settings: ModelSettings, *, weights: bool) -> Path:
    """The directory of a model, which is downloaded if it is a repository of the Hub."""
    path, directory = settings.path, Path(settings.path).expanduser()
    if not directory.is_dir():
        directory = fetch(path, settings.revision, weights=weights)
    if (directory / "adapter_config.json").is_file():
        raise ConfigError(
            f"{path} is an adapter: merge it into its base model and save that, or give the base "
            "and train on from the adapter (student.lora.adapter)"
        )
    if not os.path.lexists(directory / "config.json"):
        instead = "" if any(directory.glob("*.safetensors")) else f"; {contents_instead(directory)}"
        raise ConfigError(
            f"{path} is no Hugging Face model directory: config.json is missing{instead}"
        )
    return directory
