"""Sizes of architectures without a formula, against the models themselves."""

from collections.abc import Mapping
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from effopd.errors import ConfigError
from effopd.models.counted import model_shape
from effopd.models.shapes import FAMILIES, shape_of

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "granite": {},
    "cohere2": {},
    "gemma2": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mamba": {"state_size": 4, "time_step_rank": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}


def config_of(kind: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = AutoConfig.for_model(kind, **SIZES, **OTHERS[kind]).to_dict()
    return content


@pytest.mark.parametrize("kind", OTHERS)
def test_every_architecture_has_sizes(kind: str) -> None:
    assert kind not in FAMILIES
    config = config_of(kind)
    shape = model_shape(config, "config.json")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert shape.parameters == model.num_parameters()
    tensors = {tensor.name: tensor.sizes for tensor in shape.tensors()}
    assert tensors == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert (shape.hidden, shape.layers, shape.vocabulary) == (32, 2, 40)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shape.tied == tied
    inside = [tensor for layer in (0, 1) for tensor in shape.layer_tensors(layer)]
    assert 0 < sum(tensor.elements for tensor in inside) < shape.parameters


def test_a_token_goes_through_some_experts() -> None:
    shape = model_shape(config_of("gpt_oss"), "config.json")
    assert (shape.experts, shape.experts_used) == (4, 2)
    experts = sum(t.elements for t in shape.tensors() if ".experts." in t.name)
    others = sum(t.elements for t in shape.tensors() if t.layer is not None) - experts
    head = shape.vocabulary * shape.hidden
    assert shape.active_parameters == head + experts // 2 + others + shape.hidden


def test_adapters_of_a_counted_model() -> None:
    shape = model_shape(config_of("opt"), "config.json")
    one = 4 * (32 + 32)  # rank times rows and columns
    assert shape.adapter_parameters(4, ("q_proj",)) == 2 * one
    assert shape.adapter_parameters(4, ("all-linear",)) == 2 * (4 * one + 2 * 4 * (32 + 64))


def test_a_formula_is_taken_where_there_is_one() -> None:
    content = AutoConfig.for_model("qwen3", **SIZES).to_dict()
    assert model_shape(content, "config.json") == shape_of(content, "config.json")
    sparse = AutoConfig.for_model("qwen3_moe", **SIZES, mlp_only_layers=[0], num_experts=4)
    counted = model_shape(sparse.to_dict(), "config.json")
    assert counted.parameters == AutoModelForCausalLM.from_config(sparse).num_parameters()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nobody-knows"}, "knows no model_type 'nobody-knows': take a model that"),
        ({"model_type": "x", "auto_map": {"a": "b"}}, "and code of the model's own is never run"),
        ({"hidden_size": 8}, "knows no model_type None"),
        ({"model_type": "qwen2_vl"}, "no causal language model for model_type 'qwen2_vl'"),
        ({"model_type": "granite", "hidden_size": -1}, "hidden_size must be a whole number"),
        ({"model_type": "granite", **SIZES, "num_hidden_layers": 5_000}, "more than 11000 modules"),
    ],
)
def test_what_cannot_be_counted(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_shape(config, "config.json")
