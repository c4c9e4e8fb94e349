"""Adapters in a live model: what trains, what is saved, and what PEFT makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, ids, tiny_model
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, MissingExtraError
from effopd.models import lora
from effopd.models.loading import ModelSettings, load_model
from effopd.models.lora import (
    LoraStudent,
    add_adapters_,
    factor_pairs,
    load_adapters_,
    save_adapters,
    trains_adapters,
    without_adapters,
)
from effopd.models.policy import Policy, Sample
from effopd.models.updates import AdapterUpdate
from effopd.models.weights import MemoryWeights

peft = pytest.importorskip("peft")

SMALL = LoraStudent(r=3, alpha=6.0)
SAMPLE = Sample(prompt_ids=ids("<bos> 3 + 4 ="), completion_ids=ids("# 0 <eos>"))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([SAMPLE.prompt_ids])).logits


def adapted(settings: LoraStudent = SMALL, *, moved: bool = False) -> Any:
    """A tiny model with adapters, at the start or after some training."""
    model = tiny_model(0)
    add_adapters_(model, settings)
    if moved:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_new_adapters_change_nothing_and_are_all_that_trains() -> None:
    model = adapted()
    assert torch.equal(logits(model), logits(tiny_model(0)))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    pairs = factor_pairs(model)
    assert len(pairs) == 2 * 7, "seven linear modules in each of two layers"
    assert {name for pair in pairs for name in pair} == set(trained)
    for left, right in pairs:
        assert trained[left].shape[1] == trained[right].shape[0] == 3
        assert not trained[left].any()
        assert trained[right].any()
    assert trains_adapters(model)
    assert not trains_adapters(tiny_model(0))


def test_first_values_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = adapted()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = adapted(), adapted(LoraStudent(r=3, alpha=6.0, seed=1))
    right = factor_pairs(first)[0][1]
    found = [dict(model.named_parameters())[right] for model in (first, second, other)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_adapters_of_a_model_in_bfloat16_are_float32() -> None:
    model = tiny_model(0).bfloat16()
    add_adapters_(model, SMALL)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def test_the_objectives_see_the_adapters() -> None:
    """Hidden states of the body, times the head, are the logits of the whole model."""
    policy = Policy(adapted(moved=True), TOKENIZER)
    with torch.no_grad():
        states = policy.states([SAMPLE])
        whole = policy.model(input_ids=torch.tensor([SAMPLE.prompt_ids + SAMPLE.completion_ids]))
    first = len(SAMPLE.prompt_ids) - 1
    expected = whole.logits[0, first:-1]
    torch.testing.assert_close(states.hidden_ND @ policy.head_weight_VD.T, expected)
    assert not torch.allclose(logits(policy.model), logits(tiny_model(0)), atol=1e-3)


def test_without_them_it_is_the_model_they_were_put_into() -> None:
    model = adapted(moved=True)
    own, base = logits(model), logits(tiny_model(0))
    with without_adapters(model):
        with without_adapters(model):
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), own)
    with pytest.raises(RuntimeError), without_adapters(model):
        raise RuntimeError
    assert torch.equal(logits(model), own)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for pair in factor_pairs(model) for name in pair}


# On disk ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_reads_what_is_saved(tmp_path: Path, rslora: bool) -> None:
    model = adapted(LoraStudent(r=3, alpha=6.0, rslora=rslora), moved=True)
    save_adapters(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    read = peft.PeftModel.from_pretrained(tiny_model(0), str(tmp_path)).eval()
    assert torch.equal(logits(read), logits(model))
    merged = read.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)


def test_what_is_saved_is_an_update_that_can_be_analyzed(tmp_path: Path) -> None:
    model, base = adapted(moved=True), tiny_model(0)
    save_adapters(model, tmp_path)
    update = AdapterUpdate(MemoryWeights(base.state_dict()), tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    pair = update.factors(name)
    assert pair is not None
    own = dict(model.named_parameters())
    module = name.removesuffix(".weight")
    product = own[f"{module}.lora_B.default.weight"] @ own[f"{module}.lora_A.default.weight"]
    torch.testing.assert_close(pair[0] @ pair[1], 2.0 * product)
    assert len(update.adapted) == 14


def test_an_adapter_comes_back_bit_for_bit(tmp_path: Path) -> None:
    old, new = adapted(moved=True), adapted()
    save_adapters(old, tmp_path / "a")
    load_adapters_(new, tmp_path / "a")
    assert torch.equal(logits(new), logits(old))
    save_adapters(new, tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_student_starts_from_a_model_and_an_adapter(tmp_path: Path) -> None:
    tiny_model(0).save_pretrained(tmp_path / "model")
    save_adapters(adapted(moved=True), tmp_path / "adapter")
    settings = LoraStudent(r=3, alpha=6.0, adapter=str(tmp_path / "adapter"))
    model = load_model(ModelSettings(path=str(tmp_path / "model"), lora=settings))
    assert torch.equal(logits(model), logits(adapted(moved=True)))
    assert not model.training


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ("lm_head",)}, "the head 'lm_head' cannot be adapted"),
        ({"target_modules": ("nothing",)}, r"cannot adapt \('nothing',\)"),
        ({"target_modules": ("embed_tokens",)}, "must be linear modules"),
        ({"r": 4, "adapter": "saved"}, r"has {'r': 3, .*; lora asks for {'r': 4"),
        ({"rslora": True, "adapter": "saved"}, "they must be the same"),
    ],
)
def test_what_cannot_be_adapted(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    save_adapters(adapted(), tmp_path / "saved")
    if "adapter" in settings:
        settings = settings | {"adapter": str(tmp_path / "saved")}
    with pytest.raises(ConfigError, match=message):
        add_adapters_(tiny_model(0), LoraStudent(**{"r": 3, "alpha": 6.0, **settings}))


def test_an_adapter_of_other_modules_is_refused(tmp_path: Path) -> None:
    save_adapters(adapted(LoraStudent(r=3, alpha=6.0, target_modules=("q_proj",))), tmp_path)
    with pytest.raises(CheckpointError, match=r"holds another adapter: .* compare lora\.r"):
        load_adapters_(adapted(), tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no adapter_model\.safetensors"):
        load_adapters_(adapted(), tmp_path / "nowhere")


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'effopd\[lora\]'"):
        add_adapters_(tiny_model(0), SMALL)
