"""Changed weights in a live model for a while, and in a new checkpoint."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model
from tests.reference import interventions_twin as twin
from tests.reference.core_twin import bits
from torch import Tensor

from effopd.analysis.applying import Footprint, intervened, write_intervened
from effopd.analysis.interventions import (
    BlockSwap,
    EmbeddingReplacement,
    Intervention,
    NormScaling,
    SlidingWindow,
    WholeScaling,
)
from effopd.analysis.modules import module_norms, tensor_modules
from effopd.analysis.ranks import BottomRank, TopRank
from effopd.errors import NonFiniteError, ParameterMismatchError
from effopd.models.checkpoints import verify_checkpoint
from effopd.models.loading import ModelSettings, load_model
from effopd.models.updates import PairUpdate, open_update
from effopd.models.weights import MemoryWeights, SafetensorsWeights, open_weights

Point = dict[str, Tensor]


def point_of(model: torch.nn.Module) -> Point:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def pair(base: Point, tuned: Point) -> PairUpdate:
    return PairUpdate(MemoryWeights(base), MemoryWeights(tuned))


def all_bits(point: Point) -> dict[str, list[int]]:
    return {name: bits(tensor) for name, tensor in point.items()}


BASE, TUNED = point_of(tiny_model(0)), point_of(tiny_model(1))


def save(directory: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    tiny_model(seed).to(dtype).save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return directory


# Live models --------------------------------------------------------------------------------------


def test_the_model_is_changed_inside_and_put_back_bit_for_bit() -> None:
    model = tiny_model(2)
    with torch.no_grad():
        model.lm_head.weight[0, :2] = torch.tensor([-0.0, 1e-40])
    before = all_bits(point_of(model))
    changed = WholeScaling(scale=0.5).apply(pair(BASE, TUNED))
    with intervened(model, changed):
        assert all_bits(point_of(model)) == {n: bits(changed.read(n)) for n in changed.shapes}
    assert all_bits(point_of(model)) == before


@pytest.mark.parametrize("fails_at", ["inside", "half way"])
def test_an_error_puts_the_model_back_too(fails_at: str) -> None:
    model = tiny_model(2)
    before = all_bits(point_of(model))
    tuned = dict(TUNED)
    if fails_at == "half way":
        tuned["lm_head.weight"] = torch.full_like(tuned["lm_head.weight"], torch.nan)
    error = RuntimeError if fails_at == "inside" else NonFiniteError
    changed = WholeScaling(scale=0.5).apply(pair(BASE, tuned))
    with pytest.raises(error), intervened(model, changed):
        raise RuntimeError
    assert all_bits(point_of(model)) == before


def test_the_base_may_be_the_live_model_itself() -> None:
    model = tiny_model(0)
    changed = WholeScaling(scale=3.0).apply(
        PairUpdate(MemoryWeights(model.state_dict()), MemoryWeights(TUNED))
    )
    with intervened(model, changed):
        found = point_of(model)
    expected = twin.scaled(BASE, TUNED, 3.0)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert all_bits(point_of(model)) == all_bits(BASE)


def test_a_footprint_says_how_far_and_how_many() -> None:
    still = {n: (BASE if "layers.0" in n else TUNED)[n] for n in BASE}
    update = pair(BASE, still)
    equal = sum(torch.equal(still[n], BASE[n]) for n in BASE)
    layer = sum("layers.0" in n for n in BASE)
    assert equal > layer > 0  # norms are ones in both models
    with intervened(tiny_model(0), WholeScaling(scale=0.5).apply(update)) as footprint:
        pass
    assert footprint.update_norm == pytest.approx(0.5 * twin.whole_norm(BASE, still), rel=1e-6)
    assert (footprint.changed, footprint.at_base) == (len(BASE) - equal, equal)
    assert footprint.never_moved == equal
    with intervened(tiny_model(0), EmbeddingReplacement(into="base").apply(update)) as footprint:
        pass
    assert (footprint.changed, footprint.at_base) == (2, len(BASE) - 2)
    assert footprint.never_moved == equal


def test_every_expert_that_never_moved_is_counted() -> None:
    names = ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"]
    base = {names[0]: torch.ones(3, 8, 6), names[1]: torch.ones(3, 6, 4)}
    tuned = {n: t.clone() for n, t in base.items()}
    tuned[names[0]][0] = 2  # gate and up of the first expert
    tuned[names[1]][:2] = 2
    update = pair(base, tuned)
    footprint = Footprint()
    for name, found in tensor_modules(update).items():
        footprint.add(update, name, tuned[name], found)
    assert (footprint.changed, footprint.never_moved) == (2, 2 * 2 + 1)


def test_tied_tensors_are_written_once_and_must_agree() -> None:
    model = tiny_model(0)
    model.lm_head.weight = model.model.embed_tokens.weight
    base = point_of(model)
    tuned = {n: t + 1 for n, t in base.items()}
    with intervened(model, WholeScaling(scale=2.0).apply(pair(base, tuned))) as footprint:
        torch.testing.assert_close(model.lm_head.weight, base["lm_head.weight"] + 2)
    assert footprint.changed == len(base) - 1
    assert all_bits(point_of(model)) == all_bits(base)
    one_of_two = EmbeddingReplacement(part="head", into="base").apply(pair(base, tuned))
    message = r"model.embed_tokens.weight and lm_head.weight are one tensor .* different values"
    with pytest.raises(ParameterMismatchError, match=message), intervened(model, one_of_two):
        pass
    without = {n: t for n, t in base.items() if n != "lm_head.weight"}  # as a checkpoint stores it
    changed = WholeScaling(scale=1.0).apply(pair(without, {n: tuned[n] for n in without}))
    with intervened(model, changed):
        torch.testing.assert_close(model.lm_head.weight, tuned["lm_head.weight"])


def test_a_model_of_other_tensors_is_refused_untouched() -> None:
    model = tiny_model(2)
    before = all_bits(point_of(model))
    more = {**BASE, "extra": torch.zeros(2)}
    fewer = {n: t for n, t in BASE.items() if n != "lm_head.weight"}
    other = {n: t[:1] if n == "lm_head.weight" else t for n, t in BASE.items()}
    for base, message in (
        (more, r"extra of shape \(2,\) is not there in Qwen3ForCausalLM"),
        (fewer, "lm_head.weight of Qwen3ForCausalLM is not among the changed weights"),
        (other, r"lm_head.weight of shape \(1, 32\) is \(16, 32\) in Qwen3ForCausalLM"),
    ):
        changed = WholeScaling(scale=0.5).apply(pair(base, base))
        with pytest.raises(ParameterMismatchError, match=message), intervened(model, changed):
            pass
    assert all_bits(point_of(model)) == before


# Checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_written_model_is_the_model_in_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    base, tuned = save(tmp_path / "base", 0, dtype), save(tmp_path / "tuned", 1, dtype)
    changed = NormScaling(final=0.25).apply(open_update(base, tuned))
    written = write_intervened(tmp_path / "out", base, changed)
    verify_checkpoint(tmp_path / "out")
    weights = open_weights(tmp_path / "out")
    live = load_model(ModelSettings(path=str(base), dtype=str(dtype).removeprefix("torch.")))
    with intervened(live, changed) as footprint:
        inside = point_of(live)
    assert {n: bits(weights.read(n)) for n in weights.shapes} == all_bits(inside)
    assert {weights.dtype(n) for n in weights.shapes} == {dtype}
    assert written == footprint
    assert written.update_norm == pytest.approx(0.25, rel=0.02 if dtype == torch.bfloat16 else 1e-4)
    loaded = load_model(ModelSettings(path=str(tmp_path / "out")))
    assert all_bits(point_of(loaded.to(dtype))) == all_bits(inside)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


# Reading ------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Directory and name of every tensor that is read from a file from now on."""
    reads: Counter[tuple[str, str]] = Counter()
    read = SafetensorsWeights._read

    def counting(self: SafetensorsWeights, name: str, rows: tuple[int, int] | None) -> Tensor:
        reads[self._stored[name].file.parent.name, name] += 1
        return read(self, name, rows)

    monkeypatch.setattr(SafetensorsWeights, "_read", counting)
    return reads


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize(
    "kind", ["scale", "norm", "embeddings", "window", "swap", "top_rank", "bottom_rank"]
)
def test_every_tensor_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, written: bool
) -> None:
    base, tuned, donor = (save(tmp_path / n, i) for i, n in enumerate(("base", "tuned", "donor")))
    update, other = open_update(base, tuned), open_update(base, donor)
    made: dict[str, Intervention] = {
        "scale": WholeScaling(scale=0.5),
        "norm": NormScaling(final=module_norms(other)),
        "embeddings": EmbeddingReplacement(part="embeddings"),
        "window": SlidingWindow(centre=1, half_width=0),
        "swap": BlockSwap(donor=other, blocks=("mlp",)),
        "top_rank": TopRank(share=0.5),
        "bottom_rank": BottomRank(share=0.5),
    }
    reads = counted(monkeypatch)
    changed = made[kind].apply(update)
    assert not reads  # nothing is read before a tensor is asked for
    if written:
        write_intervened(tmp_path / "out", base, changed)
    else:
        with intervened(tiny_model(2), changed):
            pass
    sides = ("base", "tuned", "donor") if kind == "swap" else ("base", "tuned")
    assert reads == {(side, name): 1 for side in sides for name in update.shapes}


def test_what_is_held_is_what_would_be_read(tmp_path: Path) -> None:
    update = open_update(save(tmp_path / "base", 0), save(tmp_path / "tuned", 1))
    name = "model.embed_tokens.weight"
    plain = update.read_base(name), update.read_tuned(name), update.read(name, (1, 3))
    with update.holding():
        for _ in range(2):
            assert torch.equal(update.read(name, (1, 3)), plain[2])
            assert torch.equal(update.read_base(name), plain[0])
            assert torch.equal(update.read_tuned(name), plain[1])
    assert update.base_dtype(name) == plain[0].dtype
