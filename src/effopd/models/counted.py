"""The shapes of any architecture's tensors, by building it without memory."""

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

from effopd.errors import ConfigError, EffopdError
from effopd.models.directory import Contents, built_from, check_config
from effopd.models.loading import Explained

_LIMITS = Contents(tensors=500, elements=2**43, stored_bytes=0)
"""Of a model that is built to be counted: 11,000 modules, 18 million million numbers."""


def described_by(config: Mapping[str, Any], path: Path | str) -> PreTrainedConfig:
    """The configuration as transformers understands it, with its names for sizes.

    Raises:
        ConfigError: Transformers has no causal language model for it; code that comes with a model
            is never run.
    """
    check_config(Path(path), config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = ", and code of the model's own is never run" if config.get("auto_map") else ""
        raise ConfigError(
            f"{path}: transformers {version('transformers')} knows no model_type "
            f"{kind!r:.60}{own}: take a model that it knows, or a newer transformers"
        )
    known = {key: value for key, value in config.items() if key != "quantization_config"}
    with Explained(str(path)):
        described: PreTrainedConfig = AutoConfig.for_model(**known)
    if type(described) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"{path}: transformers has no causal language model for model_type {kind!r:.60}: take "
            "a text model, or the text part of this one"
        )
    return described


def parameter_shapes(described: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every trained tensor, of any architecture; tied ones once.

    Transformers builds the model on PyTorch's meta device, where tensors have no memory; code of
    the model's own is never run.

    Raises:
        ConfigError: It has more modules or numbers than any model.
    """
    with Explained("config.json"), torch.device("meta"):
        try:
            with built_from(Path(), _LIMITS):
                model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
        except EffopdError:
            raise ConfigError(
                f"config.json describes more than {_LIMITS.most_modules} modules or "
                f"{_LIMITS.most_elements} numbers: no estimate"
            ) from None
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
