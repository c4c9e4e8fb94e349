"""How many numbers a causal language model has, from its config.json alone.

Arithmetic on checked whole numbers: nothing is built, so that impossible sizes cost nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effopd.errors import ConfigError
from effopd.models.directory import check_config

LARGEST_SIZE = 2**24
"""Of a width, a vocabulary or a feed-forward layer; those published stay below 2**20."""
MOST_LAYERS = 10_000
_EXPERTS = ("num_local_experts", "num_experts")


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What an architecture does where its config.json is silent.

    Attributes:
        qkv_bias: Queries, keys and values have a bias; None asks `attention_bias`, which then
            also gives the output projection one.
        qk_norm: Queries and keys of each head are normalised.
        tied: The head is the embedding unless the configuration says otherwise.
        experts: Whether it has experts; their number has one of the names in `_EXPERTS`.
        expert_width: Name of the width of one expert.
    """

    qkv_bias: bool | None = None
    qk_norm: bool = False
    tied: bool = False
    experts: bool = False
    expert_width: str = "intermediate_size"


FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(qkv_bias=False),
    "mixtral": _Family(qkv_bias=False, experts=True),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm=True),
    "qwen3_moe": _Family(qk_norm=True, experts=True, expert_width="moe_intermediate_size"),
    "gemma": _Family(tied=True),
}
"""`model_type` of config.json -> how it counts."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of one decoder-only transformer.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_width: Width of one head.
        width: Of the feed-forward network, or of one expert.
        vocabulary: Rows of the embedding.
        tied: Whether the head is the embedding.
        experts: Experts of a layer; 0 for a dense model.
        experts_used: Experts that one token goes through.
        qkv_bias: Whether queries, keys and values have a bias.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the feed-forward network has them.
        qk_norm: Whether queries and keys are normalised.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    width: int
    vocabulary: int
    tied: bool = False
    experts: int = 0
    experts_used: int = 0
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def parameters(self) -> int:
        """Trained numbers of the whole model; a tied head counts once."""
        ends = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return ends + self.layers * self._layer(self.experts) + self.hidden

    @property
    def active_parameters(self) -> int:
        """Those that one token is multiplied by, the head once and the embedding not at all."""
        used = self._layer(self.experts_used) if self.experts else self._layer(0)
        return self.vocabulary * self.hidden + self.layers * used + self.hidden

    @property
    def cached_per_token(self) -> int:
        """Numbers that the cache of keys and values holds for one token."""
        return 2 * self.layers * self.kv_heads * self.head_width

    def adapter_parameters(self, rank: int, modules: tuple[str, ...]) -> int:
        """Numbers of low-rank adapters on the modules named; "all-linear" is all but the head."""
        matrices = [
            (rows, columns)
            for name, rows, columns in self._matrices()
            if name in modules or "all-linear" in modules
        ]
        return self.layers * rank * sum(rows + columns for rows, columns in matrices)

    def _matrices(self) -> Iterator[tuple[str, int, int]]:
        """(name, inputs, outputs) of the linear modules of one layer; experts are not linear."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        yield "q_proj", self.hidden, queries
        yield "k_proj", self.hidden, keys
        yield "v_proj", self.hidden, keys
        yield "o_proj", queries, self.hidden
        if not self.experts:
            yield "gate_proj", self.hidden, self.width
            yield "up_proj", self.hidden, self.width
            yield "down_proj", self.width, self.hidden

    def _layer(self, experts: int) -> int:
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        attention = self.hidden * (2 * queries + 2 * keys)
        attention += (queries + 2 * keys) * self.qkv_bias + self.hidden * self.output_bias
        attention += 2 * self.head_width * self.qk_norm
        network = 3 * self.hidden * self.width
        network += (2 * self.width + self.hidden) * self.mlp_bias
        if self.experts:
            network = network * experts + self.hidden * self.experts
        return attention + network + 2 * self.hidden


def shape_of(config: Mapping[str, Any], path: Path | str) -> ModelShape:
    """Reads the sizes from the content of a config.json.

    Args:
        config: Its content.
        path: Where it is from, for messages.

    Returns:
        The sizes.

    Raises:
        ConfigError: The architecture is not in `FAMILIES`, a size is missing or impossible, or
            only some layers have experts.
    """
    check_config(Path(path), config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(
            f"{path}: no estimate for model_type {kind!r:.60}; known are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ConfigError(f"{path}: no estimate for models with experts in some layers only")
    read = _Sizes(config, path)
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads", most=MOST_LAYERS)
    biased = bool(config.get("attention_bias", False)) and family.qkv_bias is None
    named = next((name for name in _EXPERTS if config.get(name) is not None), _EXPERTS[0])
    experts = read.size(named) if family.experts else 0
    return ModelShape(
        hidden=hidden,
        layers=read.size("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=read.size("num_key_value_heads", heads),
        head_width=read.size("head_dim", max(1, hidden // heads)),
        width=read.size(family.expert_width if experts else "intermediate_size"),
        vocabulary=read.size("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        experts=experts,
        experts_used=min(experts, read.size("num_experts_per_tok")) if experts else 0,
        qkv_bias=biased if family.qkv_bias is None else family.qkv_bias,
        output_bias=biased,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
    )


@dataclass(frozen=True)
class _Sizes:
    config: Mapping[str, Any]
    path: Path | str

    def size(self, name: str, default: int | None = None, *, most: int = LARGEST_SIZE) -> int:
        """One size; a missing one has the default.

        Raises:
            ConfigError: It is no whole number from 1 to `most`, or missing without a default.
        """
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigError(
                f"{self.path}: {name} must be a whole number from 1 to {most}, got {value!r:.60}"
            )
        return value
