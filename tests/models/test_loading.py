"""What is loaded, and what is refused before it is."""

import builtins
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fakes import TOKENIZER, ids, tiny_model
from transformers.utils import logging as transformers_logging

from effopd.config.reading import read
from effopd.errors import (
    CheckpointError,
    ConfigError,
    EffopdError,
    NonFiniteError,
    ParameterMismatchError,
)
from effopd.evaluation.config import EvalConfig
from effopd.models.loading import ModelSettings, load_model, load_tokenizer, real_device
from effopd.models.saving import write_model
from effopd.models.updates import open_update
from effopd.models.weights import open_weights
from effopd.training.config import make_config, placed

transformers_logging.disable_progress_bar()


def settings(path: Path | str, **more: Any) -> ModelSettings:
    return ModelSettings(path=str(path), **more)


def rewrite_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(load: Callable[[ModelSettings], Any], path: Path | str, **more: Any) -> str:
    with pytest.raises(EffopdError) as error:
        load(settings(path, **more))
    assert isinstance(error.value, ConfigError | ParameterMismatchError | CheckpointError)
    return str(error.value)


# Loading ------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_bit_for_bit(saved: Path) -> None:
    original, loaded = tiny_model(), load_model(settings(saved))
    assert not loaded.training
    for (name, ours), theirs in zip(loaded.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def recomputes(model: Any) -> bool:
    """Whether the decoder layers recompute their activations."""
    return all(layer.gradient_checkpointing for layer in model.model.layers)


def test_precision_attention_and_checkpointing_are_those_asked_for(saved: Path) -> None:
    asked = settings(saved, dtype="bfloat16", attention="eager", gradient_checkpointing=True)
    model = load_model(asked)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert recomputes(model)
    assert not recomputes(load_model(settings(saved)))


def test_tokenizer_and_its_chat_template_come_back(saved: Path) -> None:
    loaded = load_tokenizer(settings(saved))
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("<eos>", "<pad>", "<bos>")
    text = "3 + 4 * 2 ="
    plain = loaded(text)["input_ids"]
    assert tuple(plain) == ids(f"<bos> {text}")
    message = [{"role": "user", "content": text}]
    chat = loaded.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    assert chat["input_ids"] == plain
    assert loaded.decode(plain, skip_special_tokens=True) == text
    every_word = " ".join(TOKENIZER.convert_ids_to_tokens(range(3, len(TOKENIZER))))
    assert loaded.decode(loaded(every_word)["input_ids"][1:]) == every_word


def test_a_missing_padding_token_is_the_end_of_sequence(copy: Path) -> None:
    rewrite_json(copy / "tokenizer_config.json", pad_token=None)
    loaded = load_tokenizer(settings(copy))
    assert loaded.pad_token_id == loaded.eos_token_id == 2


# Refused before transformers sees it --------------------------------------------------------------


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "../x/y"])
def test_no_such_directory(path: str) -> None:
    for load in (load_model, load_tokenizer):
        assert refusal(load, path) == f"no model directory at {path}"


def test_an_empty_path() -> None:
    with pytest.raises(ConfigError, match="path must be a model directory"):
        ModelSettings(path="")


# Refused although transformers would go on --------------------------------------------------------


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def pop(*parts: str) -> Callable[[Path], object]:
    return lambda path: change_weights(
        path, lambda t: [t.pop(name) for name in list(t) if any(part in name for part in parts)]
    )


def put(name: str, *shape: int) -> Callable[[Path], object]:
    return lambda path: change_weights(path, lambda t: t.update({name: torch.ones(shape)}))


def setting(file: str, **changes: Any) -> Callable[[Path], object]:
    return lambda path: rewrite_json(path / file, **changes)


APART = "config.json and weights belong to different models"
REFUSED: list[tuple[Any, Callable[[Path], object], str]] = [
    (load_model, lambda path: (path / "config.json").unlink(),
     "^{path} is no Hugging Face model directory: config.json is missing$"),
    (load_tokenizer, lambda path: (path / "config.json").unlink(),
     "^{path} is no Hugging Face model directory: config.json is missing$"),
    (load_model, lambda path: (path / "adapter_config.json").write_text("{}"),
     "is an adapter: merge it into its base model"),
    (load_tokenizer, lambda path: (path / "tokenizer.json").unlink(),
     r"^{path} holds no tokenizer \(tokenizer.json, "),
    (load_tokenizer, setting("tokenizer_config.json", eos_token=None),
     "^the tokenizer of {path} has no end-of-sequence token$"),
    (load_model, pop("q_proj"), "^2 tensors of the model are not in {path}, for example "
     "model.layers.0.self_attn.q_proj.weight: complete the download, or export the whole model$"),
    (load_model, pop("lm_head"), "for example lm_head.weight"),
    (load_model, put("lm_head.weight", 16, 8), r"^lm_head.weight in {path} has shape \(16, 8\), "
     rf"the config asks for \(16, 32\): {APART}$"),
    (load_model, put("model.layers.9.mlp.up_proj.weight", 2), "^1 tensors in {path} have no place "
     f"in the model, for example model.layers.9.mlp.up_proj.weight: {APART}$"),
    (load_model, setting("config.json", num_hidden_layers=1, layer_types=None),
     "have no place in the model, for example model.layers.1."),
]  # fmt: skip


@pytest.mark.parametrize(("load", "damage", "message"), REFUSED)
def test_what_is_not_whole_is_refused(
    copy: Path, load: Any, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy)
    assert re.search(message.format(path=re.escape(str(copy))), refusal(load, copy))


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.tie_word_embeddings = True
    tied = type(model)(model.config)
    tied.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_model(settings(tmp_path))
    assert torch.equal(loaded.lm_head.weight, tied.model.embed_tokens.weight)


def test_a_head_that_the_config_ties_wrongly(copy: Path) -> None:
    rewrite_json(copy / "config.json", tie_word_embeddings=True)
    assert "the two are stored with different values" in refusal(load_model, copy)
    change_weights(copy, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 1}))
    loaded = load_model(settings(copy))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite(copy: Path, value: float, dtype: str) -> None:
    change_weights(copy, lambda t: t["model.norm.weight"].__setitem__(3, value))
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight in .* holds a NaN or an inf"):
        load_model(settings(copy, dtype=dtype))


def test_weights_that_overflow_in_the_precision_asked_for(copy: Path) -> None:
    change_weights(copy, lambda t: t["model.norm.weight"].__setitem__(3, 1e6))
    load_model(settings(copy))
    with pytest.raises(NonFiniteError):
        load_model(settings(copy, dtype="float16"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("config.json", b"{", "{path}/config.json is damaged ("),
     ("config.json", b"\xef\xbb\xbf{}", "{path}/config.json is damaged ("),
     ("config.json", b'{"model_type": "no-such-family"}', "cannot load {path}: "),
     ("config.json", b'{"model_type": 3}', "cannot load {path}: "),
     ("config.json", b"{}", "cannot load {path}: "),
     ("generation_config.json", b"[]", "{path}/generation_config.json is damaged: it must hold"),
     ("model.safetensors", b"", "{path}/model.safetensors is damaged ("),
     ("model.safetensors", b"\xff" * 100, "{path}/model.safetensors is damaged (")],
    ids=str,
)  # fmt: skip
def test_damaged_files_are_one_message(copy: Path, name: str, content: bytes, message: str) -> None:
    (copy / name).write_bytes(content)
    assert refusal(load_model, copy).startswith(message.format(path=copy))


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b""), ("tokenizer.json", b"{}"), ("tokenizer.json", b"[" * 10_000),
     ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3}, "added_tokens": []}'),
     ("tokenizer_config.json", b"[]"), ("tokenizer_config.json", b"{"),
     ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": []}}')],
    ids=str,
)  # fmt: skip
def test_damaged_tokenizers_are_one_message(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    assert refusal(load_tokenizer, copy).startswith(f"cannot load {copy}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("dtype", "__import__"), ("dtype", "float1024"), ("dtype", 3), ("torch_dtype", "load"),
     ("num_attention_heads", 7), ("hidden_act", "os.system"), ("rope_scaling", "evil"),
     ("rope_parameters", [1]), ("layer_types", "evil"), ("rms_norm_eps", "x"),
     ("attn_implementation", "evil/kernels"), ("_attn_implementation", "evil/kernels"),
     ("_attn_implementation_internal", "evil/kernels"), ("architectures", ["os.system"])],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_load_or_are_one_message(
    copy: Path, name: str, value: Any
) -> None:
    rewrite_json(copy / "config.json", **{name: value})
    try:
        model = load_model(settings(copy))
    except (ConfigError, ParameterMismatchError):
        assert str(copy) in refusal(load_model, copy)
    else:
        assert model.dtype == torch.float32
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model.lm_head.weight, tiny_model().lm_head.weight)


def test_repositories_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for load in (load_model, load_tokenizer):
        message = refusal(load, "nobody/no-such-model")
        assert message.startswith("cannot load nobody/no-such-model: no model directory at nobody/")
        assert "the Hub cannot be reached" in message
    assert refusal(load_model, "runs/models/foo") == "no model directory at runs/models/foo"


def test_a_repository_in_the_cache(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    shutil.copytree(saved, snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert torch.equal(
        load_model(settings("some/model")).lm_head.weight, tiny_model().lm_head.weight
    )
    loaded = load_tokenizer(settings("some/model", revision=commit))
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    update = open_update("some/model", str(saved), base_revision=commit)
    assert not any(update.read(name).any() for name in update.shapes)
    write_model(tmp_path / "copy", "some/model", lambda name, tensor: tensor)
    assert open_weights(str(tmp_path / "copy")).shapes == update.shapes
    (snapshot / "model.safetensors").rename(snapshot / "a.safetensors")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    assert "'../x', which is no file of this directory" in refusal(load_model, "some/model")


# Code in a model directory ------------------------------------------------------------------------

EVIL = "import pathlib\npathlib.Path({marker!r}).touch()\nclass C: pass\nM = T = C\n"


@pytest.fixture
def evil(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose code leaves a file named `executed`, and a user who cannot answer."""
    (copy / "evil.py").write_text(EVIL.format(marker=str(copy / "executed")))

    def ask(prompt: str = "") -> str:
        raise AssertionError(f"a question was asked: {prompt}")

    monkeypatch.setattr(builtins, "input", ask)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed)
    return copy


AUTO_MAP = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}


def test_code_of_an_unknown_family_is_not_run(evil: Path) -> None:
    rewrite_json(evil / "config.json", auto_map=AUTO_MAP, model_type="evil")
    assert refusal(load_model, evil) == f"{evil} needs code of its own, which effopd never runs"
    assert not (evil / "executed").exists()


def test_code_of_a_known_family_is_ignored(evil: Path) -> None:
    rewrite_json(evil / "config.json", auto_map=AUTO_MAP)
    assert type(load_model(settings(evil))).__module__.startswith("transformers.")
    assert not (evil / "executed").exists()


def test_code_of_a_tokenizer_is_not_run(evil: Path) -> None:
    rewrite_json(evil / "config.json", auto_map=AUTO_MAP, model_type="evil")
    rewrite_json(
        evil / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.T", "evil.T"]},
        tokenizer_class="EvilTokenizer",
    )
    try:
        loaded = load_tokenizer(settings(evil))
    except ConfigError:
        pass
    else:
        assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert not (evil / "executed").exists()


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os }}"],
)
def test_chat_templates_are_confined(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text(template)
    loaded = load_tokenizer(settings(copy))
    with pytest.raises(Exception, match=r"unsafe|undefined"):
        loaded.apply_chat_template([{"role": "user", "content": "3"}], tokenize=False)


# Which device a setting stands for ----------------------------------------------------------------


HERE = "cuda" if torch.cuda.is_available() else "cpu"


def test_auto_is_the_default_and_becomes_the_device_that_is_there() -> None:
    assert real_device("auto") == HERE
    run, evaluation = make_config({}), read(EvalConfig, {})
    assert run.device == evaluation.device == "auto"
    assert placed(run).device == placed(evaluation).device == HERE
    assert placed(run).teacher_device is None


def test_the_teachers_device_may_be_auto_too() -> None:
    config = make_config({"device": "cpu", "teacher_device": "auto"})
    assert placed(config).teacher_device == HERE
    assert placed(placed(config)) == placed(config)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpu", "a device is 'auto', 'cpu'"), ("", "a device is 'auto', 'cpu'"),
        ("Auto", "a device is 'auto', 'cpu'"), ("meta", "a device is 'auto', 'cpu'"),
        ("mps", "it has no float64"),
        ("cuda:99", "(PyTorch finds no GPU here|the GPUs here are 0 to)"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^device '{name}' cannot be used: {reason}") as refusal:
        placed(make_config({"device": name}))
    assert len(str(refusal.value)) < 200
