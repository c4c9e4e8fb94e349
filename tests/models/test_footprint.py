"""Estimates against what tensors of real tiny models take."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import make

from effopd.errors import ConfigError
from effopd.models.footprint import (
    GPUS,
    LAUNCH_S,
    Bytes,
    Gpu,
    activation_bytes,
    cache_bytes,
    forward_seconds,
    gpu_named,
    gradient_bytes,
    head_gradient_bytes,
    mask_bytes,
    passing_bytes,
    search_bytes,
    tile_bytes,
    trained_bytes,
    writing_seconds,
)
from effopd.models.shapes import ModelShape, shape_of

SHAPE = ModelShape(
    hidden=8, layers=2, heads=2, kv_heads=1, head_width=4, width=16, vocabulary=32, tied=True
)


def shape_of_model(model: Any, directory: Path) -> ModelShape:
    model.config.save_pretrained(directory)
    path = directory / "config.json"
    return shape_of(json.loads(path.read_text()), path)


def kept_bytes(model: Any, tokens: int) -> int:
    """Bytes of the distinct storages that a forward pass keeps, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    own |= {b.untyped_storage().data_ptr() for b in model.buffers()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.base_model(input_ids=torch.ones(1, tokens, dtype=torch.long))
    assert output.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral"])
def test_activations_are_those_that_a_forward_pass_keeps(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    model = make(kind, hidden_size=160, intermediate_size=600, num_hidden_layers=4, **sizes)
    shape = shape_of_model(model.to(dtype), tmp_path)
    found = kept_bytes(model, 512)
    estimate = activation_bytes(shape, 512, dtype.itemsize, checkpointing=False)
    assert 0.85 < estimate / found < 1.25, (estimate, found)


def test_the_cache_is_that_of_the_model(tmp_path: Path) -> None:
    model = make("qwen3", num_hidden_layers=3)
    shape = shape_of_model(model, tmp_path)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(shape, 10, 4) == held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_bytes_are_those_of_adamw(dtype: torch.dtype) -> None:
    weights = torch.nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = torch.optim.AdamW([weights])
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    moments = sum(optimizer.state[weights][name].nbytes for name in ("exp_avg", "exp_avg_sq"))
    held = weights.nbytes + weights.grad.nbytes + moments
    assert trained_bytes(100, weights.itemsize) == Bytes(device=held)


def test_masters_are_float32_and_go_to_the_host_with_the_optimizer() -> None:
    assert trained_bytes(10, 2, masters=True) == Bytes(device=180)
    assert trained_bytes(10, 2, masters=True, offload=True) == Bytes(device=20, host=160)


def test_anchor_and_tip() -> None:
    assert search_bytes(10, 2, masters=False, on_device=False) == Bytes(host=40)
    assert search_bytes(10, 2, masters=True, on_device=True) == Bytes(device=80)


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    whole = activation_bytes(SHAPE, 10, 4, checkpointing=False)
    less = activation_bytes(SHAPE, 10, 4, checkpointing=True)
    assert less == whole // 2 + 2 * 8 * 10 * 4


def test_a_pass_holds_the_larger_of_attention_and_network() -> None:
    assert passing_bytes(SHAPE, 10, 4) == 10 * (4 * (4 * 8 + 4 * 16) + 2 * 8 * 4)
    wide = replace(SHAPE, heads=16)
    assert passing_bytes(wide, 10, 2) == 10 * (2 * (4 * 8 + 2 * 64 + 3 * 4) + 2 * 8 * 4)


def test_gradients_of_a_layer_and_of_the_head() -> None:
    assert gradient_bytes(SHAPE, 10, 2) == 2 * 10 * (4 * 16 + 2 * 8)
    assert head_gradient_bytes(SHAPE, 2) == (4 + 2 * 2) * 32 * 8
    experts = replace(SHAPE, experts=8, experts_used=2)
    assert gradient_bytes(experts, 10, 2) == 2 * 10 * (4 * 2 * 16 + 2 * 8)


def test_a_mask_is_that_of_two_sequences_or_more() -> None:
    assert mask_bytes(1000, 1000) == 3 * 1000 * 500
    assert mask_bytes(1000, 100) == 3 * 1000 * 100


def test_tiles_are_bounded() -> None:
    assert tile_bytes(SHAPE, 10) == 2 * 4 * 10 * 32 + 4 * 10 * 8
    assert tile_bytes(SHAPE, 10**8) == 2 * 2**28 + 4 * 10**8 * 8


def test_seconds_follow_operations_and_bytes() -> None:
    gpu = Gpu(name="", memory_bytes=1, flops=2 * SHAPE.active_parameters / 0.4, bandwidth=1e30)
    assert forward_seconds(SHAPE, 10, gpu) == pytest.approx(10)
    assert writing_seconds(SHAPE, 4, 3, 2, 4, gpu) == pytest.approx(2 * 3 * 2)
    slow = Gpu(name="", memory_bytes=1, flops=1e30, bandwidth=SHAPE.parameters * 4 / 0.6)
    assert writing_seconds(SHAPE, 1, 1, 8, 4, slow) == pytest.approx(1)
    fast = Gpu(name="", memory_bytes=1, flops=1e30, bandwidth=1e30)
    one_by_one = writing_seconds(SHAPE, 4, 3, 2, 4, fast, launched=True)
    assert one_by_one == pytest.approx(2 * 3 * LAUNCH_S * SHAPE.layers)


def test_cards_by_name_size_and_bytes() -> None:
    assert gpu_named("H100").memory_bytes == 80 * 10**9
    assert gpu_named("h100 94GB") == Gpu(
        name="h100 94GB", memory_bytes=94 * 10**9, flops=989e12, bandwidth=3.35e12
    )
    assert gpu_named("24GB").memory_bytes == 24 * 10**9
    drivers = {
        "NVIDIA A100-SXM4-80GB": ("A100", 80), "NVIDIA H100 80GB HBM3": ("H100", 80),
        "NVIDIA GeForce RTX 4090": ("RTX4090", 24), "NVIDIA H200": ("H200", 141),
    }  # fmt: skip
    for text, (name, gb) in drivers.items():
        found = gpu_named(text)
        assert (found.memory_bytes, found.flops) == (gb * 10**9, GPUS[name].flops)
    assert gpu_named("B300 288GB").flops == 0
    assert gpu_named("1234") == Gpu(name="1234 bytes", memory_bytes=1234)
    assert all(gpu_named(name).name == name for name in GPUS)


@pytest.mark.parametrize("text", ["", "H1000", "0", "0GB", "80 MB", "-5", "9" * 99, "H100\n80"])
def test_other_cards_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu must be one of H20, H100"):
        gpu_named(text)
