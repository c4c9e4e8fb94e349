"""The tensors of a causal language model, from its sizes: what is counted, gathered, searched."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_LINEAR = re.compile(r"\.(\w+_proj\w*)\.weight$")
"""Of a linear module within a layer; experts, batched in one tensor, are none."""
_LAYER = re.compile(r"\.(\d+)\.")
_MODULE = re.compile(r"\.(\w+)\.weight$")


class TensorShape(NamedTuple):
    """Name and sizes of one tensor."""

    name: str
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.sizes)

    @property
    def layer(self) -> int | None:
        """Number of the layer it is in, from 0; None outside of layers."""
        found = _LAYER.search(self.name)
        return int(found[1]) if found else None


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Widths of attention whose keys and values come from a small vector for each token.

    Attributes:
        query_rank: Width that queries go through; 0 where they are projected at once.
        cached_rank: Width of the vector that keys and values are made of.
        plain: Width of the part of a head's queries and keys without position.
        rotary: Of the part with position, whose key all heads share.
        value: Width of a head's values.

    Source: multi-head latent attention, arXiv 2405.04434, section 2.1.
    """

    query_rank: int
    cached_rank: int
    plain: int
    rotary: int
    value: int


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
        shared_width: Of the network beside the experts that every token goes through; 0 for none.
        dense_layers: First layers without experts, of a model that has some.
        dense_width: Of their feed-forward network.
        latent: Its widths where the attention is latent.
        qkv_bias: Whether queries, keys and values have a bias.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the feed-forward network has them.
        qk_norm: Whether queries and keys are normalised.
        listed: The tensors, of a model whose tensors do not follow from these sizes.
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
    shared_width: int = 0
    dense_layers: int = 0
    dense_width: int = 0
    latent: LatentAttention | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    listed: tuple[TensorShape, ...] = ()

    @property
    def parameters(self) -> int:
        """Trained numbers of the whole model; a tied head counts once."""
        return sum(tensor.elements for tensor in self.tensors())

    @property
    def active_parameters(self) -> int:
        """Those that one token is multiplied by, the head once and the embedding not at all."""
        layers = (t for layer in range(self.layers) for t in self.layer_tensors(layer))
        used = sum(self._used(tensor) for tensor in layers)
        return self.vocabulary * self.hidden + used + self.hidden

    @property
    def cached_per_token(self) -> int:
        """Numbers that the cache of keys and values holds for one token."""
        if self.latent is not None:
            return self.layers * (self.latent.cached_rank + self.latent.rotary)
        return 2 * self.layers * self.kv_heads * self.head_width

    def adapter_parameters(self, rank: int, modules: tuple[str, ...]) -> int:
        """Numbers of low-rank adapters on the modules named; "all-linear" is all but the head."""
        total = 0
        for tensor in self.tensors():
            module = (_MODULE if self.listed else _LINEAR).search(tensor.name)
            if module is None or tensor.layer is None or len(tensor.sizes) != 2:
                continue
            if module[1] in modules or "all-linear" in modules:
                total += rank * sum(tensor.sizes)
        return total

    def tensors(self) -> Iterator[TensorShape]:
        """Every trained tensor once, as transformers names it and lays it out."""
        if self.listed:
            yield from self.listed
            return
        yield TensorShape("model.embed_tokens.weight", (self.vocabulary, self.hidden))
        for layer in range(self.layers):
            yield from self.layer_tensors(layer)
        yield TensorShape("model.norm.weight", (self.hidden,))
        if not self.tied:
            yield TensorShape("lm_head.weight", (self.vocabulary, self.hidden))

    def layer_tensors(self, layer: int) -> Iterator[TensorShape]:
        """Those of one layer, counting from 0."""
        if self.listed:
            yield from (tensor for tensor in self.listed if tensor.layer == layer)
            return
        prefix = f"model.layers.{layer}."
        attention = self._attention() if self.latent is None else self._latent(self.latent)
        for name, sizes in (*attention, *self._network(layer)):
            yield TensorShape(prefix + name, sizes)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield TensorShape(f"{prefix}{name}.weight", (self.hidden,))

    def _used(self, tensor: TensorShape) -> int:
        """Numbers of a layer's tensor that one token is multiplied by."""
        if ".experts." in tensor.name:
            return tensor.elements // self.experts * self.experts_used
        return tensor.elements

    def _attention(self) -> Iterator[TensorShape]:
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from _linear(f"self_attn.{name}", rows, self.hidden, self.qkv_bias)
        yield from _linear("self_attn.o_proj", self.hidden, queries, self.output_bias)
        if self.qk_norm:
            yield TensorShape("self_attn.q_norm.weight", (self.head_width,))
            yield TensorShape("self_attn.k_norm.weight", (self.head_width,))

    def _latent(self, latent: LatentAttention) -> Iterator[TensorShape]:
        queries = self.heads * (latent.plain + latent.rotary)
        if latent.query_rank:
            yield from _linear("self_attn.q_a_proj", latent.query_rank, self.hidden, self.qkv_bias)
            yield TensorShape("self_attn.q_a_layernorm.weight", (latent.query_rank,))
            yield from _linear("self_attn.q_b_proj", queries, latent.query_rank)
        else:
            yield from _linear("self_attn.q_proj", queries, self.hidden)
        cached = latent.cached_rank + latent.rotary
        yield from _linear("self_attn.kv_a_proj_with_mqa", cached, self.hidden, self.qkv_bias)
        yield TensorShape("self_attn.kv_a_layernorm.weight", (latent.cached_rank,))
        keys = self.heads * (latent.plain + latent.value)
        yield from _linear("self_attn.kv_b_proj", keys, latent.cached_rank)
        values = self.heads * latent.value
        yield from _linear("self_attn.o_proj", self.hidden, values, self.output_bias)

    def _network(self, layer: int) -> Iterator[TensorShape]:
        if not self.experts:
            yield from self._gated("mlp", self.width)
        elif layer < self.dense_layers:
            yield from self._gated("mlp", self.dense_width)
        else:
            yield TensorShape("mlp.gate.weight", (self.experts, self.hidden))
            both = (self.experts, 2 * self.width, self.hidden)
            yield TensorShape("mlp.experts.gate_up_proj", both)
            yield TensorShape("mlp.experts.down_proj", (self.experts, self.hidden, self.width))
            if self.shared_width:
                yield from self._gated("mlp.shared_experts", self.shared_width)

    def _gated(self, name: str, width: int) -> Iterator[TensorShape]:
        yield from _linear(f"{name}.gate_proj", width, self.hidden, self.mlp_bias)
        yield from _linear(f"{name}.up_proj", width, self.hidden, self.mlp_bias)
        yield from _linear(f"{name}.down_proj", self.hidden, width, self.mlp_bias)


def _linear(name: str, rows: int, columns: int, bias: bool = False) -> Iterator[TensorShape]:
    yield TensorShape(f"{name}.weight", (rows, columns))
    if bias:
        yield TensorShape(f"{name}.bias", (rows,))
