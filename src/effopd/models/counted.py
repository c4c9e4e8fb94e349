"""The sizes of any architecture: by arithmetic where it is known, else by building it empty."""

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
from effopd.models.shape_tensors import ModelShape, TensorShape
from effopd.models.shapes import EXPERTS, has_formula, shape_of

_LIMITS = Contents(tensors=500, elements=2**43, stored_bytes=0)
"""Of a model that is built to be counted: 11,000 modules, 18 million million numbers."""


def model_shape(config: Mapping[str, Any], path: Path | str) -> ModelShape:
    """The sizes of a model from the content of its config.json.

    Architectures without a formula (`shapes.FAMILIES`) are built by transformers on PyTorch's meta
    device, where tensors have sizes and no memory; code of the model's own is never run.

    Args:
        config: Content of config.json.
        path: Where it is from, for messages.

    Returns:
        The sizes. Of a model that was built, `tensors` are those of the model; what tells layers
        of different kinds apart is not known, so that its cache is that of attention in all.

    Raises:
        ConfigError: A size is missing or impossible, or transformers does not know the
            architecture.
    """
    if has_formula(config):
        return shape_of(config, path)
    described = described_by(config, path)
    with Explained(str(path)), torch.device("meta"):
        try:
            with built_from(Path(path), _LIMITS):
                model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
        except EffopdError:
            raise ConfigError(
                f"{path} describes more than {_LIMITS.most_modules} modules or "
                f"{_LIMITS.most_elements} numbers: no estimate"
            ) from None
    return _counted(model, described.get_text_config())


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


def _counted(model: Any, config: Any) -> ModelShape:
    """The sizes of a model that was built, by the names that all configurations share."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tensors = tuple(
        TensorShape(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()
    )
    inner = [t for t in tensors if t.layer is not None and len(t.sizes) == 2]
    hidden, layers = embedding.weight.shape[1], getattr(config, "num_hidden_layers", 1)
    heads = getattr(config, "num_attention_heads", None) or 1
    experts = next((n for name in EXPERTS if (n := getattr(config, name, None))), 0)
    used = getattr(config, "num_experts_per_tok", None) or experts
    widest = max((max(tensor.sizes) for tensor in inner), default=hidden)
    return ModelShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or max(1, hidden // heads),
        width=getattr(config, "intermediate_size", None) or widest,
        vocabulary=head.weight.shape[0],
        tied=head.weight is embedding.weight,
        experts=experts,
        experts_used=min(used, experts),
        listed=tensors,
    )


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
