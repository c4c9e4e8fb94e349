"""What an architecture does with attention, logits and positions, from its configuration alone.

Nothing is built and no weights are read, so the doctor says the same as a run that starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)  # fmt: skip
from transformers.utils import logging as transformers_logging

from effopd.errors import ConfigError, EffopdError
from effopd.models.directory import read_config

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
"""Settings of a config.json that make logits `cap * tanh(logits / cap)`."""
FACTORS = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
"""Settings of a config.json that multiply or divide the logits."""

_LOADERS = (AutoModelForCausalLM, AutoModelForImageTextToText)
_POSITIONS = ("max_position_embeddings", "n_positions")
_LENGTHENING = {"linear", "dynamic", "yarn"}
"""Kinds of rotary embeddings whose factor lengthens what the configuration says."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a model directory is loaded; one with a vision tower whole, and trained on text."""

    loader: Any  # transformers' class whose `from_pretrained` loads it
    model_class: Any
    config: Any
    attention: Attention  # implementation that is used


def read_architecture(
    directory: Path, *, attention: Attention = "auto", path: str | None = None
) -> Architecture:
    """Checks from config.json that a model can be trained and scored here."""
    path = path or str(directory)
    read_config(directory)  # whether it is there and an object
    with explained(path):
        config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    return architecture_of(config, path, attention)


def architecture_of(config: Any, path: str, attention: Attention = "auto") -> Architecture:
    """How a model is loaded, by its configuration of transformers; `path` names it in messages."""
    for loader in _LOADERS:
        with explained(path):
            model_class = loader._model_mapping.get(type(config), None)
        reads_apart = loader is not AutoModelForCausalLM and config.is_encoder_decoder
        if model_class is not None and not reads_apart:
            break
    else:
        raise ConfigError(
            f"{path} is of the architecture {config.model_type!r}, which is no language model that "
            "transformers loads: give a causal language model, such as the text model it is made of"
        )
    if isinstance(model_class, Sequence):
        model_class = model_class[0]
    supported = {
        "sdpa": model_class._supports_sdpa,
        "flash_attention_2": model_class._supports_flash_attn,
        "eager": True,
    }
    if attention == "auto":
        attention = "sdpa" if supported["sdpa"] else "eager"
    if not supported[attention]:
        raise ConfigError(
            f"{path}: {model_class.__name__} has no attention {attention!r}; it has "
            f"{', '.join(name for name, has in supported.items() if has)}. Leave attention at "
            "'auto', as in student.attention = \"auto\""
        )
    if config.sub_configs.get("text_config") is model_class.config_class:
        config = config.get_text_config()  # only its language model is loaded
    return Architecture(loader=loader, model_class=model_class, config=config, attention=attention)


def logit_cap(config: Any) -> float | None:
    """The bound of soft-capped logits, as a setting in `CAPS` says; None without one."""
    text = config.get_text_config()
    values = [getattr(text, name, None) for name in CAPS]
    return next((float(v) for v in values if isinstance(v, int | float) and v > 0), None)


def logit_factors(config: Any) -> tuple[float, ...]:
    """What the head's output may be multiplied by, as settings in `FACTORS` say.

    A setting is a factor in one architecture and a divisor in another, so both are there, behind 1;
    the model's own logits tell which it is.
    """
    text = config.get_text_config()
    values = [getattr(text, name, None) for name in FACTORS]
    numbers = [value for value in values if isinstance(value, int | float) and value > 0]
    return (1.0, *(factor for value in numbers for factor in (float(value), 1 / value)))


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Tokens of prompt and answer that a model is made for, by its config.json; None for no limit.

    Of a model with several towers the text's count.
    """
    text = config.get("text_config")
    found = text if isinstance(text, Mapping) else config
    limit = next((found[name] for name in _POSITIONS if type(found.get(name)) is int), None)
    scaling = found.get("rope_parameters") or found.get("rope_scaling")
    if limit is None or not isinstance(scaling, Mapping):
        return limit
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in _LENGTHENING or not isinstance(factor, int | float):
        return limit
    original = scaling.get("original_max_position_embeddings")
    return max(limit, int(factor * (original if isinstance(original, int) else limit)))


def described_by(config: Mapping[str, Any], path: Path | str) -> PreTrainedConfig:
    """The configuration as transformers understands it, with its names for sizes."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = ", and code of the model's own is never run" if config.get("auto_map") else ""
        raise ConfigError(
            f"{path}: transformers {version('transformers')} knows no model_type "
            f"{kind!r:.60}{own}: take a model that it knows, or a newer transformers"
        )
    known = {key: value for key, value in config.items() if key != "quantization_config"}
    with explained(str(path)):
        described: PreTrainedConfig = AutoConfig.for_model(**known)
    if type(described) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"{path}: transformers has no causal language model for model_type {kind!r:.60}: take "
            "a text model, or the text part of this one"
        )
    return described


def parameter_shapes(described: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every trained tensor of a configuration, tied ones once.

    Transformers builds the model on PyTorch's meta device, where tensors have no memory; code of
    the model's own is never run.
    """
    with explained(described.name_or_path or "config.json"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars of progress of transformers inside."""
    shows = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            transformers_logging.enable_progress_bar()


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turns whatever transformers raises on a model inside into ConfigError that names it.

    Damaged files and sizes that do not fit are errors of any class, a bare Exception included.
    Bars of progress are not shown.
    """
    try:
        with without_bars():
            yield
    except EffopdError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(f"{path} needs code of its own, which effopd never runs") from error
        raise ConfigError(f"cannot load {path}: {error or type(error).__name__}") from error
