"""Loading Hugging Face causal language models and tokenizers, safely."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, GenerationConfig

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.architecture import Architecture, Attention, explained, read_architecture
from effopd.models.directory import (
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION,
    INDEX,
    SINGLE,
    contents_instead,
    find_model,
    read_config,
    read_object,
)  # fmt: skip
from effopd.models.lora import LoraStudent, add_adapters_
from effopd.models.names import (
    BUFFER,
    by_reason,
    described_prefixes,
    draft_layers,
    extra,
    in_tower,
    plain_names,
)  # fmt: skip
from effopd.models.weights import check_tied_shapes, is_finite, open_weights, stored_tensors

AUTO = "auto"
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
    model: ModelSettings | str | Path,
    device: str = "cpu",
    report: Callable[[str], None] = lambda text: None,
) -> Any:
    """The causal language model in evaluation mode, from safetensors only, no remote code.

    Args:
        model: Which model; a directory or repository id alone loads it in float32.
        device: Where it goes, see `real_device`.
        report: Receives sentences about what differs from the usual: attention, names, tensors
            that are in the files and not in the model.

    Raises:
        ConfigError: There is no such model, its weights are no safetensors, or transformers has no
            language model for it.
        CheckpointError: A file of the weights is damaged.
        ParameterMismatchError: Weights and config.json do not belong together.
        NonFiniteError: A weight is a NaN or an infinity.
    """
    device = real_device(device)
    settings = model if isinstance(model, ModelSettings) else ModelSettings(path=str(model))
    path, directory = settings.path, _find(settings, weights=True)
    # Check the files before transformers opens them.
    stored = stored_tensors(directory)
    config = _read_settings(directory)
    found = read_architecture(directory, attention=settings.attention, path=path)
    if found.attention == "eager" != settings.attention:
        report(
            f"{path}: {found.model_class.__name__} has no 'sdpa' attention and runs with 'eager'"
        )
    names = plain_names(stored, path)
    check_tied_shapes({names[name]: each.shape for name, each in stored.items()}, config, path)
    # Build the model and fill it.
    options: dict[str, Any] = {
        "dtype": getattr(torch, settings.dtype),
        "attn_implementation": found.attention,
        "ignore_mismatched_sizes": True,  # reported, and refused below
        "output_loading_info": True,
    }
    with explained(path):
        if prefixes := described_prefixes(names):
            report(f"{path}: {prefixes}")
            built, info = _load_renamed(directory, found, options)
        else:
            built, info = found.loader.from_pretrained(
                str(directory), use_safetensors=True, trust_remote_code=False, **options
            )
    # Check that the weights are those of the model.
    drafts = draft_layers(config)
    _check_complete(path, built, info, drafts)
    has = {extra(name) for name in built.state_dict()}
    for why, apart in by_reason({n: extra(n, drafts) for n in names.values()}).items():
        if why != BUFFER and why not in has:
            report(f"{path}: {len(apart)} tensors are not loaded, {why} ({apart[0]})")
    # Prepare it for training and scoring.
    if settings.gradient_checkpointing:
        with warnings.catch_warnings():  # renamed in transformers 5.x; this name works in all of it
            warnings.simplefilter("ignore", FutureWarning)
            built.gradient_checkpointing_enable({"use_reentrant": False})
    for name, parameter in built.named_parameters():
        if in_tower(name):  # it has no gradient on text
            parameter.requires_grad_(False)
    if settings.lora is not None:
        add_adapters_(built, settings.lora)
    built = built.to(device).eval()
    for name, tensor in built.state_dict().items():
        if tensor.is_floating_point() and tensor.itemsize > 1 and not is_finite(tensor):
            raise NonFiniteError(
                f"{name} in {path} holds a NaN or an infinity: download or export the model again"
            )
    return built


def load_tokenizer(model: ModelSettings | str | Path) -> Any:
    """The tokenizer of a model, with a padding token."""
    settings = model if isinstance(model, ModelSettings) else ModelSettings(path=str(model))
    path, directory = settings.path, _find(settings, weights=False)
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(  # transformers would make up an empty one
            f"{path} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}): write it there "
            "with tokenizer.save_pretrained(...)"
        )
    with explained(path):
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(tokenizer.chat_template, str):  # a byte order mark would be in every prompt
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")
    return tokenizer


def real_device(name: str) -> str:
    """The PyTorch device that a setting stands for; ConfigError where it cannot be used.

    "auto" is "cuda" where PyTorch finds a GPU (of NVIDIA, or of AMD by ROCm), else "cpu". Apple's
    "mps" is never taken: it has no float64, in which answers are sampled.
    """
    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=name).item()
    except (RuntimeError, AssertionError, TypeError):  # whose words list all of PyTorch's backends
        kind = name.partition(":")[0]
        why = "a device is 'auto', 'cpu', 'cuda' or, of several GPUs, 'cuda:1'"
        if kind == "cuda":
            here = torch.cuda.is_available()
            last = torch.cuda.device_count() - 1
            why = f"the GPUs here are 0 to {last}" if here else "PyTorch finds no GPU here"
        elif kind == "mps":
            why = "it has no float64, in which answers are sampled"
        raise ConfigError(
            f"device {name!r} cannot be used: {why}; 'auto' takes a GPU where there is one, else "
            "the CPU"
        ) from None
    return name


def _find(settings: ModelSettings, *, weights: bool) -> Path:
    """The directory of a model that is no adapter."""
    path = settings.path
    directory = find_model(path, settings.revision, weights=weights)
    if (directory / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"{path} is an adapter: merge it into its base model and save that, or give the base "
            "as path and this directory as lora.adapter, from which a student trains on and with "
            "which a teacher or a reference scores"
        )
    if not (directory / CONFIG).exists():
        instead = "" if any(directory.glob("*.safetensors")) else f"; {contents_instead(directory)}"
        raise ConfigError(
            f"{path} is no Hugging Face model directory: config.json is missing{instead}"
        )
    return directory


def _read_settings(directory: Path) -> dict[str, Any]:
    """The content of config.json; refuses what would load other weights, or be passed over."""
    config = read_config(directory)
    if config.get("transformers_weights") not in (None, SINGLE, INDEX):
        raise ConfigError(
            f"{directory / CONFIG} sets transformers_weights, which names other weight files than "
            "the usual ones: remove the setting"
        )
    if (directory / GENERATION).exists():
        read_object(directory / GENERATION)  # transformers passes over one that is damaged
    return config


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
    if (directory / GENERATION).exists():
        model.generation_config = GenerationConfig.from_pretrained(str(directory))
    return model, info


def _check_complete(path: str, model: Any, info: Mapping[str, Any], drafts: range) -> None:
    """Refuses what transformers lets pass: tensors made up, left out, or untied from each other."""
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
    ties = model.config.get_text_config().to_dict().get("tie_word_embeddings", False)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if ties and head is not None and head.weight is not embedding.weight:
        raise ParameterMismatchError(
            f"config.json of {path} ties the head to the embedding, but the two are stored with "
            "different values: set tie_word_embeddings to what the weights are"
        )
