"""What a model directory may hold, and what is said about paths that are none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import tiny_model
from tests.support.checkpoints import save_family
from transformers.utils import logging as transformers_logging

from effopd.analysis.series import find_inputs
from effopd.errors import ConfigError, EffopdError
from effopd.models.directory import INDEX, SINGLE, looks_local, no_such_directory
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.updates import open_update
from effopd.models.weights import open_weights

transformers_logging.disable_progress_bar()
GGUF = "GGUF files hold weights quantized for llama.cpp"


# Contents -----------------------------------------------------------------------------------------


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(EffopdError) as error:
        read(path)
    return str(error.value)


OUTSIDE = ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "a\\x.safetensors",
           "sub/x.safetensors", "./x.safetensors", "x\0.safetensors", "", "..", "x.bin", "x.pt",
           "x.safetensors/"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_safetensors_files_beside_it(copy: Path, name: str) -> None:
    shutil.copy(copy / SINGLE, copy.parent / "x.safetensors")
    (copy / SINGLE).rename(copy / "a.safetensors")
    names = json.dumps({"weight_map": {"lm_head.weight": name, "w": "a.safetensors"}})
    (copy / INDEX).write_text(names)
    for read in (load_model, open_weights):
        assert f"names {name!r}, which is no file of this directory" in refusal(read, copy)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}',
     "[" * 100_000, '{"weight_map": null}'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_damaged_index(copy: Path, content: str) -> None:
    (copy / SINGLE).rename(copy / "a.safetensors")
    (copy / INDEX).write_text(content)
    for read in (load_model, open_weights):
        assert "model.safetensors.index.json is damaged" in refusal(read, copy)


def test_a_missing_shard_and_one_that_is_no_file(copy: Path) -> None:
    (copy / SINGLE).rename(copy / "a.safetensors")
    (copy / INDEX).write_text(json.dumps({"weight_map": {"w": "b.safetensors"}}))
    for read in (load_model, open_weights):
        assert "b.safetensors is missing or no regular file" in refusal(read, copy)
    os.mkfifo(copy / "b.safetensors")  # reading it would wait for ever
    for read in (load_model, open_weights):
        assert "b.safetensors is missing or no regular file" in refusal(read, copy)


def test_one_file_and_an_index(copy: Path) -> None:
    """Transformers takes the file and never looks at the index, which is the one checked."""
    (copy / INDEX).write_text(json.dumps({"weight_map": {"w": SINGLE}}))
    for read in (load_model, open_weights):
        assert f"holds both {SINGLE} and {INDEX}" in refusal(read, copy)


def test_weights_that_the_configuration_names(copy: Path) -> None:
    path = copy / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"transformers_weights": "adapter.bin"}))
    assert "sets transformers_weights, which names other weight files" in refusal(load_model, copy)
    path.write_text(json.dumps(content | {"transformers_weights": SINGLE}))
    load_model(copy)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt", "x.bin.index.json"]
)
def test_pickles_are_never_read(copy: Path, name: str) -> None:
    marker = copy / "executed"
    (copy / name).write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    load_model(copy)  # left alone beside safetensors
    load_tokenizer(copy)
    (copy / SINGLE).unlink()
    for read in (load_model, open_weights):
        assert "pickled weights are refused: convert them" in refusal(read, copy)
    (copy / "adapter.safetensors").write_bytes(b"")
    refusal(load_model, copy)
    assert not marker.exists()


def test_links_are_followed(copy: Path, tmp_path: Path) -> None:
    """Those of the Hugging Face cache, and those that the user made."""
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(copy.iterdir())):
        shutil.move(path, tmp_path / "blobs" / str(number))
        path.symlink_to(os.path.relpath(tmp_path / "blobs" / str(number), copy))
    load_model(copy)
    load_tokenizer(copy)
    assert set(open_weights(copy).shapes) == set(dict(tiny_model().named_parameters()))


# Paths --------------------------------------------------------------------------------------------


def refusals(path: str | Path) -> list[str]:
    found = []
    for load in (load_model, load_tokenizer):
        with pytest.raises(ConfigError) as refusal:
            load(ModelSettings(path=str(path)))
        found.append(str(refusal.value))
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("./m", True), ("/m", True), ("~/m", True), ("../m", True), ("a/b/c", True),
        ("m.gguf", True), ("m/model.safetensors", True), ("C:\\m", True), ("a b", True),
        ("models/studnet/", True), ("gpt2", False), ("Qwen/Qwen3-0.6B", False), ("models/x", False),
    ],
)  # fmt: skip
def test_repositories_are_told_from_paths(path: str, local: bool, here: Path) -> None:
    assert looks_local(path) is local


def test_a_mistyped_directory_gets_the_nearest_name(here: Path) -> None:
    (here / "models" / "student").mkdir(parents=True)
    for path in ("./models/studnet", f"{here}/models/studnet"):
        near = Path(path).with_name("student")
        expected = f"no model directory at {path} (did you mean {near}?)"
        assert refusals(path) == [expected, expected]
        with pytest.raises(ConfigError, match=r"did you mean .*student\?"):
            find_inputs(Path(path), [], None, print)


def test_one_that_could_be_a_repository_is_named_as_a_directory_first(here: Path) -> None:
    (here / "models" / "student").mkdir(parents=True)
    for message in refusals("models/studnet"):
        assert message.startswith(
            "cannot load models/studnet: no model directory at models/studnet (did you mean "
            "models/student?); as a repository of the Hugging Face Hub, it is not in the cache"
        )
        assert "internet connection" not in message


def test_gguf_is_named(here: Path) -> None:
    (here / "model.gguf").write_bytes(b"GGUF")
    (here / "quant").mkdir()
    (here / "quant" / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    for path in ("model.gguf", "nowhere.gguf", "quant"):
        assert all(GGUF in message for message in refusals(path)), path
    base = save_family(here / "base")
    for path in (here / "model.gguf", here / "quant"):
        with pytest.raises(ConfigError, match=GGUF):
            open_update(base, path)
    (here / "quant" / "config.json").write_text('{"model_type": "llama"}')
    assert GGUF in refusals("quant")[0]


def test_a_file_of_weights_names_its_directory(here: Path) -> None:
    save_family(here / "m")
    for message in refusals("m/model.safetensors"):
        assert message == "m/model.safetensors is a file: give the model directory that it is in, m"


@pytest.mark.parametrize("folder", ["checkpoint-{}", "checkpoints/step-{:05d}", "global_step_{}"])
def test_an_output_directory_names_its_checkpoints(folder: str, here: Path) -> None:
    base = save_family(here / "base")
    for step in (10, 100, 2):
        (here / "out" / folder.format(step)).mkdir(parents=True)
    (here / "out" / "training_args.bin").write_bytes(b"")
    last = Path("out", folder.format(100))
    for message in refusals("out"):
        assert f"output with 3 checkpoints: give one of them, such as {last}" in message
    with pytest.raises(ConfigError, match=f"such as .*{last}"):
        open_update(base, here / "out")


def test_a_distributed_checkpoint_and_a_folder_around_a_model(here: Path) -> None:
    (here / "dcp").mkdir()
    (here / "dcp" / "__0_0.distcp").write_bytes(b"")
    assert all("distributed checkpoint of FSDP: merge" in text for text in refusals("dcp"))
    save_family(here / "around" / "huggingface")
    assert all("around/huggingface is a model directory" in text for text in refusals("around"))


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("file:///data/my%20model", "give the path alone, /data/my model"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "name alone, Qwen/Qwen3-0.6B"),
        ("hf://Qwen/Qwen3-0.6B", "name alone, Qwen/Qwen3-0.6B"),
        ("s3://bucket/model", "download it"),
    ],
)
def test_addresses_are_told_as_such(address: str, remedy: str, here: Path) -> None:
    for message in refusals(address):
        assert message.startswith(f"{address} is an address, not a model directory: ")
        assert message.endswith(remedy)
    assert no_such_directory(Path(address)).endswith(remedy)


def test_a_repository_in_the_cache_names_its_snapshot(here: Path) -> None:
    snapshot = save_family(here / "models--a--m" / "snapshots" / "abc")
    for message in refusals("models--a--m"):
        assert message.endswith("in the cache of the Hub: give models--a--m/snapshots/abc")
    load_model(ModelSettings(path=str(snapshot)))


def test_analyses_know_the_home_directory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    save_family(here / "base")
    save_family(here / "tuned")
    assert find_inputs(Path("~/base"), [Path("~/tuned")], None, print).base == here / "base"
