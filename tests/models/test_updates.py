"""Tuned minus base: exact, of the part asked for, of two checkpoints that belong together."""

import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.checkpoints import family_model, save_adapter, save_family
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.checkpoints import write_checkpoint
from effopd.models.layout import module_tensors, read_heads
from effopd.models.updates import AdapterUpdate, PairUpdate, Update, open_update, read_module
from effopd.models.weights import MemoryWeights, Weights, open_weights


class CountedWeights:
    """Counts how many of the tensors it gave out are alive at once.

    Args:
        weights: What to read.
        live: Shared by all the weights to count together.
    """

    def __init__(self, weights: Weights, live: "weakref.WeakSet[Tensor]") -> None:
        self._weights, self._live = weights, live
        self.most = 0

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._weights.shapes

    def dtype(self, name: str) -> torch.dtype:
        return self._weights.dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        tensor = self._weights.read(name, rows)
        self._live.add(tensor)
        self.most = max(self.most, len(self._live))
        return tensor


def memory_pair(dtype: torch.dtype = torch.float32) -> tuple[MemoryWeights, MemoryWeights]:
    base, tuned = (family_model("qwen3", seed=seed).to(dtype).state_dict() for seed in (0, 1))
    return MemoryWeights(base), MemoryWeights(tuned)


def saved_pair(directory: Path, family: str, **changes: object) -> tuple[Path, Path]:
    base = save_family(directory / "base", family, seed=0, **changes)  # type: ignore[arg-type]
    tuned = save_family(directory / "tuned", family, seed=1, **changes)  # type: ignore[arg-type]
    return base, tuned


# The update ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_it_is_subtracted_wide(dtype: torch.dtype) -> None:
    base, tuned = memory_pair(dtype)
    update = PairUpdate(base, tuned)
    assert update.shapes == base.shapes
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name in update.shapes:
        found = update.read(name)
        assert found.dtype == wide
        exact = tuned.read(name).double() - base.read(name).double()
        assert torch.equal(found, exact.to(wide)), name
        assert torch.equal(update.read_base(name), base.read(name))
        assert torch.equal(update.read_tuned(name), tuned.read(name))
        assert update.read_tuned(name).dtype == dtype


def test_two_precisions_are_subtracted_in_the_wider_one() -> None:
    base = {"w": torch.tensor([1.0]).bfloat16()}
    for dtype, wide in ((torch.float32, torch.float32), (torch.float64, torch.float64)):
        tuned = {"w": torch.tensor([1.0 + 2**-20], dtype=dtype)}
        for first, second, sign in ((base, tuned, 1), (tuned, base, -1)):
            found = PairUpdate(MemoryWeights(first), MemoryWeights(second)).read("w")
            assert found.dtype == wide
            assert found.item() == sign * 2**-20


def test_whole_numbers_and_truth_values() -> None:
    base = {"count": torch.tensor([3, 5]), "mask": torch.tensor([True, False])}
    tuned = {"count": torch.tensor([3, 4]), "mask": torch.tensor([True, True])}
    update = PairUpdate(MemoryWeights(base), MemoryWeights(tuned))
    assert update.read("count").tolist() == [0.0, -1.0]
    assert update.read("mask").tolist() == [0.0, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spoiled", [0, 1])
def test_a_model_that_diverged(value: float, spoiled: int) -> None:
    pair = [{"fine": torch.zeros(2), "w": torch.zeros(2, 2)} for _ in range(2)]
    pair[spoiled]["w"][1, 0] = value
    update = PairUpdate(*(MemoryWeights(tensors) for tensors in pair))
    assert not update.read("fine").any()
    with pytest.raises(NonFiniteError, match="the update of w holds a NaN or an infinity"):
        update.read("w")


# Places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3", "phi3", "gpt2", "gpt_oss", "qwen3_moe"])
def test_places_are_parts_of_the_whole_update(family: str, tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path, family, dtype=torch.bfloat16)
    update = open_update(base, tuned)
    found = module_tensors(update.shapes, read_heads(base))
    squares = 0.0
    for module in found:
        whole = update.read(module.name)
        whole = whole[module.expert] if module.batched else whole
        part = read_module(update, module)
        assert torch.equal(part, whole if module.rows is None else whole[slice(*module.rows)])
        assert tuple(part.shape) == module.shape
        squares += float(part.double().square().sum())
    total = sum(float(update.read(name).double().square().sum()) for name in update.shapes)
    assert squares == pytest.approx(total, rel=1e-12)


def test_only_the_rows_of_a_place_are_read() -> None:
    model = family_model("gpt_oss").state_dict() | family_model("phi3").state_dict()
    live: weakref.WeakSet[Tensor] = weakref.WeakSet()
    base = CountedWeights(MemoryWeights(model), live)
    asked: list[tuple[int, ...]] = []

    class Recorded(CountedWeights):
        def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
            tensor = super().read(name, rows)
            asked.append(tuple(tensor.shape))
            return tensor

    update = PairUpdate(base, Recorded(MemoryWeights(model), live))
    found = {module.label: module for module in module_tensors(update.shapes)}
    read_module(update, found["model.layers.0.mlp.experts.down_proj[2]"])
    read_module(update, found["model.layers.0.mlp.gate_up_proj.weight#up"])
    assert asked == [(1, 24, 16), (24, 16)]


# Memory -------------------------------------------------------------------------------------------


def counted_pair(directory: Path) -> tuple[Update, CountedWeights]:
    base, tuned = (open_weights(path) for path in saved_pair(directory, "phi3"))
    live: weakref.WeakSet[Tensor] = weakref.WeakSet()
    counted = CountedWeights(tuned, live)
    return PairUpdate(CountedWeights(base, live), counted), counted


def counted_adapter(directory: Path) -> tuple[Update, CountedWeights]:
    base = open_weights(save_family(directory / "base", "llama"))
    live: weakref.WeakSet[Tensor] = weakref.WeakSet()
    counted = CountedWeights(base, live)
    name = "model.layers.0.self_attn.q_proj"
    low = {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(16, 2)}
    whole = {"lm_head.weight": torch.zeros(20, 16)}
    return AdapterUpdate(counted, save_adapter(directory / "lora", low | whole)), counted


@pytest.mark.parametrize("make", [counted_pair, counted_adapter], ids=lambda make: make.__name__)
def test_at_most_two_stored_tensors_are_alive(
    make: Callable[[Path], tuple[Update, CountedWeights]], tmp_path: Path
) -> None:
    update, counted = make(tmp_path)
    kept = [read_module(update, module) for module in module_tensors(update.shapes)]
    assert len(kept) > 10  # keeping the updates keeps none of the tensors they came from
    assert 1 <= counted.most <= 2


# Opened -------------------------------------------------------------------------------------------


def test_a_checkpoint_of_a_run_against_its_base(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "qwen3")
    tuned = family_model("qwen3", seed=1)
    step = tmp_path / "run" / "checkpoints" / "step-00008"

    def write(directory: Path) -> None:
        tuned.save_pretrained(directory)
        (directory / "trainer_state.json").write_text("{}")
        save_file({"m": torch.zeros(1)}, directory / "optimizer.safetensors")

    write_checkpoint(step, write)
    update = open_update(base, step)
    assert "m" not in update.shapes
    name = "model.layers.1.mlp.up_proj.weight"
    expected = tuned.state_dict()[name] - family_model("qwen3").state_dict()[name]
    assert torch.equal(update.read(name), expected)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "qwen3")
    with pytest.raises(ConfigError, match="no model directory at"):
        open_update(base, tmp_path / "nowhere")
    adapter = save_adapter(tmp_path / "adapter", {})
    with pytest.raises(ConfigError, match="is an adapter: name its base model first"):
        open_update(adapter, base)


# Refused ------------------------------------------------------------------------------------------


def mismatch(base: dict[str, Tensor], tuned: dict[str, Tensor]) -> str:
    with pytest.raises(ParameterMismatchError) as error:
        PairUpdate(MemoryWeights(base), MemoryWeights(tuned))
    return str(error.value)


def test_tensors_that_only_one_model_has() -> None:
    both = {"b": torch.zeros(2), "d": torch.zeros(2)}
    more = both | {"c": torch.zeros(2), "a": torch.zeros(2)}
    expected = "2 tensors are in the {} checkpoint only, such as a. They are of different"
    assert mismatch(both, more).startswith(expected.format("tuned"))
    assert mismatch(more, both).startswith(expected.format("base"))


def test_a_head_that_only_one_model_ties(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "qwen3", tie_word_embeddings=True)
    tuned = save_family(tmp_path / "tuned", "qwen3")
    with pytest.raises(ParameterMismatchError, match=r"lm_head\.weight is in the tuned .* only, w"):
        open_update(base, tuned)


def test_shapes_and_padded_vocabularies() -> None:
    base = {"a": torch.zeros(2), "embed": torch.zeros(20, 4), "z": torch.zeros(3)}
    tuned = base | {"embed": torch.zeros(24, 4), "z": torch.zeros(4)}
    message = mismatch(base, tuned)
    assert message.startswith("embed has shape (20, 4) in the base and (24, 4) in the tuned")
    assert "one vocabulary was padded" in message
