"""Changed copies of a model: whole and atomic."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.fakes import TOKENIZER
from tests.support.chat import chat_model
from tests.support.checkpoints import save_family, save_tensors
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.checkpoints import verify_checkpoint
from effopd.models.directory import INDEX, SINGLE
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.saving import save_model, write_model, write_weights
from effopd.models.updates import PairUpdate
from effopd.models.weights import MemoryWeights, open_weights

UP = "model.layers.1.mlp.up_proj.weight"


def unchanged(name: str, tensor: Tensor) -> Tensor:
    return tensor


def assert_same(first: Path, second: Path) -> None:
    one, two = open_weights(first), open_weights(second)
    assert one.shapes == two.shapes
    for name in one.shapes:
        assert one.dtype(name) == two.dtype(name)
        ours, theirs = one.read(name).contiguous(), two.read(name).contiguous()
        assert torch.equal(ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8))


# What a trained model says of itself --------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "ends", "expected"),
    [(0, (0, 2), [0, 2]), ([2], (0, 2), [2, 0]), ([2, 0, 9], (0, 2), [2, 0, 9]), (None, (2,), [2])],
)
def test_generation_settings_name_every_end_that_was_trained(
    tmp_path: Path, said: Any, ends: tuple[int, ...], expected: list[int]
) -> None:
    """Those of the source stay; a file that names all ends already is not rewritten."""
    chat_model().save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "generation_config.json"
    path.write_text(json.dumps({"top_p": 0.9} | ({} if said is None else {"eos_token_id": said})))
    model = load_model(ModelSettings(path=str(tmp_path / "source")))
    (tmp_path / "out").mkdir()
    save_model(model, tmp_path / "out", ends)
    written = tmp_path / "out" / "generation_config.json"
    assert json.loads(written.read_text()) == {"top_p": 0.9, "eos_token_id": expected}
    if said == expected:
        assert written.read_bytes() == path.read_bytes()


# Copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_size", ["1GB", "4KB"])
@pytest.mark.parametrize("shard_bytes", [10**9, 5000, 1])
def test_the_identity_copies_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, shard_size: str, shard_bytes: int
) -> None:
    source = save_family(tmp_path / "base", "qwen3", dtype=dtype, shard_size=shard_size)
    copy = tmp_path / "made" / "copy"
    write_model(copy, source, unchanged, shard_bytes=shard_bytes)
    assert_same(source, copy)
    verify_checkpoint(copy)
    kind: Any = str(dtype).removeprefix("torch.")
    models = [load_model(ModelSettings(path=str(path), dtype=kind)) for path in (source, copy)]
    for (name, ours), theirs in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("family", ["phi3", "qwen3_moe", "gpt2", "gpt_neox"])
def test_other_families_give_the_same_logits(family: str, tmp_path: Path) -> None:
    source = save_family(tmp_path / "base", family)
    write_model(tmp_path / "copy", source, unchanged, shard_bytes=4000)
    ids = torch.tensor([[3, 7, 5]])
    with torch.no_grad():
        ours, theirs = (
            load_model(ModelSettings(path=str(tmp_path / name)))(ids).logits
            for name in ("base", "copy")
        )
    assert torch.equal(ours, theirs)


def test_dtypes_of_all_kinds_in_one_file(tmp_path: Path) -> None:
    source = save_tensors(tmp_path / "base", {
        "a": torch.tensor([True, False, True]), "b": torch.arange(3).to(torch.uint8),
        "c": torch.randn(3).bfloat16(), "d": torch.randn(1, 3).half(), "e": torch.tensor(1.5),
        "f": torch.randn(3, 1).double(), "g": torch.arange(5), "h": torch.zeros(0, 4),
    })  # fmt: skip
    for shard_bytes in (1000, 20):
        write_model(tmp_path / "copy", source, unchanged, shard_bytes=shard_bytes)
        assert_same(source, tmp_path / "copy")


def test_changes_are_rounded_to_the_stored_dtype(tmp_path: Path) -> None:
    source = save_family(tmp_path / "base", "qwen3", dtype=torch.bfloat16)
    write_model(tmp_path / "changed", source, lambda n, t: t.double() * 1.3 if n == UP else t)
    base, changed = open_weights(source), open_weights(tmp_path / "changed")
    for name in base.shapes:
        before = base.read(name)
        expected = (before.double() * 1.3).bfloat16() if name == UP else before
        assert torch.equal(changed.read(name), expected), name


def test_base_plus_update_is_the_tuned_model(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "qwen3", dtype=torch.bfloat16)
    tuned = save_family(tmp_path / "tuned", "qwen3", dtype=torch.bfloat16, seed=1)
    update = PairUpdate(open_weights(base), open_weights(tuned))
    write_model(tmp_path / "sum", base, lambda n, t: t.float() + update.read(n))
    assert_same(tmp_path / "sum", tuned)


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    source = save_family(tmp_path / "base", "qwen3", tie_word_embeddings=True)
    write_model(tmp_path / "half", source, lambda n, t: t / 2 if "embed" in n else t)
    assert "lm_head.weight" not in open_weights(tmp_path / "half").shapes
    model = load_model(ModelSettings(path=str(tmp_path / "half")))
    before = open_weights(source).read("model.embed_tokens.weight")
    assert torch.equal(model.lm_head.weight, before / 2)


# Files --------------------------------------------------------------------------------------------


def test_shards_are_filled_in_order_up_to_their_size(tmp_path: Path) -> None:
    tensors = {str(i): torch.full((size,), float(i)) for i, size in enumerate([4, 4, 9, 2, 2, 2])}
    write_weights(tmp_path, MemoryWeights(tensors), unchanged, shard_bytes=32)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 4 * 23}
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    held = [sorted(load_file(tmp_path / name)) for name in names]
    assert held == [["0", "1"], ["2"], ["3", "4", "5"]]
    assert index["weight_map"] == {
        key: file for file, keys in zip(names, held, strict=True) for key in keys
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, INDEX]


def test_what_is_copied_and_what_is_not(tmp_path: Path) -> None:
    source = save_family(tmp_path / "base", "qwen3")
    TOKENIZER.save_pretrained(source)
    for name in ("optimizer.safetensors", "trainer_state.json", "evil.py", "manifest.json"):
        (source / name).write_text("{}")
    write_model(tmp_path / "copy", source, unchanged)
    files = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= files
    assert not files & {"optimizer.safetensors", "trainer_state.json", "evil.py"}
    for name in files - {"manifest.json", SINGLE}:
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    loaded = load_tokenizer(ModelSettings(path=str(tmp_path / "copy")))
    assert loaded.get_vocab() == TOKENIZER.get_vocab()


# Refused ------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_family(tmp_path / "base", "qwen3", dtype=torch.float16)


def left_over(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "base")


def test_changed_shapes(source: Path, tmp_path: Path) -> None:
    message = f"{UP} was changed from shape (24, 16) to (12, 16)"
    with pytest.raises(ParameterMismatchError) as error:
        write_model(tmp_path / "out", source, lambda n, t: t[:12] if n == UP else t)
    assert message in str(error.value)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_numbers_that_cannot_be_stored(source: Path, tmp_path: Path, value: float) -> None:
    """1e30 is finite, and infinite in float16."""

    def spoil(name: str, tensor: Tensor) -> Tensor:
        wide = tensor.float()
        if name == UP:
            wide[3, 2] = value
        return wide

    with pytest.raises(NonFiniteError, match=r"up_proj\.weight holds a NaN or an infinity"):
        write_model(tmp_path / "out", source, spoil)
    assert left_over(tmp_path) == []


def test_a_failing_hook_leaves_the_earlier_copy(source: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "out", source, lambda n, t: t * 2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fail(name: str, tensor: Tensor) -> Tensor:
        raise KeyError(name)

    with pytest.raises(KeyError):
        write_model(tmp_path / "out", source, fail)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    write_model(tmp_path / "out", source, unchanged)
    assert_same(tmp_path / "out", source)
    assert left_over(tmp_path) == ["out"]


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(first: Path, second: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_model(tmp_path / "out", source, unchanged)
    assert left_over(tmp_path) == []


def test_directories_that_would_be_lost(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the model to copy: choose another directory"):
        write_model(tmp_path / "x" / ".." / "base", source, unchanged)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and was not written by effopd"):
        write_model(mine, source, unchanged)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_sizes_and_sources(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shard_bytes must be at least 1, got 0"):
        write_model(tmp_path / "out", source, unchanged, shard_bytes=0)
    with pytest.raises(ConfigError, match="no model directory at"):
        write_model(tmp_path / "out", tmp_path / "nowhere", unchanged)
    (source / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        write_model(tmp_path / "out", source, unchanged)
    assert left_over(tmp_path) == []
