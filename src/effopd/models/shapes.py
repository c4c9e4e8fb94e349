"""How many numbers a causal language model has, from its config.json alone.

Arithmetic on checked whole numbers: nothing is built, so that impossible sizes cost nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effopd.errors import ConfigError
from effopd.models.directory import check_config
from effopd.models.shape_tensors import LatentAttention
from effopd.models.shape_tensors import ModelShape as ModelShape

LARGEST_SIZE = 2**24
"""Of a width, a vocabulary or a feed-forward layer; those published stay below 2**20."""
MOST_LAYERS = 10_000
_SPARSE = ("decoder_sparse_step", "moe_layer_freq")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What an architecture does where its config.json is silent.

    Attributes:
        qkv_bias: Queries, keys and values have a bias; None asks `attention_bias`, which then
            also gives the output projection one.
        qk_norm: Queries and keys of each head are normalised.
        tied: The head is the embedding unless the configuration says otherwise.
        experts: Whether it has experts; their number has one of the names in `EXPERTS`.
        expert_width: Name of the width of one expert.
        latent: Keys and values come from a small vector, and the first layers may be dense.
    """

    qkv_bias: bool | None = None
    qk_norm: bool = False
    tied: bool = False
    experts: bool = False
    expert_width: str = "intermediate_size"
    latent: bool = False


FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(qkv_bias=False),
    "mixtral": _Family(qkv_bias=False, experts=True),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm=True),
    "qwen3_moe": _Family(qk_norm=True, experts=True, expert_width="moe_intermediate_size"),
    "gemma": _Family(tied=True),
    "deepseek_v3": _Family(experts=True, expert_width="moe_intermediate_size", latent=True),
}
"""`model_type` of config.json -> how it counts."""


def has_formula(config: Mapping[str, Any]) -> bool:
    """Whether `shape_of` counts models of this configuration."""
    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in FAMILIES
    return known and not config.get("mlp_only_layers") and not _skips_layers(config)


def _skips_layers(config: Mapping[str, Any]) -> bool:
    return any(config.get(name, 1) != 1 for name in _SPARSE)


def shape_of(config: Mapping[str, Any], path: Path | str) -> ModelShape:
    """Reads the sizes from the content of a config.json.

    Args:
        config: Its content.
        path: Where it is from, for messages.

    Returns:
        The sizes.

    Raises:
        ConfigError: The architecture is not in `FAMILIES`, a size is missing or impossible, or
            experts are not in all layers from some layer on.
    """
    check_config(Path(path), config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(
            f"{path}: no estimate for model_type {kind!r:.60}; known are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    if config.get("mlp_only_layers") or _skips_layers(config):
        raise ConfigError(f"{path}: no estimate for models with experts in some layers only")
    read = _Sizes(config, path)
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads", most=MOST_LAYERS)
    biased = bool(config.get("attention_bias", False)) and family.qkv_bias is None
    named = next((name for name in EXPERTS if config.get(name) is not None), EXPERTS[0])
    experts = read.size(named) if family.experts else 0
    latent = _latent(read) if family.latent else None
    shared_width, dense_layers, dense_width = _deep(read) if family.latent else (0, 0, 0)
    return ModelShape(
        hidden=hidden,
        layers=read.size("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=read.size("num_key_value_heads", heads),
        head_width=_head_width(read, latent, hidden // heads),
        width=read.size(family.expert_width if experts else "intermediate_size"),
        vocabulary=read.size("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        experts=experts,
        experts_used=min(experts, read.size("num_experts_per_tok")) if experts else 0,
        shared_width=shared_width,
        dense_layers=dense_layers,
        dense_width=dense_width,
        latent=latent,
        qkv_bias=biased if family.qkv_bias is None else family.qkv_bias,
        output_bias=biased,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
    )


def _head_width(read: "_Sizes", latent: LatentAttention | None, default: int) -> int:
    """Of queries and keys."""
    if latent is not None:
        return latent.plain + latent.rotary
    return read.size("head_dim", max(1, default))


def _latent(read: "_Sizes") -> LatentAttention:
    return LatentAttention(
        query_rank=read.size("q_lora_rank", 0, least=0),
        cached_rank=read.size("kv_lora_rank"),
        plain=read.size("qk_nope_head_dim"),
        rotary=read.size("qk_rope_head_dim"),
        value=read.size("v_head_dim"),
    )


def _deep(read: "_Sizes") -> tuple[int, int, int]:
    """The networks of DeepSeek-V3, arXiv 2412.19437, section 4.2.

    Returns:
        Width of what every token goes through beside the experts, number of dense layers at the
        start, and their width.
    """
    shared = read.size("n_shared_experts", 0, least=0, most=MOST_LAYERS)
    dense = read.size("first_k_dense_replace", 0, least=0, most=MOST_LAYERS)
    return shared * read.size("moe_intermediate_size"), dense, read.size("intermediate_size")


@dataclass(frozen=True)
class _Sizes:
    config: Mapping[str, Any]
    path: Path | str

    def size(
        self, name: str, default: int | None = None, *, least: int = 1, most: int = LARGEST_SIZE
    ) -> int:
        """One size; a missing one has the default.

        Raises:
            ConfigError: It is no whole number from `least` to `most`, or missing without a default.
        """
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(
                f"{self.path}: {name} must be a whole number from {least} to {most}, got "
                f"{value!r:.60}"
            )
        return value
