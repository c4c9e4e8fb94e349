"""Checkpoints as other trainers save them: names, heads stored twice, tensors of other parts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.checkpoints import save_adapter, save_family
from torch import Tensor

from effopd.analysis.applying import intervened
from effopd.analysis.interventions import WholeScaling
from effopd.cli.extrapolate import extrapolate
from effopd.errors import CheckpointError, ConfigError, ParameterMismatchError
from effopd.models.loading import ModelSettings, load_model
from effopd.models.names import counterparts, extra, plain_names
from effopd.models.updates import open_update

Tensors = dict[str, Tensor]
PREFIXES = [
    "module.", "_orig_mod.", "base_model.model.", "model.", "module._orig_mod.",
    "_orig_mod.module.", "module.base_model.model.", "base_model.model._orig_mod.", "actor.",
    "_forward_module.model.", "student.model.", "pretrained_model.", "_fsdp_wrapped_module.",
]  # fmt: skip
PLAIN = {
    "llama": ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"],
    "a tied head": ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"],
    "gpt2": ["transformer.wte.weight", "transformer.h.0.ln_1.weight"],
    "without a head": ["wte.weight", "h.0.ln_1.weight"],
    "gpt_neox": ["gpt_neox.embed_in.weight", "embed_out.weight"],
    "a tower": ["model.language_model.norm.weight", "model.vision_tower.norm.weight"],
    "only the text of it": ["model.language_model.norm.weight", "model.language_model.x.weight"],
    "another order": ["language_model.model.norm.weight", "vision_tower.norm.weight"],
    "opt": ["model.decoder.embed_tokens.weight", "model.decoder.layers.0.fc1.weight"],
    "olmo": ["model.transformer.wte.weight", "model.transformer.blocks.0.x.weight"],
}


def rewritten(directory: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """The same model with other tensors in its file."""
    file = directory / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, {"format": "pt"})
    return directory


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Base and tuned checkpoint of one architecture with a head of its own."""
    return (
        save_family(tmp_path / "base", "qwen3", seed=0),
        save_family(tmp_path / "tuned", "qwen3", seed=1),
    )


@pytest.fixture
def tied(tmp_path: Path) -> tuple[Path, Path]:
    """The same with a head that is the embedding, stored once."""
    return (
        save_family(tmp_path / "base", "qwen3", seed=0, tie_word_embeddings=True),
        save_family(tmp_path / "tuned", "qwen3", seed=1, tie_word_embeddings=True),
    )


def with_drafts(directory: Path) -> Path:
    """config.json says that one layer after the model's own drafts tokens."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return directory


def updates_of(base: Path, tuned: Path) -> Tensors:
    update = open_update(base, tuned)
    return {name: update.read(name) for name in update.shapes}


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# Prefixes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", PLAIN.values(), ids=PLAIN)
def test_names_of_transformers_stay_as_they_are(names: list[str]) -> None:
    assert plain_names(names, "x") == {name: name for name in names}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["llama", "a tied head"])
def test_prefixes_of_wrappers_are_left_out(prefix: str, kind: str) -> None:
    found = plain_names([prefix + name for name in PLAIN[kind]], "x")
    assert list(found.values()) == PLAIN[kind]


def test_wrappers_within_names() -> None:
    inner = "_fsdp_wrapped_module._checkpoint_wrapped_module."
    stored = [f"model.layers.{i}.{inner}mlp.module.up_proj.weight" for i in range(2)]
    found = plain_names([*stored, "model.norm.weight"], "x")
    assert [found[name] for name in stored] == [
        f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)
    ]


def test_names_that_become_one() -> None:
    with pytest.raises(CheckpointError, match=r"both model\.a and module\.model\.a"):
        plain_names(["model.a", "module.model.a", "model.b"], "x")


@pytest.mark.parametrize("part", ["lora_A.default.weight", "modules_to_save.default.weight"])
def test_an_adapter_that_was_not_merged_is_named(part: str, pair: tuple[Path, Path]) -> None:
    base, tuned = pair
    name = f"base_model.model.model.layers.0.self_attn.q_proj.{part}"
    rewritten(tuned, lambda tensors: tensors | {name: torch.zeros(2, 16)})
    for read in (
        lambda: open_update(base, tuned),
        lambda: load_model(ModelSettings(path=str(tuned))),
    ):
        with pytest.raises(ConfigError, match="an adapter that was not merged"):
            read()


@pytest.mark.parametrize("prefix", ["module.", "_fsdp_wrapped_module.", "model."])
@pytest.mark.parametrize("tie", [False, True])
def test_a_prefixed_checkpoint_is_the_same_model(prefix: str, tie: bool, tmp_path: Path) -> None:
    directory = save_family(tmp_path / "m", "qwen3", tie_word_embeddings=tie)
    settings, told = ModelSettings(path=str(directory)), list[str]()
    expected = load_model(settings, report=told.append)
    assert told == []
    rewritten(directory, lambda tensors: {prefix + n: t for n, t in tensors.items()})
    found = load_model(settings, report=told.append)
    assert_same(found.state_dict(), expected.state_dict())
    assert [text for text in told if "hold a wrapper's prefix" in text] == told != []
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()
    found.save_pretrained(tmp_path / "again")
    names = load_file(tmp_path / "again" / "model.safetensors").keys()
    assert all(
        name.startswith(("model.layers", "model.embed", "model.norm", "lm_")) for name in names
    )


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ("transformer.h.0.attn.c_proj.weight", "h.0.attn.c_proj.weight"),
        ("language_model.model.layers.0.x", "model.language_model.layers.0.x"),
        ("model.language_model.layers.0.x", "model.layers.0.x"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.decoder.layers.0.fc1.weight", "decoder.layers.0.fc1.weight"),
    ],
)
def test_two_ways_to_name_one_tensor(base: str, tuned: str) -> None:
    assert counterparts([base], [tuned, "model.other"]) == {base: tuned}
    assert counterparts([base, "x"], ["x", base, tuned]) == {base: base, "x": "x"}
    assert counterparts([base], ["y"]) == {}


def stored(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")


# Tied heads ---------------------------------------------------------------------------------------


def with_copy(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)], ids=["base", "tuned", "both"])
def test_a_copy_of_the_embedding_is_left_out(
    sides: tuple[int, ...], tied: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = updates_of(*tied)
    assert "lm_head.weight" not in expected
    for side in sides:
        rewritten(tied[side], with_copy)
    assert_same(updates_of(*tied), expected)
    extrapolate(*tied, [2.0], tmp_path / "point", select="all")
    assert "lm_head.weight" not in stored(tmp_path / "point")


@pytest.mark.parametrize("side", [0, 1])
def test_a_tied_head_stored_in_place_of_the_embedding(side: int, tied: tuple[Path, Path]) -> None:
    expected = updates_of(*tied)
    stored = {"model.embed_tokens.weight": "lm_head.weight"}
    rewritten(tied[side], lambda tensors: {stored.get(n, n): t for n, t in tensors.items()})
    found = updates_of(*tied)
    if side == 0:  # the names are the base's
        found[next(iter(stored))] = found.pop("lm_head.weight")
    assert_same(found, expected)


def test_a_tied_head_of_another_shape_is_named(tied: tuple[Path, Path]) -> None:
    rewritten(tied[1], lambda tensors: tensors | {"lm_head.weight": torch.zeros(3, 2)})
    message = r"ties the head .* lm_head.weight is stored with shape \(3, 2\) and model.embed_tok"
    with pytest.raises(ParameterMismatchError, match=message):
        load_model(ModelSettings(path=str(tied[1])))
    with pytest.raises(ParameterMismatchError, match=message):
        open_update(*tied)


@pytest.mark.parametrize("side", [0, 1])
def test_a_tied_head_with_other_values_is_the_reason(side: int, tied: tuple[Path, Path]) -> None:
    rewritten(tied[side], lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(ParameterMismatchError, match="ties the head to the embedding, but lm_head"):
        open_update(*tied)
    with pytest.raises(ParameterMismatchError, match="ties the head to the embedding, but"):
        load_model(ModelSettings(path=str(tied[side])))


def test_a_family_that_ties_without_saying_so(tmp_path: Path) -> None:
    base, tuned = (
        save_family(tmp_path / str(seed), "gpt2", seed=seed) for seed in (0, 1)
    )  # fmt: skip
    for directory in (base, tuned):
        config = json.loads((directory / "config.json").read_text())
        config.pop("tie_word_embeddings", None)
        (directory / "config.json").write_text(json.dumps(config))
    expected = updates_of(base, tuned)
    rewritten(base, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()})
    assert_same(updates_of(base, tuned), expected)


def test_without_a_config_the_values_tell(tied: tuple[Path, Path]) -> None:
    expected = updates_of(*tied)
    for directory in tied:
        (directory / "config.json").unlink()
    rewritten(tied[1], with_copy)
    assert_same(updates_of(*tied), expected)
    assert open_update(*tied).left_out == {
        "lm_head.weight": "in the tuned checkpoint only: the embedding, stored a second time"
    }
    rewritten(tied[1], lambda t: t | {"lm_head.weight": t["lm_head.weight"] * 2})
    with pytest.raises(ParameterMismatchError, match="the base one ties its head to the embedding"):
        open_update(*tied)


def test_a_head_of_its_own_is_compared(pair: tuple[Path, Path]) -> None:
    """Two that are equal by chance at the start are still two."""
    rewritten(pair[0], with_copy)
    assert "lm_head.weight" in updates_of(*pair)


# Other parts --------------------------------------------------------------------------------------

OTHERS = {
    "v_head.summary.weight": "a value or reward head",
    "score.weight": "a value or reward head",
    "model.layers.1.self_attn.rotary_emb.inv_freq": "a buffer that is computed anew",
    "model.rotary_emb.inv_freq": "a buffer that is computed anew",
    "vision_tower.encoder.layers.0.q_proj.weight": "of a tower for images or sound",
    "model.visual.blocks.0.attn.proj.bias": "of a tower for images or sound",
    "mtp.layers.0.mlp.up_proj.weight": "of a head that drafts tokens",
    "model.layers.2.eh_proj.weight": "of a head that drafts tokens",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("side", [0, 1], ids=["base", "tuned"])
def test_parts_that_one_has_are_listed(name: str, side: int, pair: tuple[Path, Path]) -> None:
    expected = updates_of(*pair)
    rewritten(pair[side], lambda tensors: tensors | {name: torch.ones(3)})
    with_drafts(pair[0])
    update = open_update(*pair)
    where = ("base", "tuned")[side]
    assert update.left_out == {name: f"in the {where} checkpoint only: {OTHERS[name]}"}
    assert_same({name: update.read(name) for name in update.shapes}, expected)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "model.layers.2.eh_proj.weight"])
def test_a_model_is_loaded_without_them_and_says_so(name: str, pair: tuple[Path, Path]) -> None:
    settings, told = ModelSettings(path=str(with_drafts(pair[0]))), list[str]()
    expected = load_model(settings).state_dict()
    rewritten(pair[0], lambda tensors: tensors | {name: torch.ones(3)})
    assert_same(load_model(settings, report=told.append).state_dict(), expected)
    assert told == [f"{pair[0]}: 1 tensors are not loaded, {OTHERS[name]} ({name})"]


def test_points_keep_what_was_not_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rewritten(pair[1], lambda tensors: tensors | {"v_head.summary.weight": torch.ones(3)})
    extrapolate(*pair, [3.0], tmp_path / "point", select="all")
    assert torch.equal(stored(tmp_path / "point")["v_head.summary.weight"], torch.ones(3))


def test_a_live_model_takes_what_it_has(tmp_path: Path) -> None:
    """Value heads and buffers of both checkpoints, and other leading parts, are in its way."""
    base = save_family(tmp_path / "base", "gpt2", seed=0)
    tuned = save_family(tmp_path / "tuned", "gpt2", seed=1)
    model, expected = (load_model(ModelSettings(path=str(each))) for each in (base, tuned))
    for directory in (base, tuned):
        rewritten(
            directory,
            lambda t: (
                {n.removeprefix("transformer."): x for n, x in t.items()}
                | {"v_head.weight": torch.ones(3), "h.0.attn.bias": torch.ones(1, 1, 8, 8)}
            ),
        )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with intervened(model, WholeScaling(scale=1.0).apply(open_update(base, tuned))):
        assert_same(model.state_dict(), expected.state_dict())
    assert_same(model.state_dict(), before)


def test_what_the_logits_need_is_never_left_out() -> None:
    for name in (
        "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.score_proj.weight",
        "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias",
        "model.layers.0.self_attn.q_proj.bias", "model.layers.1.conv.conv.weight",
        "model.layers.1.mlp.score.weight", "model.layers.0.connector.weight",
    ):  # fmt: skip
        assert extra(name, drafts=range(2, 3)) is None, name


# Refused ------------------------------------------------------------------------------------------


def test_fewer_layers_are_the_reason(pair: tuple[Path, Path]) -> None:
    rewritten(pair[1], lambda t: {n: x for n, x in t.items() if "layers.1." not in n})
    with pytest.raises(ParameterMismatchError, match="base has 2 layers and the tuned model 1"):
        open_update(*pair)


def test_a_tensor_that_was_not_gathered_is_the_reason(pair: tuple[Path, Path]) -> None:
    rewritten(pair[1], lambda t: t | {"model.embed_tokens.weight": torch.zeros(0)})
    with pytest.raises(ParameterMismatchError, match="without gathering its weights"):
        open_update(*pair)


def test_a_model_under_unknown_names_shows_one(pair: tuple[Path, Path]) -> None:
    rewritten(pair[0], lambda t: {n.replace("mlp", "ffn_block"): x for n, x in t.items()})
    with pytest.raises(ParameterMismatchError, match=r"it holds model\.layers\.0\.ffn_block\."):
        load_model(ModelSettings(path=str(pair[0])))


# Adapters -----------------------------------------------------------------------------------------


def test_adapters_under_other_names(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "qwen3")
    module = "model.layers.0.self_attn.q_proj"
    tensors = {"A": torch.randn(2, 16), "B": torch.randn(16, 2)}
    found = []
    for i, form in enumerate(
        ("{}.lora_{}.weight", "module.base_model.model.{}.lora_{}.default.weight",
         "_orig_mod.{}.lora_{}.weight")
    ):  # fmt: skip
        named = {form.format(module, side): tensor for side, tensor in tensors.items()}
        adapter = save_adapter(tmp_path / f"adapter-{i}", named)
        found.append(open_update(base, adapter).read(f"{module}.weight"))
    assert found[0].any()
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])
