"""Estimates against what tensors of real tiny models take."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.architectures import make
from torch.utils.flop_counter import FlopCounterMode

from effopd.doctor.footprint import (
    LAUNCH_S,
    Bytes,
    activation_bytes,
    cache_bytes,
    forward_operations,
    forward_seconds,
    gradient_bytes,
    head_gradient_bytes,
    mask_bytes,
    passing_bytes,
    search_bytes,
    tile_bytes,
    trained_bytes,
    writing_seconds,
)
from effopd.doctor.sizes import model_shape
from effopd.models.gpus import Gpu
from effopd.training.optimizers import OptimizerSettings, kept_numbers, make_optimizer

SHAPE = model_shape(
    {
        "model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 32,
        "tie_word_embeddings": True,
    },
    "config.json",
)  # fmt: skip


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
def test_activations_are_those_that_a_forward_pass_keeps(kind: str, dtype: torch.dtype) -> None:
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    model = make(kind, hidden_size=160, intermediate_size=600, num_hidden_layers=4, **sizes)
    shape = model_shape(model.to(dtype).config.to_dict(), "config.json")
    found = kept_bytes(model, 512)
    estimate = activation_bytes(shape, 512, dtype.itemsize, checkpointing=False)
    assert 0.85 < estimate / found < 1.25, (estimate, found)


def test_the_cache_is_that_of_the_model() -> None:
    model = make("qwen3", num_hidden_layers=3)
    shape = model_shape(model.config.to_dict(), "config.json")
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


@pytest.mark.parametrize("name", ["adamw", "prodigy", "schedule_free", "muon", "soap"])
def test_numbers_that_optimizers_keep_are_those_that_they_hold(name: str) -> None:
    shapes = {"a.weight": (6, 4), "b.weight": (5,), "lm_head.weight": (8, 4)}
    moved = {n: torch.ones(shape, requires_grad=True) for n, shape in shapes.items()}
    settings = OptimizerSettings(type=name)
    optimizer = make_optimizer(settings, moved)
    for tensor in moved.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    held = [v for state in optimizer.state.values() for v in state.values()]
    flat = [t for v in held for t in (v if isinstance(v, list) else [v])]
    numbers = sum(t.numel() for t in flat if isinstance(t, torch.Tensor) and t.ndim)
    assert kept_numbers(settings, shapes) == numbers


CLOSED_FORMS = [
    (trained_bytes(10, 2, masters=True, kept=40), Bytes(device=260)),
    (trained_bytes(10, 4, kept=40), Bytes(device=240)),
    (trained_bytes(10, 2, masters=True), Bytes(device=180)),
    (trained_bytes(10, 2, masters=True, offload=True), Bytes(device=20, host=160)),
    (search_bytes(10, 2, masters=False, on_device=False), Bytes(host=40)),
    (search_bytes(10, 2, masters=True, on_device=True), Bytes(device=80)),
    # A pass holds the larger of attention and network.
    (passing_bytes(SHAPE, 10, 4), 10 * (4 * (4 * 8 + 4 * 16) + 2 * 8 * 4)),
    (
        passing_bytes(replace(SHAPE, heads=16), 10, 2),
        10 * (2 * (4 * 8 + 2 * 64 + 3 * 4) + 2 * 8 * 4),
    ),
    (gradient_bytes(SHAPE, 10, 2), 2 * 10 * (4 * 16 + 2 * 8)),
    (
        gradient_bytes(replace(SHAPE, experts=8, experts_used=2), 10, 2),
        2 * 10 * (4 * 2 * 16 + 2 * 8),
    ),
    (head_gradient_bytes(SHAPE, 2), (4 + 2 * 2) * 32 * 8),
    (mask_bytes(1000, 1000), 3 * 1000 * 500),  # of two sequences or more
    (mask_bytes(1000, 100), 3 * 1000 * 100),
    (tile_bytes(SHAPE, 10), 2 * 4 * 10 * 32 + 4 * 10 * 8),
    (tile_bytes(SHAPE, 10**8), 2 * 2**28 + 4 * 10**8 * 8),
]


@pytest.mark.parametrize(("found", "expected"), CLOSED_FORMS)
def test_closed_forms(found: object, expected: object) -> None:
    assert found == expected


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    whole = activation_bytes(SHAPE, 10, 4, checkpointing=False)
    less = activation_bytes(SHAPE, 10, 4, checkpointing=True)
    assert less == whole // 2 + 2 * 8 * 10 * 4


def test_seconds_follow_operations_and_bytes() -> None:
    gpu = Gpu(name="", memory_bytes=1, flops=2 * SHAPE.active_parameters / 0.4, bandwidth=1e30)
    assert forward_seconds(SHAPE, 10, gpu) == pytest.approx(10)
    assert writing_seconds(SHAPE, 4, 3, 2, 4, gpu) == pytest.approx(2 * 3 * 2)
    slow = Gpu(name="", memory_bytes=1, flops=1e30, bandwidth=SHAPE.parameters * 4 / 0.6)
    assert writing_seconds(SHAPE, 1, 1, 8, 4, slow) == pytest.approx(1)
    fast = Gpu(name="", memory_bytes=1, flops=1e30, bandwidth=1e30)
    one_by_one = writing_seconds(SHAPE, 4, 3, 2, 4, fast, launched=True)
    assert one_by_one == pytest.approx(2 * 3 * LAUNCH_S * SHAPE.layers)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_operations_of_a_pass_are_those_counted(kind: str) -> None:
    model = make(kind, hidden_size=64, intermediate_size=192, head_dim=32)
    shape = model_shape(model.config.to_dict(), "config.json")
    ids = torch.ones(4, 32, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(input_ids=ids)
    assert forward_operations(shape, 4 * 32, 32) == pytest.approx(
        counted.get_total_flops(), rel=0.2
    )


def test_attention_grows_with_the_length_as_counted() -> None:
    """The counter takes whole squares, of which a causal mask leaves half."""
    model = make("qwen3")
    shape = model_shape(model.config.to_dict(), "config.json")
    model.set_attn_implementation("eager")  # the counter does not know the CPU's fused kernel
    counts = []
    for length in (64, 128):
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            model(input_ids=torch.ones(1, length, dtype=torch.long))
        counts.append(counted.get_total_flops())
    grown = (counts[1] - 2 * counts[0]) / 2
    ours = forward_operations(shape, 128, 128) - 2 * forward_operations(shape, 64, 64)
    assert ours == pytest.approx(grown, rel=0.2)
