"""Sizes from config.json, against the models that transformers builds."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.architectures import ARCHITECTURES, make
from tests.support.shapes import DEEPSEEK

from effopd.doctor.sizes import ModelShape, model_config, model_shape
from effopd.errors import ConfigError
from effopd.models.lora import LoraStudent, add_adapters_

DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "intermediate_size": 18432, "first_k_dense_replace": 3, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
    "vocab_size": 129280, "tie_word_embeddings": False,
}  # fmt: skip


def built(kind: str, **sizes: Any) -> tuple[Any, ModelShape]:
    model = make(kind, **(DEEPSEEK if kind == "deepseek_v3" else {}) | sizes)
    return model, model_shape(model.config.to_dict(), "config.json")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "deepseek_v3", "gpt2", "olmo2"])
def test_sizes_are_those_of_the_model(kind: str, tied: bool) -> None:
    model, shape = built(kind, tie_word_embeddings=tied)
    assert shape.tensors == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    assert (shape.vocabulary, shape.hidden) == tuple(embedding.shape)
    assert shape.tied == (model.get_output_embeddings().weight is embedding)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_a_token_goes_through_some_experts_only(kind: str) -> None:
    own = {"num_local_experts": 4, "head_dim": 8} if kind == "gpt_oss" else {}
    model, shape = built(kind, **own, num_experts_per_tok=2)
    assert shape.experts_used == 2
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    embedding = model.get_input_embeddings().weight.numel()
    idle = experts - experts // shape.experts * 2
    assert shape.active_parameters == shape.parameters - idle - embedding


def test_the_cache_of_latent_attention_holds_one_vector_a_layer() -> None:
    _, shape = built("deepseek_v3")
    assert shape.cached_per_token == 3 * (6 + 2)
    assert (shape.head_width, shape.value_width) == (4 + 2, 5)


def test_deepseek_v3_has_671_billion_parameters_and_uses_37() -> None:
    shape = model_shape(DEEPSEEK_V3, "config.json")
    assert shape.parameters == pytest.approx(671.03e9, rel=1e-5)
    assert shape.active_parameters == pytest.approx(37e9, rel=0.02)


@pytest.mark.parametrize("modules", [("all-linear",), ("q_proj", "down_proj")])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_adapters_are_those_of_peft(kind: str, modules: tuple[str, ...]) -> None:
    pytest.importorskip("peft")
    model, shape = built(kind)
    add_adapters_(model, LoraStudent(r=3, target_modules=modules))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.adapter_parameters(3, modules) == trained


def test_a_model_is_a_directory_a_file_or_described_beside_the_recipe(tmp_path: Path) -> None:
    recipe, content = tmp_path / "run.toml", {"model_type": "qwen2"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    (tmp_path / "shapes.json").write_text(json.dumps({"own/model": content}))
    assert model_config(str(tmp_path), recipe) == (content, path)
    assert model_config(str(path), None) == (content, path)
    assert model_config("own/model", recipe) == (content, tmp_path / "shapes.json")
    with pytest.raises(ConfigError, match="no directory on this disk"):
        model_config("nobody/nothing", recipe)
