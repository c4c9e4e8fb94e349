"""The sizes of any architecture that transformers knows, without its weights."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
)

from effopd.errors import ConfigError
from effopd.models.architecture import explained


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
