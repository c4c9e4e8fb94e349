"""What each tensor of every family is; fused and batched ones are split where they are."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.checkpoints import FAMILIES, family_model, save_family
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.layout import (
    Heads,
    ModuleTensor,
    heads_of,
    matrices,
    module_of,
    module_tensors,
    read_heads,
)
from effopd.models.weights import open_weights

HEADS = Heads(query=4, key_value=2, width=4)


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def live_modules(family: str) -> list[ModuleTensor]:
    return module_tensors(shapes_of(family_model(family).state_dict()), HEADS)


# Names --------------------------------------------------------------------------------------------

NAMES = [
    ("model.embed_tokens.weight", None, "embedding", "embed", None),
    ("model.layers.12.self_attn.q_proj.weight", 12, "attention", "q", None),
    ("model.layers.12.self_attn.k_proj.bias", 12, "attention", "k", None),
    ("model.layers.0.self_attn.o_proj.weight", 0, "attention", "o", None),
    ("model.layers.0.self_attn.qkv_proj.weight", 0, "attention", "qkv", None),
    ("model.layers.0.self_attn.q_norm.weight", 0, "norm", "norm", None),
    ("model.layers.0.self_attn.kv_b_proj.weight", 0, "attention", "kv_b", None),
    ("model.layers.0.self_attn.sinks", 0, "attention", "sinks", None),
    ("model.layers.0.self_attn.dense.weight", 0, "attention", "o", None),
    ("model.layers.0.linear_attn.out_proj.weight", 0, "attention", "o", None),
    ("model.layers.0.mlp.gate_proj.weight", 0, "mlp", "gate", None),
    ("model.layers.0.mlp.fc2.bias", 0, "mlp", "down", None),
    ("model.layers.0.mlp.gate.weight", 0, "mlp", "router", None),
    ("model.layers.0.mlp.router.weight", 0, "mlp", "router", None),
    ("model.layers.0.mlp.experts.31.up_proj.weight", 0, "mlp", "up", 31),
    ("model.layers.0.mlp.experts.down_proj", 0, "mlp", "down", None),
    ("model.layers.0.mlp.shared_expert.down_proj.weight", 0, "mlp", "down", None),
    ("model.layers.0.mlp.shared_expert_gate.weight", 0, "mlp", "router", None),
    ("model.layers.0.block_sparse_moe.experts.7.w2.weight", 0, "mlp", "down", 7),
    ("model.layers.0.block_sparse_moe.gate.weight", 0, "mlp", "router", None),
    ("model.layers.0.pre_feedforward_layernorm.weight", 0, "norm", "norm", None),
    ("model.norm.weight", None, "norm", "norm", None),
    ("lm_head.weight", None, "head", "head", None), ("lm_head.bias", None, "head", "head", None),
    ("transformer.wpe.weight", None, "embedding", "position", None),
    ("transformer.h.3.attn.c_attn.weight", 3, "attention", "qkv", None),
    ("transformer.h.3.attn.c_proj.weight", 3, "attention", "o", None),
    ("transformer.h.3.mlp.c_proj.bias", 3, "mlp", "down", None),
    ("transformer.h.3.ln_2.weight", 3, "norm", "norm", None),
    ("transformer.ln_f.bias", None, "norm", "norm", None),
    ("gpt_neox.layers.5.attention.query_key_value.weight", 5, "attention", "qkv", None),
    ("gpt_neox.layers.5.attention.dense.weight", 5, "attention", "o", None),
    ("gpt_neox.layers.5.mlp.dense_h_to_4h.weight", 5, "mlp", "up", None),
    ("gpt_neox.final_layer_norm.weight", None, "norm", "norm", None),
    ("embed_out.weight", None, "head", "head", None),
    ("model.layers.2.mixer.A_log", 2, "other", "A_log", None),
    ("value_head.weight", None, "other", "value_head", None), ("x", None, "other", "x", None),
    ("", None, "other", "", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "block", "projection", "expert"), NAMES)
def test_role_by_name(
    name: str, layer: int | None, block: Any, projection: str, expert: int | None
) -> None:
    module = module_of(name)
    assert (module.layer, module.block, module.projection) == (layer, block, projection)
    assert (module.expert, module.name, module.label) == (expert, name, name)


# Whole models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_places_tile_the_model(family: str) -> None:
    """Every element of every tensor is in exactly one module; none is of unknown kind."""
    tensors = {n: torch.zeros_like(t) for n, t in family_model(family).state_dict().items()}
    found = module_tensors(shapes_of(tensors), HEADS)
    for module in found:
        whole = tensors[module.name]
        part = whole[module.expert] if module.batched else whole
        part = part if module.rows is None else part[slice(*module.rows)]
        assert module.shape == tuple(part.shape)
        part += 1
    for name, tensor in tensors.items():
        assert bool((tensor == 1).all()), name
    assert {module.block for module in found} == {"embedding", "attention", "mlp", "norm", "head"}
    assert len({module.label for module in found}) == len(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_places_of_the_saved_model(family: str, tmp_path: Path) -> None:
    weights = open_weights(save_family(tmp_path, family))
    found = module_tensors(weights.shapes, read_heads(tmp_path))
    assert {module.name for module in found} == set(weights.shapes)
    assert "other" not in {module.block for module in found}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3"])
def test_dense_families_have_seven_matrices_a_layer(family: str) -> None:
    found = matrices(live_modules(family))
    expected = {
        "q": (16, 16), "k": (8, 16), "v": (8, 16), "o": (16, 16),
        "gate": (24, 16), "up": (24, 16), "down": (16, 24),
    }  # fmt: skip
    listed = [(module.layer, module.projection, module.shape) for module in found]
    assert listed == [(layer, *item) for layer in (0, 1) for item in expected.items()]


def test_layer_order() -> None:
    names = [
        "lm_head.weight", "model.layers.10.mlp.up_proj.weight", "model.norm.weight",
        "model.layers.2.input_layernorm.weight", "model.layers.2.self_attn.k_proj.weight",
        "model.layers.2.self_attn.q_proj.weight", "model.embed_tokens.weight", "odd",
        "model.layers.2.mlp.experts.10.up_proj.weight",
        "model.layers.2.mlp.experts.9.up_proj.weight",
        "model.layers.2.mlp.experts.9.down_proj.weight",
    ]  # fmt: skip
    assert [module.name for module in module_tensors(dict.fromkeys(names, (4, 4)))] == [
        "model.embed_tokens.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "model.layers.2.self_attn.k_proj.weight",
        "model.layers.2.mlp.experts.9.up_proj.weight",
        "model.layers.2.mlp.experts.9.down_proj.weight",
        "model.layers.2.mlp.experts.10.up_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.10.mlp.up_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
        "odd",
    ]


# Fused projections --------------------------------------------------------------------------------


def test_fused_rows_are_those_the_model_uses() -> None:
    """Zeroing the rows of `v` in every layer makes attention give zeros."""
    model = family_model("phi3")
    seen: list[Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for module in live_modules("phi3"):
            if module.projection == "v" and module.rows:
                model.state_dict()[module.name][slice(*module.rows)] = 0
        model(torch.tensor([[3, 4, 5]]))
    assert len(seen) == 2
    assert all(not inputs.any() for inputs in seen)


def test_without_head_counts_a_fused_projection_stays_whole() -> None:
    shapes = shapes_of(family_model("phi3").state_dict())
    fused = [
        module
        for module in module_tensors(shapes)
        if module.block == "attention" and module.layer == 0
    ]
    assert [(module.projection, module.rows) for module in fused] == [("qkv", None), ("o", None)]


def test_head_counts_of_another_model() -> None:
    shapes = {"model.layers.0.self_attn.qkv_proj.weight": (32, 16)}
    with pytest.raises(ParameterMismatchError, match="has 32 rows, but 4 query and 2 x 4 key"):
        module_tensors(shapes, Heads(query=4, key_value=4, width=4))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_rows_that_are_no_run_are_not_split(family: str) -> None:
    found = matrices(live_modules(family))
    assert Counter(module.projection for module in found) == {"qkv": 2, "o": 2, "up": 2, "down": 2}
    assert not any(module.rows for module in found)


# Experts ------------------------------------------------------------------------------------------


def test_batched_experts_are_those_of_the_tensor_per_expert(tmp_path: Path) -> None:
    """transformers fuses them on loading and splits them on saving: both name the same matrices."""
    model = family_model("qwen3_moe")
    model.save_pretrained(tmp_path)
    weights = open_weights(tmp_path)

    def key(module: ModuleTensor) -> tuple[Any, ...]:
        return module.layer, module.projection, module.expert

    live = {key(p): p for p in matrices(live_modules("qwen3_moe"))}
    saved = {key(p): p for p in matrices(module_tensors(weights.shapes))}
    assert live.keys() == saved.keys()
    assert sum(expert is not None for _, _, expert in live) == 2 * 3 * 3
    for where, module in live.items():
        part = model.state_dict()[module.name]
        part = part[module.expert] if module.batched else part
        part = part[slice(*module.rows)] if module.rows else part
        assert torch.equal(part, weights.read(saved[where].name)), where


def test_interleaved_gate_and_up_stay_one_matrix() -> None:
    found = [
        module for module in live_modules("gpt_oss") if module.expert == 1 and module.layer == 0
    ]
    assert [(module.projection, module.shape) for module in found] == [
        ("gate_up", (16, 48)), ("gate_up", (48,)), ("down", (24, 16)), ("down", (16,))
    ]  # fmt: skip


def test_gate_and_up_that_do_not_fit_their_down_projection_stay_one_matrix() -> None:
    mlp = "model.layers.0.mlp."
    for rows, found in ((48, ["gate", "up"]), (40, ["gate_up"])):
        shapes = {f"{mlp}gate_up_proj.weight": (rows, 16), f"{mlp}down_proj.weight": (16, 24)}
        assert [module.projection for module in module_tensors(shapes)] == [*found, "down"]
    alone = module_tensors({f"{mlp}gate_up_proj.weight": (48, 16)})
    assert [module.projection for module in alone] == ["gate_up"]


# Heads --------------------------------------------------------------------------------------------


def test_heads_of_configs() -> None:
    plain = {"num_attention_heads": 8, "hidden_size": 64}
    assert heads_of(plain) == Heads(query=8, key_value=8, width=8)
    grouped = plain | {"num_key_value_heads": 2, "head_dim": 16}
    assert heads_of(grouped) == Heads(query=8, key_value=2, width=16)
    assert heads_of({"text_config": grouped}) == Heads(query=8, key_value=2, width=16)
    assert heads_of(plain | {"head_dim": None}) == Heads(query=8, key_value=8, width=8)
    assert heads_of({"n_head": 4}) is None
    assert heads_of({"num_attention_heads": 8}) is None


@pytest.mark.parametrize("query", ["8", 0, [8]])
def test_head_counts_that_are_none(query: Any) -> None:
    with pytest.raises(ConfigError, match="head counts"):
        heads_of({"num_attention_heads": query, "hidden_size": 64})


@pytest.mark.parametrize(
    ("query", "key_value", "width"), [(0, 1, 1), (3, 2, 4), (4, 4, 0), ("8", 2, 4), (4, 2.0, 4)]
)
def test_impossible_heads(query: Any, key_value: Any, width: Any) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Heads(query=query, key_value=key_value, width=width)
