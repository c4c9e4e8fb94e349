"""LoRA adapters against the product written out in float64, and what is not plain LoRA refused."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.checkpoints import save_adapter, save_tensors
from torch import Tensor

from effopd.errors import (
    CheckpointError,
    ConfigError,
    EffopdError,
    NonFiniteError,
    ParameterMismatchError,
)
from effopd.models.directory import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from effopd.models.lora import read_lora_settings
from effopd.models.updates import AdapterUpdate, PairUpdate
from effopd.models.weights import MemoryWeights

Q, QKV = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.qkv_proj"
GATE_UP, EMBED, HEAD = "model.layers.1.mlp.gate_up_proj", "model.embed_tokens", "lm_head"


def base_tensors() -> dict[str, Tensor]:
    shapes = {Q: (6, 5), QKV: (12, 5), GATE_UP: (8, 5), EMBED: (9, 5), HEAD: (9, 5)}
    return {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()} | {
        "model.norm.weight": torch.randn(5)
    }


def factors(name: str, out: int, into: int, rank: int = 2) -> dict[str, Tensor]:
    return {
        f"{name}.lora_A.weight": torch.randn(rank, into),
        f"{name}.lora_B.weight": torch.randn(out, rank),
    }


def product(tensors: dict[str, Tensor], name: str, scaling: float) -> Tensor:
    """The update written out in float64."""
    a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    rows = [
        [sum(float(b[i, k]) * float(a[k, j]) for k in range(a.shape[0])) for j in range(a.shape[1])]
        for i in range(b.shape[0])
    ]
    return scaling * torch.tensor(rows, dtype=torch.float64)


def update_of(directory: Path, tensors: dict[str, Tensor], **settings: Any) -> AdapterUpdate:
    return AdapterUpdate(
        MemoryWeights(base_tensors()), save_adapter(directory, tensors, **settings)
    )


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


# The update ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "rank", "scaling"),
    [
        ({}, 2, 4.0),
        ({"lora_alpha": 3}, 2, 1.5),
        ({"lora_alpha": 3.0, "use_rslora": True}, 2, 3 / math.sqrt(2)),
        ({"rank_pattern": {"q_proj": 1}}, 1, 8.0),
        ({"rank_pattern": {"q_proj": 1}, "use_rslora": True, "r": 16}, 1, 8.0),
        ({"alpha_pattern": {"q_proj": 1}}, 2, 0.5),
        ({"alpha_pattern": {r"layers\.[0-3]\.self_attn\.q_proj": 1}}, 2, 0.5),
        ({"alpha_pattern": {Q: 1, "q_proj": 6}}, 2, 0.5),
        ({"alpha_pattern": {"proj": 1, "q": 1, "layers.0": 1}}, 2, 4.0),
        ({"alpha_pattern": None, "rank_pattern": None, "fan_in_fan_out": None}, 2, 4.0),
    ],
)
def test_scaling(tmp_path: Path, settings: dict[str, Any], rank: int, scaling: float) -> None:
    tensors = factors(Q, 6, 5, rank)
    update = update_of(tmp_path, tensors, **settings)
    expected = product(tensors, Q, scaling)
    assert_close(update.read(f"{Q}.weight"), expected)
    assert update.read(f"{Q}.weight").dtype == torch.float32
    pair = update.factors(f"{Q}.weight")
    assert pair is not None
    assert (pair[0].shape, pair[1].shape) == ((6, rank), (rank, 5))
    assert_close(pair[0] @ pair[1], expected)


def test_it_is_the_update_of_the_merged_model(tmp_path: Path) -> None:
    base = {name: tensor.double() for name, tensor in base_tensors().items()}
    tensors = factors(Q, 6, 5) | factors(GATE_UP, 8, 5)
    adapted = AdapterUpdate(MemoryWeights(base), save_adapter(tmp_path, tensors))
    merged = base | {
        f"{name}.weight": base[f"{name}.weight"] + product(tensors, name, 4.0)
        for name in (Q, GATE_UP)
    }
    pair = PairUpdate(MemoryWeights(base), MemoryWeights(merged))
    assert adapted.shapes == pair.shapes
    for name in base:
        assert adapted.read(name).dtype == torch.float64
        torch.testing.assert_close(adapted.read(name), pair.read(name), rtol=1e-6, atol=1e-6)
        assert torch.equal(adapted.read_base(name), base[name])
        torch.testing.assert_close(adapted.read_tuned(name), merged[name], rtol=1e-6, atol=1e-6)


def test_tensors_without_an_adapter_have_a_zero_update(tmp_path: Path) -> None:
    update = update_of(tmp_path, factors(Q, 6, 5))
    assert update.adapted == {f"{Q}.weight"}
    for name in set(update.shapes) - update.adapted:
        assert tuple(update.read(name).shape) == update.shapes[name]
        assert not update.read(name).any()
        assert update.factors(name) is None
        assert torch.equal(update.read_tuned(name), update.read_base(name))
        update.read(name).add_(1.0)  # it is memory of its own
    assert update.read(f"{HEAD}.weight", (2, 5)).shape == (3, 5)


def test_fused_targets_and_rows(tmp_path: Path) -> None:
    tensors = factors(QKV, 12, 5) | factors(GATE_UP, 8, 5)
    update = update_of(tmp_path, tensors)
    for name in (QKV, GATE_UP):
        whole = product(tensors, name, 4.0)
        assert_close(update.read(f"{name}.weight"), whole)
        assert_close(update.read(f"{name}.weight", (2, 7)), whole[2:7])
        assert torch.equal(
            update.read_tuned(f"{name}.weight", (2, 7)),
            update.read_tuned(f"{name}.weight")[2:7],
        )


def test_a_base_that_stores_its_weights_transposed(tmp_path: Path) -> None:
    tensors = factors(Q, 5, 6)  # out 5, in 6; the base stores [in, out] = [6, 5]
    update = update_of(tmp_path, tensors, fan_in_fan_out=True)
    expected = product(tensors, Q, 4.0).T
    assert_close(update.read(f"{Q}.weight"), expected)
    assert_close(update.read(f"{Q}.weight", (1, 3)), expected[1:3])


def test_adapted_embeddings(tmp_path: Path) -> None:
    plain = factors(EMBED, 5, 9)
    tensors = {
        f"{EMBED}.lora_embedding_A": plain[f"{EMBED}.lora_A.weight"],
        f"{EMBED}.lora_embedding_B": plain[f"{EMBED}.lora_B.weight"],
    }
    update = update_of(tmp_path, tensors)
    assert_close(update.read(f"{EMBED}.weight"), product(plain, EMBED, 4.0).T)
    pair = update.factors(f"{EMBED}.weight")
    assert pair is not None
    assert (pair[0].shape, pair[1].shape) == ((9, 2), (2, 5))


def test_modules_to_save_take_the_place_of_the_base(tmp_path: Path) -> None:
    saved = {f"{HEAD}.weight": torch.randn(9, 5), "model.norm.weight": torch.randn(5)}
    update = update_of(tmp_path, saved | factors(Q, 6, 5), modules_to_save=["lm_head", "norm"])
    base = {name: update.read_base(name) for name in saved}
    for name, tensor in saved.items():
        assert torch.equal(update.read(name), tensor - base[name])
        assert update.factors(name) is None
    assert torch.equal(
        update.read(f"{HEAD}.weight", (3, 4)),
        (saved[f"{HEAD}.weight"] - base[f"{HEAD}.weight"])[3:4],
    )
    assert update.adapted == {f"{Q}.weight", *saved}


def test_an_embedding_saved_whole_and_adapted(tmp_path: Path) -> None:
    """PEFT writes the base layer of an adapted embedding too when its vocabulary was resized."""
    plain, whole = factors(EMBED, 5, 9), torch.randn(9, 5)
    update = update_of(tmp_path, {
        f"{EMBED}.base_layer.weight": whole,
        f"{EMBED}.lora_embedding_A": plain[f"{EMBED}.lora_A.weight"],
        f"{EMBED}.lora_embedding_B": plain[f"{EMBED}.lora_B.weight"],
    })  # fmt: skip
    name = f"{EMBED}.weight"
    moved = (whole - update.read_base(name)).double()
    assert_close(update.read(name), moved + product(plain, EMBED, 4.0).T)
    assert_close(update.read(name, (4, 6)), (moved + product(plain, EMBED, 4.0).T)[4:6])
    assert update.factors(name) is None


def test_an_update_that_is_not_finite(tmp_path: Path) -> None:
    tensors = factors(Q, 6, 5)
    tensors[f"{Q}.lora_B.weight"][0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"the update of model.*q_proj\.weight holds a NaN"):
        update_of(tmp_path, tensors).read(f"{Q}.weight")


def test_names_and_rows_that_are_not_there(tmp_path: Path) -> None:
    update = update_of(tmp_path, factors(Q, 6, 5))
    for call in (update.read, update.factors, update.read_base, update.read_tuned):
        with pytest.raises(ParameterMismatchError, match="no tensor 'nothing' in "):
            call("nothing")
    with pytest.raises(ParameterMismatchError, match="no rows 5 to 7"):
        update.read(f"{Q}.weight", (5, 7))


# Refused ------------------------------------------------------------------------------------------


def refusal(act: Callable[[], Any], kind: type[EffopdError]) -> str:
    with pytest.raises(kind) as error:
        act()
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"peft_type": "IA3"}, "describes an adapter of kind 'IA3', not LORA"),
        ({"peft_type": None}, "describes an adapter of kind None, not LORA"),
        ({"use_dora": True}, "sets use_dora"),
        ({"lora_bias": True}, "sets lora_bias"),
        ({"bias": "all"}, "trains biases (bias = 'all')"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "sets target_parameters"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "sets alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights too"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    ],
)
def test_what_is_not_plain_lora(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    save_adapter(tmp_path, factors(Q, 6, 5), **settings)
    message = refusal(lambda: read_lora_settings(tmp_path), ConfigError)
    assert expected in message
    assert "merge the adapter into its base model" in message


@pytest.mark.parametrize(
    "settings",
    [{"r": 0}, {"r": 2.0}, {"r": True}, {"lora_alpha": "8"}, {"lora_alpha": math.nan},
     {"rank_pattern": {"q_proj": 0}}, {"alpha_pattern": {"(": 1}}, {"rank_pattern": [1]}],
    ids=str,
)  # fmt: skip
def test_damaged_settings(tmp_path: Path, settings: dict[str, Any]) -> None:
    save_adapter(tmp_path, factors(Q, 6, 5), **settings)
    assert ADAPTER_CONFIG in refusal(lambda: read_lora_settings(tmp_path), ConfigError)


def test_missing_settings_and_files(tmp_path: Path) -> None:
    base = MemoryWeights(base_tensors())
    save_adapter(tmp_path, factors(Q, 6, 5))
    raw = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    del raw["r"]
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(raw))
    assert "is damaged: KeyError('r')" in refusal(lambda: read_lora_settings(tmp_path), ConfigError)
    (tmp_path / ADAPTER_CONFIG).unlink()
    assert "is missing" in refusal(lambda: AdapterUpdate(base, tmp_path), ConfigError)
    save_adapter(tmp_path, {})
    (tmp_path / ADAPTER_WEIGHTS).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n.")
    assert "pickled weights are refused" in refusal(
        lambda: AdapterUpdate(base, tmp_path), ConfigError
    )
    os.mkfifo(tmp_path / ADAPTER_WEIGHTS)
    assert "no regular file" in refusal(lambda: AdapterUpdate(base, tmp_path), ConfigError)


def test_tensors_without_the_prefix(tmp_path: Path) -> None:
    save_adapter(tmp_path, factors(Q, 6, 5))
    save_tensors(tmp_path, {"lm_head.weight": torch.zeros(9, 5)})
    (tmp_path / "model.safetensors").rename(tmp_path / ADAPTER_WEIGHTS)
    act = lambda: AdapterUpdate(MemoryWeights(base_tensors()), tmp_path)  # noqa: E731
    assert "lm_head.weight in" in refusal(act, CheckpointError)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (factors("model.layers.9.mlp.up_proj", 6, 5), "adapts model.layers.9.mlp.up_proj.weight, "
         "which the base does not hold"),
        (factors(Q, 6, 7), f"adapts {Q}.weight as (6, 7), the base holds (6, 5)"),
        (factors(Q, 5, 6), f"adapts {Q}.weight as (5, 6), the base holds (6, 5)"),
        (factors(Q, 6, 5, rank=3), "asks for [2, in] and [out, 2]"),
        ({"lm_head.weight": torch.zeros(10, 5)}, "as (10, 5), the base holds (9, 5)"),
        ({"score.weight": torch.zeros(1, 5)}, "adapts score.weight, which the base does not hold"),
        *((factors(Q, 6, 5) | {name: torch.zeros(6)}, f"{name} in {{path}} is of no kind that pl")
          for name in (f"{Q}.lora_magnitude_vector", f"{Q}.lora_B.bias", f"{Q}.lora_C.weight")),
        (dict([*factors(Q, 6, 5).items()][:1]), f"holds only one of the two factors of {Q}"),
    ],
    ids=range(10),
)  # fmt: skip
def test_adapters_that_do_not_fit(
    tmp_path: Path, tensors: dict[str, Tensor], expected: str
) -> None:
    kind = CheckpointError if "kind" in expected or "only" in expected else ParameterMismatchError
    message = refusal(lambda: update_of(tmp_path, tensors), kind)
    assert expected.format(path=tmp_path) in message
