"""What each tensor of a language model is, by its name.

Families: Llama, Qwen 2 and 3, Mistral, Gemma, Phi-3 (fused q/k/v and gate/up), GPT-2 and GPT-NeoX
(q/k/v fused in an order that is no run of rows: one matrix `qkv`), and mixtures of experts with a
tensor per expert or one batched over them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.directory import read_config

Block = Literal["attention", "mlp", "embedding", "norm", "head", "other"]

# Last module of a name -> what it is.
_ROLES: dict[str, tuple[Block, str]] = {
    "q_proj": ("attention", "q"), "k_proj": ("attention", "k"), "v_proj": ("attention", "v"),
    "o_proj": ("attention", "o"), "qkv_proj": ("attention", "qkv"),
    "query_key_value": ("attention", "qkv"), "c_attn": ("attention", "qkv"),
    "gate_proj": ("mlp", "gate"), "up_proj": ("mlp", "up"), "down_proj": ("mlp", "down"),
    "gate_up_proj": ("mlp", "gate_up"), "dense_h_to_4h": ("mlp", "up"),
    "dense_4h_to_h": ("mlp", "down"), "c_fc": ("mlp", "up"), "fc1": ("mlp", "up"),
    "fc2": ("mlp", "down"), "w1": ("mlp", "gate"), "w2": ("mlp", "down"), "w3": ("mlp", "up"),
    "shared_expert_gate": ("mlp", "router"), "router": ("mlp", "router"),
    "embed_tokens": ("embedding", "embed"), "embed_in": ("embedding", "embed"),
    "wte": ("embedding", "embed"), "wpe": ("embedding", "position"), "lm_head": ("head", "head"),
    "embed_out": ("head", "head"),
}  # fmt: skip
_BLOCK_ORDER = ("embedding", "attention", "mlp", "norm", "head", "other")
_PROJECTION_ORDER = ("q", "k", "v", "qkv", "o", "router", "gate", "up", "gate_up", "down")
_NORM = re.compile(r"(.*_)?(layer)?norm[0-9f]?|ln_[12f]|ln_attn|ln_mlp")
_ATTENTION = {"self_attn", "attn", "attention", "linear_attn"}
_MLP = {"mlp", "feed_forward", "block_sparse_moe", "experts"}
_OUTPUTS = ("c_proj", "dense", "out_proj")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_BATCHED = re.compile(r"\.experts\.[a-z_]+$")
_PARAMETER = re.compile(r"\.(weight|bias)$")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Rows of a fused q/k/v projection."""

    query: int  # query heads
    key_value: int  # key heads, and as many value heads; fewer than query heads when grouped
    width: int  # rows of one head

    def __post_init__(self) -> None:
        counts = (self.query, self.key_value, self.width)
        if not all(type(count) is int for count in counts):
            raise ConfigError(f"head counts and width must be whole numbers, got {counts}")
        if min(counts) < 1 or self.query % self.key_value:
            raise ConfigError(
                f"query heads must be a multiple of key and value heads and all at least 1, got "
                f"{self.query}, {self.key_value} and width {self.width}"
            )


@dataclass(frozen=True, kw_only=True)
class ModuleTensor:
    """A tensor, or the part of one that acts as a matrix of its own, and what it is.

    `projection` is q, k, v, o, gate, up, down, router, embed, head or norm; qkv or gate_up where a
    fused tensor is not split; else the last module's name. Biases belong to their module.
    """

    name: str  # the tensor
    layer: int | None  # from 0; None outside the layers
    block: Block
    projection: str
    rows: tuple[int, int] | None = None  # first and past-the-last, of a part of a fused tensor
    expert: int | None = None  # from 0
    batched: bool = False  # the tensor has a first axis over experts, of which this is one entry
    shape: tuple[int, ...] = ()  # of what it is; () when only the name was known

    @property
    def label(self) -> str:
        """Unique text: the tensor's name, with the expert and the part where it is one."""
        expert = f"[{self.expert}]" if self.batched and self.expert is not None else ""
        return f"{self.name}{expert}" + (f"#{self.projection}" if self.rows else "")


def module_of(name: str) -> ModuleTensor:
    """What a whole tensor is; block "other" when the name is of no known kind."""
    layer, expert = _LAYER.search(name), _EXPERT.search(name)
    # The module is told by its own name, else by those that it is in.
    *parents, last = _PARAMETER.sub("", name).removesuffix("_bias").split(".")
    block: Block = "other"
    projection = last
    if last in _ROLES:
        block, projection = _ROLES[last]
    elif _NORM.fullmatch(last):
        block, projection = "norm", "norm"
    elif not _ATTENTION.isdisjoint(parents):
        block, projection = "attention", "o" if last in _OUTPUTS else last.removesuffix("_proj")
    elif not _MLP.isdisjoint(parents):
        known = {**dict.fromkeys(_OUTPUTS, "down"), "gate": "router"}
        block, projection = "mlp", known.get(last, last.removesuffix("_proj"))
    return ModuleTensor(
        name=name,
        layer=int(layer[1]) if layer else None,
        block=block,
        projection=projection,
        expert=int(expert[1]) if expert else None,
    )


def module_tensors(
    shapes: Mapping[str, tuple[int, ...]], heads: Heads | None = None
) -> list[ModuleTensor]:
    """Every module of a model in layer order; fused and batched tensors in their parts."""
    found: list[ModuleTensor] = []
    for name, shape in shapes.items():
        # A tensor with a first axis over experts is one module for each of them.
        experts = [replace(module_of(name), shape=shape)]
        if _BATCHED.search(name) and shape:
            one = replace(module_of(name), shape=shape[1:], batched=True)
            experts = [replace(one, expert=expert) for expert in range(shape[0])]
        # A fused projection is one module for each of its parts.
        rows = _fused_rows(experts[0], shapes, heads) if experts else {}
        for each in experts:
            for part, (first, last) in rows.items():
                size = (last - first, *each.shape[1:])
                found.append(replace(each, projection=part, rows=(first, last), shape=size))
        found += [] if rows else experts
    return sorted(found, key=_order)


def matrices(modules: Iterable[ModuleTensor]) -> list[ModuleTensor]:
    """The two-dimensional modules of attention and MLP blocks, which Table 1 averages over.

    Routers are none of them.
    """
    return [
        module
        for module in modules
        if module.block in ("attention", "mlp")
        and module.projection != "router"
        and len(module.shape) == 2
    ]


def heads_of(config: Mapping[str, Any]) -> Heads | None:
    """Head counts of a config.json; None when it names none."""
    text = config.get("text_config") or config
    query, width = text.get("num_attention_heads"), text.get("head_dim")
    if query is None or (width is None and "hidden_size" not in text):
        return None
    try:
        width = width or text["hidden_size"] // query
    except (TypeError, ZeroDivisionError):
        raise ConfigError(f"head counts must be whole numbers, got {query!r} heads") from None
    return Heads(query=query, key_value=text.get("num_key_value_heads") or query, width=width)


def read_heads(directory: Path) -> Heads | None:
    """Head counts of a model directory; None when its config.json names none."""
    return heads_of(read_config(directory))


def _fused_rows(
    module: ModuleTensor, shapes: Mapping[str, tuple[int, ...]], heads: Heads | None
) -> dict[str, tuple[int, int]]:
    """Projection -> its rows; empty where the tensor is one projection or cannot be split."""
    shape = module.shape
    if shape and module.projection == "gate_up":
        # Gate and up are the halves of the output rows where `down` has half as many columns; some
        # models store `[in, out]` or interleave the two, and theirs stay one matrix.
        weight = re.sub(r"\.bias$", ".weight", module.name).removesuffix("_bias")
        fused, down = shapes.get(weight), shapes.get(weight.replace("gate_up_proj", "down_proj"))
        if fused is None or down is None or min(len(fused), len(down)) < 2:
            return {}
        half = shape[0] // 2
        return {"gate": (0, half), "up": (half, 2 * half)} if fused[-2] == 2 * down[-1] else {}
    if shape and module.projection == "qkv" and "qkv_proj" in module.name and heads is not None:
        query, key_value = heads.query * heads.width, heads.key_value * heads.width
        if shape[0] != query + 2 * key_value:
            raise ParameterMismatchError(
                f"{module.name} has {shape[0]} rows, but {heads.query} query and "
                f"2 x {heads.key_value} key and value heads of {heads.width} rows make "
                f"{query + 2 * key_value}: config.json and weights belong to different models"
            )
        values = query + key_value
        return {"q": (0, query), "k": (query, values), "v": (values, values + key_value)}
    return {}


def _order(module: ModuleTensor) -> tuple[int, int, int, int, str]:
    """Embedding, layers by number, then the final norm and the head."""
    outside = -1 if module.block == "embedding" else 1 << 30
    layer = outside if module.layer is None else module.layer
    projection = [*_PROJECTION_ORDER, module.projection].index(module.projection)
    expert = -1 if module.expert is None else module.expert
    return layer, _BLOCK_ORDER.index(module.block), expert, projection, module.name
