"""What a model directory may hold: refused before transformers opens it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.fakes import TOKENIZER, tiny_model
from tests.support.checkpoints import save_tensors
from transformers.utils import logging as transformers_logging

from effopd.errors import CheckpointError, ConfigError, EffopdError, ParameterMismatchError
from effopd.models import directory as rules
from effopd.models.adapters import LoraAdapter
from effopd.models.directory import Contents, built_from, check_config, check_model, check_texts
from effopd.models.headers import MAX_TENSORS
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.weights import INDEX, SINGLE, open_weights

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "whole"
    tiny_model().save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A model directory to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers may not be asked for anything."""

    def asked(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("transformers was asked")

    for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", asked)


def settings(path: Path) -> ModelSettings:
    return ModelSettings(path=str(path))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(load: Callable[[ModelSettings], Any], path: Path) -> str:
    with pytest.raises(EffopdError) as error:
        load(settings(path))
    return str(error.value)


LOADERS = [load_model, load_tokenizer]


# Files --------------------------------------------------------------------------------------------


def test_contents_of_a_saved_model(saved: Path) -> None:
    tensors = load_file(saved / SINGLE)
    assert check_model(saved) == Contents(
        tensors=len(tensors),
        elements=sum(t.numel() for t in tensors.values()),
        stored_bytes=sum(t.nbytes for t in tensors.values()),
    )
    edit(saved / "config.json", quantization_config={"quant_method": "gptq"})
    assert check_model(saved).quantized
    edit(saved / "config.json", quantization_config=None)


TEXTS = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
         "chat_template.jinja", "tokenizer.model", "vocab.txt", "tekken.json"]  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.usefixtures("unopened")
def test_pipes_devices_and_links(copy: Path, name: str) -> None:
    path = copy / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)  # whoever reads it waits for ever
    for load in LOADERS:
        assert f"{path} is missing or no regular file" in refusal(load, copy)
    path.unlink()
    path.symlink_to("/dev/zero")  # whoever reads it never ends
    for load in LOADERS:
        assert f"{path} is missing or no regular file" in refusal(load, copy)
    path.unlink()
    outside = copy.parent / "secret"
    outside.write_text("{}")
    path.symlink_to(outside)
    for load in LOADERS:
        assert f"{path} is a link that leads out of its directory, to {outside}" in refusal(
            load, copy
        )


@pytest.mark.usefixtures("unopened")
def test_large_texts(copy: Path) -> None:
    with (copy / "tokenizer.json").open("ab") as file:
        file.truncate(rules.LARGEST_TEXT_BYTES + 1)  # a hole: takes no room
    for load in LOADERS:
        assert f"has more than {rules.LARGEST_TEXT_BYTES} bytes" in refusal(load, copy)


def test_templates_in_their_own_folder(copy: Path) -> None:
    folder = copy / "additional_chat_templates"
    folder.mkdir()
    (folder / "tools.jinja").write_text("{{ messages }}")
    check_texts(copy)
    (folder / "evil.jinja").symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match="leads out of its directory"):
        check_texts(copy)


def test_a_snapshot_of_the_cache_links_to_its_blobs(saved: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(saved, snapshot)
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "x.jinja").write_text("x")
    blobs.mkdir()
    for number, path in enumerate([p for p in snapshot.rglob("*") if p.is_file()]):
        shutil.move(path, blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert check_model(snapshot) == check_model(saved)
    (tmp_path / "models--a--b" / "elsewhere").write_text("{}")
    (snapshot / "generation_config.json").unlink()
    (snapshot / "generation_config.json").symlink_to("../../elsewhere")
    with pytest.raises(ConfigError, match="leads out of its directory"):
        check_model(snapshot)


@pytest.mark.parametrize("digest", ["0123456789abcdef" * 4, "0123456789" * 4])
def test_a_directory_of_links_into_a_cache(saved: Path, tmp_path: Path, digest: str) -> None:
    blobs = tmp_path / "disk" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    linked = tmp_path / "linked"
    shutil.copytree(saved, linked)
    for name in (SINGLE, "config.json", "tokenizer.json"):
        blob = blobs / (digest[:-1] + "abc"[(SINGLE, "config.json", "tokenizer.json").index(name)])
        shutil.move(linked / name, blob)
        (linked / name).symlink_to(blob)
    assert check_model(linked) == check_model(saved)
    load_model(ModelSettings(path=str(linked)))
    load_tokenizer(ModelSettings(path=str(linked)))


@pytest.mark.parametrize(
    "place",
    ["models--a--b/blobs/secret", "a--b/blobs/" + "a" * 40, "models--a--b/" + "a" * 40,
     "models--a--b/blobs/x/" + "a" * 40],
)  # fmt: skip
def test_links_that_only_look_like_those_of_a_cache(copy: Path, tmp_path: Path, place: str) -> None:
    target = tmp_path / "disk" / place
    target.parent.mkdir(parents=True)
    shutil.move(copy / SINGLE, target)
    (copy / SINGLE).symlink_to(target)
    with pytest.raises(ConfigError, match="give the directory that holds the files"):
        check_model(copy)


# Weights ------------------------------------------------------------------------------------------

OUTSIDE = ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "a\\x.safetensors",
           "sub/x.safetensors", "./x.safetensors", "x\0.safetensors", "", "..", "x.bin", "x.pt",
           "x.pkl", "x.safetensors/", "../../../../../dev/zero"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.usefixtures("unopened")
def test_shards_elsewhere(copy: Path, name: str) -> None:
    shutil.copy(copy / SINGLE, copy.parent / "x.safetensors")
    (copy / SINGLE).rename(copy / "a.safetensors")
    names = json.dumps({"weight_map": {"lm_head.weight": name, "w": "a.safetensors"}})
    (copy / INDEX).write_text(names)
    for read in (lambda s: load_model(s), lambda s: open_weights(Path(s.path))):
        assert "which is no file of this directory" in refusal(read, copy)


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "directory", "dangling"])
@pytest.mark.usefixtures("unopened")
def test_shards_that_are_no_files(copy: Path, kind: str) -> None:
    shutil.copy(copy / SINGLE, copy.parent / "x.safetensors")
    (copy / SINGLE).rename(copy / "a.safetensors")
    (copy / INDEX).write_text(json.dumps({"weight_map": {"w": "b.safetensors"}}))
    path = copy / "b.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        target = {"link": copy.parent / "x.safetensors", "device": Path("/dev/zero")}
        path.symlink_to(target.get(kind, copy / "nowhere"))
    expected = "leads out of its directory" if kind == "link" else "missing or no regular file"
    for read in (lambda s: load_model(s), lambda s: open_weights(Path(s.path))):
        assert expected in refusal(read, copy)


@pytest.mark.usefixtures("unopened")
def test_an_index_of_a_million_tensors(copy: Path) -> None:
    (copy / SINGLE).rename(copy / "a.safetensors")
    names = ",".join(f'"{i}":"a"' for i in range(10**6))
    (copy / INDEX).write_text(f'{{"weight_map":{{{names}}}}}')
    assert f"the files of 1 to {MAX_TENSORS} tensors" in refusal(load_model, copy)


@pytest.mark.usefixtures("unopened")
def test_an_index_that_leads_elsewhere(copy: Path) -> None:
    (copy / SINGLE).rename(copy / "a.safetensors")
    (copy / INDEX).symlink_to("/dev/zero")
    assert "missing or no regular file" in refusal(load_model, copy)


@pytest.mark.usefixtures("unopened")
def test_one_file_and_an_index(copy: Path) -> None:
    """Transformers takes the file and never looks at the index, which is the one checked."""
    (copy / INDEX).write_text(json.dumps({"weight_map": {"w": SINGLE}}))
    assert f"holds both {SINGLE} and {INDEX}" in refusal(load_model, copy)


@pytest.mark.parametrize("name", ["other.safetensors", "x.safetensors.index.json", "adapter.bin"])
@pytest.mark.usefixtures("unopened")
def test_weights_that_the_configuration_names(copy: Path, name: str) -> None:
    edit(copy / "config.json", transformers_weights=name)
    assert "sets transformers_weights, which names other weight files" in refusal(load_model, copy)
    edit(copy / "config.json", transformers_weights=SINGLE)
    check_model(copy)


@pytest.mark.usefixtures("unopened")
def test_distributed_checkpoints(copy: Path) -> None:
    """Transformers would take all of these files in place of model.safetensors."""
    save_file({"w": torch.zeros(1)}, copy / "shard-00000-model-00001-of-00001.safetensors")
    assert "is part of a distributed checkpoint" in refusal(load_model, copy)


@pytest.mark.usefixtures("unopened")
def test_other_weight_files_are_files(copy: Path) -> None:
    os.mkfifo(copy / "consolidated.safetensors")
    assert "consolidated.safetensors is missing or no regular file" in refusal(load_model, copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt"])
@pytest.mark.usefixtures("unopened")
def test_only_pickles(copy: Path, name: str) -> None:
    (copy / SINGLE).rename(copy / name)
    assert "pickled weights are refused: convert them" in refusal(load_model, copy)


def test_pickles_beside_safetensors_are_left_alone(copy: Path) -> None:
    marker = copy / "executed"
    payload = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt"):
        (copy / name).write_bytes(payload)
    load_model(settings(copy))
    load_tokenizer(settings(copy))
    assert not marker.exists()


@pytest.mark.usefixtures("unopened")
def test_headers_are_checked_first(copy: Path) -> None:
    whole = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(whole[:-1])
    assert "model.safetensors is damaged (the tensors take" in refusal(load_model, copy)
    save_tensors(copy, {"../../escape": torch.zeros(1)})
    assert "names of weights have up to 500 letters" in refusal(load_model, copy)


def test_adapters_have_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    weights = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.a/../b.lora_A.weight": torch.zeros(1, 1)}, weights)
    with pytest.raises(CheckpointError, match="names of weights"):
        LoraAdapter(tmp_path, {})
    weights.write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match="is damaged"):
        LoraAdapter(tmp_path, {})
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(ConfigError, match="no regular file"):
        LoraAdapter(tmp_path, {})
    weights.unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n.")
    with pytest.raises(ConfigError, match="pickled weights are refused"):
        LoraAdapter(tmp_path, {})


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_hidden_layers", -1), ("num_hidden_layers", 0), ("num_hidden_layers", 10**9),
     ("num_attention_heads", 10**9), ("num_experts", 10**9), ("num_experts", -1),
     ("hidden_size", 0), ("hidden_size", -32), ("hidden_size", "32"), ("hidden_size", 32.0),
     ("hidden_size", True), ("vocab_size", 10**30), ("max_position_embeddings", 10**12),
     ("intermediate_size", {"a": 1})],
    ids=str,
)  # fmt: skip
@pytest.mark.usefixtures("unopened")
def test_sizes_that_no_model_has(copy: Path, name: str, value: Any) -> None:
    edit(copy / "config.json", **{name: value})
    for load in LOADERS:
        assert f"{name} must be a whole number from" in refusal(load, copy)


def test_sizes_within_sections() -> None:
    path = Path("config.json")
    check_config(path, {"text_config": {"num_hidden_layers": None, "intermediate_size": [3, 4]}})
    with pytest.raises(ConfigError, match=r"num_hidden_layers must be .* got 1000000000"):
        check_config(path, {"a": {"text_config": {"num_hidden_layers": 10**9}}})


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 10**9), ("intermediate_size", 10**12), ("vocab_size", 10**10),
     ("head_dim", 10**9), ("num_hidden_layers", 100_000)],
    ids=str,
)  # fmt: skip
def test_models_larger_than_their_files(copy: Path, name: str, value: int) -> None:
    """10^12 elements would take 4 TB: refused while the model has no memory yet."""
    edit(copy / "config.json", **{name: value}, layer_types=None)
    message = refusal(load_model, copy)
    assert "describes has more than" in message
    assert "config.json and weights belong to different models" in message


def test_the_limit_on_elements_is_exact() -> None:
    contents = Contents(tensors=1, elements=6, stored_bytes=24)
    most = 12 + rules.SPARE_ELEMENTS
    assert contents.most_elements == most
    with torch.device("meta"):
        with built_from(Path("m"), contents):
            torch.nn.Linear(most, 1, bias=False)
        with (
            pytest.raises(ParameterMismatchError, match=f"more than {most} elements"),
            built_from(Path("m"), contents),
        ):
            torch.nn.Linear(most, 1)  # one more for its bias
        torch.nn.Linear(most, 2)  # outside: not counted


def test_modules_are_counted() -> None:
    contents = Contents(tensors=1, elements=6, stored_bytes=24)
    with (
        pytest.raises(ParameterMismatchError, match="more than 1020 modules"),
        built_from(Path("m"), contents),
    ):
        torch.nn.Sequential(*(torch.nn.Identity() for _ in range(1021)))


def test_quantized_elements_may_be_packed() -> None:
    packed = Contents(tensors=1, elements=6, stored_bytes=24, quantized=True)
    assert packed.most_elements == 8 * 24 + rules.SPARE_ELEMENTS
