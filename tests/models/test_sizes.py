"""Names and shapes of any architecture, against the models themselves."""

from collections.abc import Mapping
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from effopd.errors import ConfigError
from effopd.models.architecture import described_by, parameter_shapes

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "granite": {}, "cohere2": {}, "gemma2": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mamba": {"state_size": 4, "time_step_rank": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}  # fmt: skip


def config_of(kind: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = AutoConfig.for_model(kind, **SIZES, **OTHERS[kind]).to_dict()
    return content


@pytest.mark.parametrize("kind", OTHERS)
def test_shapes_are_those_of_the_model(kind: str) -> None:
    described = described_by(config_of(kind), "config.json")
    model = AutoModelForCausalLM.from_config(described)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert parameter_shapes(described) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nobody-knows"}, "knows no model_type 'nobody-knows': take a model that"),
        ({"model_type": "x", "auto_map": {"a": "b"}}, "and code of the model's own is never run"),
        ({"hidden_size": 8}, "knows no model_type None"),
        ({"model_type": "qwen2_vl"}, "no causal language model for model_type 'qwen2_vl'"),
        ({"model_type": "granite", "hidden_size": -1}, "cannot load .* negative dim"),
    ],
)
def test_what_has_no_sizes(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parameter_shapes(described_by(config, "config.json"))
