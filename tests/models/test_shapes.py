"""Parameter counts are those of the models that transformers builds."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.architectures import ARCHITECTURES, make

from effopd.errors import ConfigError
from effopd.models.lora import LoraStudent, add_adapters_
from effopd.models.shapes import ModelShape, shape_of

QWEN3_4B: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip


def saved_shape(model: Any, directory: Path) -> ModelShape:
    model.config.save_pretrained(directory)
    path = directory / "config.json"
    return shape_of(json.loads(path.read_text()), path)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_parameters_are_those_of_the_model(kind: str, tied: bool, tmp_path: Path) -> None:
    model = make(kind, tie_word_embeddings=tied)
    assert saved_shape(model, tmp_path).parameters == sum(p.numel() for p in model.parameters())


def test_biases_are_counted(tmp_path: Path) -> None:
    model = make("llama", attention_bias=True, mlp_bias=True)
    assert saved_shape(model, tmp_path).parameters == sum(p.numel() for p in model.parameters())


def test_a_token_goes_through_some_experts_only(tmp_path: Path) -> None:
    shape = saved_shape(make("mixtral"), tmp_path)
    idle = shape.layers * 2 * 3 * shape.hidden * shape.width
    embedding = shape.vocabulary * shape.hidden
    assert shape.active_parameters == shape.parameters - idle - embedding


@pytest.mark.parametrize("modules", [("all-linear",), ("q_proj", "down_proj")])
def test_adapters_are_those_of_peft(modules: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = make("qwen3")
    shape = saved_shape(model, tmp_path)
    add_adapters_(model, LoraStudent(r=3, target_modules=modules))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.adapter_parameters(3, modules) == trained


def test_a_published_model() -> None:
    """4.02 billion parameters, as its model card says."""
    assert shape_of(QWEN3_4B, "config.json").parameters == 4_022_468_096


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", 10**9, "hidden_size must be a whole number from 1 to 16777216"),
        ("num_hidden_layers", -3, "num_hidden_layers must be a whole number from 1 to"),
        ("num_hidden_layers", 10**5, "num_hidden_layers must be a whole number from 1 to 10000"),
        ("num_attention_heads", 0, "num_attention_heads must be a whole number from 1 to"),
        ("vocab_size", 1.5, "vocab_size must be a whole number from 1 to"),
        ("vocab_size", True, "vocab_size must be a whole number from 1 to"),
        ("intermediate_size", None, "intermediate_size must be a whole number from 1 to"),
        ("model_type", "mamba", "no estimate for model_type 'mamba'; known are llama, mistral"),
        ("model_type", ["qwen3"], "no estimate for model_type"),
        ("decoder_sparse_step", 2, "experts in some layers only"),
    ],
)
def test_impossible_sizes_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_of({**QWEN3_4B, name: value}, "config.json")
