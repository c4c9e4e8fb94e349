"""The sizes of a model from its config.json: what memory and time are estimated from."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from effopd.errors import ConfigError
from effopd.models.architecture import described_by, parameter_shapes
from effopd.models.directory import read_config, read_object

SHIPPED = "shapes.json"
"""Beside a recipe: path or repository of a model -> what counts of its config.json."""
_LAYER = re.compile(r"\.(\d+)\.")
_MODULE = re.compile(r"\.(\w+)\.weight$")
_ROUTERS = {"gate", "router"}
"""Modules that choose experts; adapters leave them alone."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of one decoder-only transformer."""

    tensors: Mapping[str, tuple[int, ...]]  # name -> shape, trained; a tied head counts once
    hidden: int
    layers: int
    heads: int  # of queries
    kv_heads: int
    head_width: int  # of a head's queries and keys
    value_width: int
    cached_per_token: int  # numbers that the cache of keys and values holds for one token
    width: int  # of the feed-forward network, or of one expert
    vocabulary: int  # rows of the embedding
    tied: bool = False  # the head is the embedding
    experts: int = 0  # of a layer; 0 for a dense model
    experts_used: int = 0  # that one token goes through
    shared_width: int = 0  # of the network beside the experts that every token goes through
    qk_norm: bool = False  # queries and keys are normalised

    @cached_property
    def parameters(self) -> int:
        """Trained numbers of the whole model."""
        return sum(map(math.prod, self.tensors.values()))

    @cached_property
    def active_parameters(self) -> int:
        """Those that one token is multiplied by, the head once and the embedding not at all."""
        used = self.vocabulary * self.hidden + self.hidden
        for name, sizes in self.tensors.items():
            numbers = math.prod(sizes) if layer_of(name) is not None else 0
            chosen = self.experts and ".experts." in name
            used += numbers // self.experts * self.experts_used if chosen else numbers
        return used

    def adapter_parameters(self, rank: int, modules: tuple[str, ...]) -> int:
        """Numbers of low-rank adapters on the modules named; "all-linear" is all but the head."""
        total = 0
        for name, sizes in self.tensors.items():
            module = _MODULE.search(name)
            if module is not None and layer_of(name) is not None and len(sizes) == 2:
                every = "all-linear" in modules and not (self.experts and module[1] in _ROUTERS)
                total += rank * sum(sizes) if every or module[1] in modules else 0
        return total


def layer_of(name: str) -> int | None:
    """Number of the layer that a tensor is in, from 0; None outside of layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def model_shape(content: Mapping[str, Any], path: Path | str) -> ModelShape:
    """The sizes of any architecture that transformers knows, from the content of config.json.

    The cache is that of attention in every layer: what tells layers of different kinds apart has
    no name that architectures share.
    """
    return _shape(json.dumps(content, sort_keys=True), str(path))


@lru_cache(maxsize=64)
def _shape(content: str, path: str) -> ModelShape:
    described = described_by(json.loads(content), path)
    tensors = parameter_shapes(described)
    config = described.get_text_config()

    def size(*names: str) -> int:
        """The first of these sizes that the configuration has, else 0."""
        return next((n for name in names if (n := getattr(config, name, None))), 0)

    hidden, layers = size("hidden_size"), size("num_hidden_layers") or 1
    heads = size("num_attention_heads") or 1
    kv_heads = size("num_key_value_heads") or heads
    head_width = size("head_dim") or max(1, hidden // heads)
    value_width, cached = head_width, 2 * layers * kv_heads * head_width
    # Latent attention (arXiv 2405.04434, section 2.1) caches one vector and one rotary key a token.
    if latent := size("kv_lora_rank"):
        head_width = size("qk_nope_head_dim") + size("qk_rope_head_dim")
        value_width, cached = size("v_head_dim"), layers * (latent + size("qk_rope_head_dim"))
    experts = size("num_local_experts", "num_experts", "n_routed_experts")
    width = size("intermediate_size")
    if experts:
        width = size("moe_intermediate_size", "intermediate_size")
    if not width:  # an architecture with another name for it
        inner = [max(s) for name, s in tensors.items() if layer_of(name) is not None]
        width = max(inner, default=hidden)
    return ModelShape(
        tensors=tensors, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        head_width=head_width, value_width=value_width, cached_per_token=cached, width=width,
        vocabulary=size("vocab_size"),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        experts=experts,
        experts_used=min(size("num_experts_per_tok") or experts, experts),
        shared_width=size("n_shared_experts") * size("moe_intermediate_size"),
        qk_norm=any(".q_norm." in name for name in tensors),
    )  # fmt: skip


def model_config(path: str, recipe: Path | None) -> tuple[Mapping[str, Any], Path]:
    """The content of a model's config.json and the file it is from, without the network.

    The model is a directory, such a file itself, or is described in `SHIPPED` beside the recipe.
    """
    if Path(path).is_dir():
        return read_config(Path(path)), Path(path) / "config.json"
    if Path(path).is_file():
        return read_object(Path(path)), Path(path)
    shipped = (recipe.parent if recipe else Path()) / SHIPPED
    content = read_object(shipped).get(path) if shipped.is_file() else None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} is no directory on this disk, and {shipped} does not describe it: download "
            "the model, or add what its config.json says"
        )
    return content, shipped
