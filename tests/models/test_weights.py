"""Tensors read one at a time, and damaged or hostile checkpoints refused before any is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.checkpoints import save_family, save_shards, save_tensors, write_index
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, EffopdError, ParameterMismatchError
from effopd.models.directory import INDEX, SINGLE, read_config
from effopd.models.loading import ModelSettings, load_model
from effopd.models.weights import (
    MemoryWeights,
    Weights,
    open_weights,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


def tensors() -> dict[str, Tensor]:
    made = {f"of.{str(d)[6:]}": torch.arange(12).reshape(4, 3).to(d) for d in DTYPES}
    return made | {"flags": torch.tensor([True, False]), "scalar": torch.tensor(2.5)}


def halves() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    items = list(tensors().items())
    return dict(items[:4]), dict(items[4:])


def in_memory(directory: Path) -> Weights:
    return MemoryWeights(tensors())


def in_one_file(directory: Path) -> Weights:
    return open_weights(save_tensors(directory, tensors()))


def in_shards(directory: Path) -> Weights:
    return open_weights(save_shards(directory, *halves()))


# Every kind of weights ----------------------------------------------------------------------------

KINDS: list[Callable[[Path], Weights]] = [in_memory, in_one_file, in_shards]


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> Weights:
    made: Weights = request.param(tmp_path)
    return made


def test_tensors_come_back_bit_for_bit(weights: Weights) -> None:
    expected = tensors()
    assert dict(weights.shapes) == {name: tuple(t.shape) for name, t in expected.items()}
    for name, tensor in expected.items():
        assert weights.dtype(name) == tensor.dtype
        assert torch.equal(weights.read(name), tensor)


def test_rows_are_those_of_the_first_axis(weights: Weights) -> None:
    for name, tensor in tensors().items():
        if tensor.dim():
            assert torch.equal(weights.read(name, (1, 2)), tensor[1:2])


@pytest.mark.parametrize("rows", [(2, 2), (3, 2), (-1, 2), (0, 5), (4, 5)])
def test_rows_that_are_not_there(weights: Weights, rows: tuple[int, int]) -> None:
    with pytest.raises(ParameterMismatchError, match=r"of.float32 has shape \(4, 3\): no rows"):
        weights.read("of.float32", rows)
    with pytest.raises(ParameterMismatchError, match=r"scalar has shape \(\): no rows"):
        weights.read("scalar", rows)


def test_names_that_are_not_there(weights: Weights) -> None:
    for call in (weights.read, weights.dtype):
        with pytest.raises(ParameterMismatchError, match=r"no tensor 'lm_head' in .* 8 tensors"):
            call("lm_head")


def test_shapes_cannot_be_changed(weights: Weights) -> None:
    with pytest.raises(TypeError):
        weights.shapes["scalar"] = (1,)  # type: ignore[index]


# In memory ----------------------------------------------------------------------------------------


def test_a_tied_head_counts_once_under_the_first_name() -> None:
    tied, other = torch.randn(4, 3), torch.randn(4, 3)
    weights = MemoryWeights({"embed": tied, "head": tied, "other": other, "row": tied[0]})
    assert list(weights.shapes) == ["embed", "other", "row"]
    empty = MemoryWeights({"a": torch.zeros(0), "b": torch.zeros(0)})
    assert list(empty.shapes) == ["a", "b"]


def test_what_is_read_follows_the_live_tensor() -> None:
    live = torch.nn.Parameter(torch.zeros(2))
    weights = MemoryWeights({"live": live})
    with torch.no_grad():
        live.fill_(3.0)
    assert weights.read("live").tolist() == [3.0, 3.0]
    assert not weights.read("live").requires_grad


# On disk ------------------------------------------------------------------------------------------


def test_a_tied_model_has_no_head_on_disk_as_in_memory(tmp_path: Path) -> None:
    weights = open_weights(save_family(tmp_path, "qwen3", tie_word_embeddings=True))
    model = load_model(ModelSettings(path=str(tmp_path)))
    assert set(weights.shapes) == set(MemoryWeights(model.state_dict()).shapes)
    assert "lm_head.weight" in model.state_dict()
    assert "lm_head.weight" not in weights.shapes


MEMORY = """
import sys
from pathlib import Path
from effopd.models.weights import open_weights

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(l.split()[1]) for l in lines if l.startswith("VmHWM"))

weights = open_weights(Path(sys.argv[1]))
weights.read("0").sum()  # what the first sum sets up
for held in ([], [weights.read("0")]):
    before = peak_bytes()
    for name in weights.shapes:
        tensor = weights.read(name)
        tensor.sum()
        if held:
            held.append(tensor)
        del tensor
    print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_a_dropped_tensor_gives_its_memory_back(tmp_path: Path) -> None:
    size = 4 << 20
    save_tensors(tmp_path, {str(i): torch.zeros(size // 4) for i in range(16)})
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    dropped, held = map(int, done.stdout.split())
    assert dropped < 3 * size
    assert held > 12 * size  # the measurement can fail


# Refused ------------------------------------------------------------------------------------------


def refusal(directory: Path, kind: type[EffopdError] = CheckpointError) -> str:
    with pytest.raises(kind) as error:
        open_weights(directory)
    return str(error.value)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save_shards(tmp_path / "model", *halves())


def test_no_directory_adapters_and_quantized_weights(sharded: Path) -> None:
    assert "no model directory at" in refusal(sharded / "nowhere", ConfigError)
    (sharded / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    assert "dequantize the model" in refusal(sharded, ConfigError)
    (sharded / "config.json").write_text('{"quantization_config": null}')
    open_weights(sharded)
    (sharded / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refusal(sharded, ConfigError)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000], ids=lambda text: text[:5])
def test_damaged_config(sharded: Path, content: str) -> None:
    (sharded / "config.json").write_text(content)
    assert "config.json is damaged" in refusal(sharded, ConfigError)


def test_a_config_that_is_a_pipe(sharded: Path) -> None:
    os.mkfifo(sharded / "config.json")
    with pytest.raises(ConfigError, match=r"config\.json is missing or no regular file"):
        read_config(sharded)


@pytest.mark.parametrize("damage", [
    lambda b: b"", lambda b: b[:-1], lambda b: b + b"x",
    lambda b: b"\xff" * 99, lambda b: b[:8] + b"[" + b[9:],
    lambda b: b.replace(b'"F64"', b'"F32"'), lambda b: b.replace(b"[4,3]", b"[4,4]"),
], ids=["empty", "short", "long", "noise", "no-json", "dtype", "shape"])  # fmt: skip
def test_damaged_shards(sharded: Path, damage: Callable[[bytes], bytes]) -> None:
    path = sharded / "a.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(sharded)
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith("): download or export it again")


def test_index_and_shards_must_list_the_same_tensors(sharded: Path) -> None:
    shard_of = json.loads((sharded / INDEX).read_text())["weight_map"]
    write_index(sharded, shard_of | {"more": "b.safetensors"})
    assert "lists more, which is not in b.safetensors" in refusal(sharded)
    write_index(sharded, shard_of | {"scalar": "a.safetensors"})
    assert "lists scalar, which is not in a.safetensors" in refusal(sharded)
    write_index(sharded, {n: s for n, s in shard_of.items() if n != "scalar"})
    assert "b.safetensors of" in refusal(sharded)
    assert "holds scalar, which model.safetensors.index.json does not list" in refusal(sharded)


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    first, second = halves()
    save_shards(tmp_path, first | {"scalar": torch.zeros(())}, second)
    assert "scalar is in both a.safetensors and b.safetensors" in refusal(tmp_path)


def test_numbers_of_a_kind_that_is_not_a_weight(tmp_path: Path) -> None:
    save_tensors(tmp_path, {"w": torch.zeros(2).to(torch.float8_e4m3fn)})
    assert "w in " in refusal(tmp_path)
    assert "is stored as F8_E4M3; can be read: F64, F32, F16, BF16" in refusal(tmp_path)


def test_a_file_that_goes_or_changes_after_it_was_opened(tmp_path: Path) -> None:
    weights = open_weights(save_tensors(tmp_path, tensors()))
    save_file({"other": torch.zeros(1)}, tmp_path / SINGLE)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="scalar cannot be read"):
            weights.read("scalar")
        (tmp_path / SINGLE).unlink(missing_ok=True)
