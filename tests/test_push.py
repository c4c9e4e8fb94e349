"""A checkpoint as a repository: it loads and generates, and the card says what was measured."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny import tiny_config, train_tiny, write_models
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

import effopd
from effopd import hub
from effopd.cli.main import app
from effopd.errors import CheckpointError, ConfigError, ServerError
from effopd.hub import interval_text, push_to_hub
from effopd.models.directory import GENERATION
from effopd.records import load_run
from effopd.training.config import load_config

SETTINGS: dict[str, Any] = {
    "train.steps": 4, "checkpoint.every": 2, "evaluation.every": 2, "evaluation.problems": 6,
    "label": "a run",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of the steps 2 and 4; tests read it alone."""
    parent = tmp_path_factory.mktemp("pushed")
    models = write_models(parent / "models")
    assert train_tiny(tiny_config(models, SETTINGS), parent / "run")[0]
    return parent / "run"


@pytest.fixture
def written(run: Path, tmp_path: Path, no_pictures: None) -> Path:
    assert push_to_hub(run, to=tmp_path / "model", license="apache-2.0") == str(tmp_path / "model")
    return tmp_path / "model"


def card_of(folder: Path) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard.load(folder / "README.md")


# The model ----------------------------------------------------------------------------------------


def test_the_folder_loads_and_generates_as_the_checkpoint_does(run: Path, written: Path) -> None:
    tokens = []
    for directory in (written, run / "checkpoints" / "step-00004"):
        model = AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        inputs = tokenizer("1+2=", return_tensors="pt")
        out = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            max_new_tokens=8, do_sample=False,
        )  # fmt: skip
        tokens.append(out)
    assert torch.equal(*tokens)
    ends = GenerationConfig.from_pretrained(written).eos_token_id
    named = load_run(run).info["end_tokens"].values()
    assert {*named} <= {*(ends if isinstance(ends, list) else [ends])}


def test_nothing_but_the_model_the_card_and_the_recipe_is_in_it(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*")}
    assert {"README.md", "recipe.toml", "curve.png", "model.safetensors", "config.json"} <= names
    assert not names & {"trainer", "trainer_state.json", "manifest.json"}
    assert {Path(name).suffix for name in names} <= {
        ".md", ".toml", ".png", ".safetensors", ".json", ".jinja",
    }  # fmt: skip


def test_a_file_that_is_no_part_of_a_model_is_left_out(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00004"
    target = tmp_path / "copied"
    target.mkdir()
    strange = tmp_path / "step"
    strange.mkdir()
    for name in ("model.safetensors", "evil.pkl", "pytorch_model.bin", "run.py"):
        (strange / name).write_bytes(b"x")
    hub._copy_model(strange, target, lambda source, to: to.write_bytes(source.read_bytes()))
    assert [path.name for path in target.iterdir()] == ["model.safetensors"]
    assert checkpoint.is_dir()


def test_an_adapter_names_its_base_and_its_end_tokens(tmp_path: Path, no_pictures: None) -> None:
    pytest.importorskip("peft")
    models = write_models(tmp_path / "models")
    lora = {"student.lora": {"r": 2, "alpha": 4.0}, "train.steps": 2}
    assert train_tiny(tiny_config(models, SETTINGS | lora), tmp_path / "run")[0]
    push_to_hub(tmp_path / "run", to=tmp_path / "out", base_model="me/base")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "me/base"
    ends = json.loads((tmp_path / "out" / GENERATION).read_text())["eos_token_id"]
    assert ends == [*load_run(tmp_path / "run").info["end_tokens"].values()]
    card = card_of(tmp_path / "out")
    assert card.data.library_name == "peft"
    assert (card.data.base_model, card.data.base_model_relation) == ("me/base", "adapter")
    assert "AutoPeftModelForCausalLM" in card.text


# The card -----------------------------------------------------------------------------------------


def test_the_card(run: Path, written: Path) -> None:
    card, records = card_of(written), load_run(run)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.tags[0] == "effopd"
    assert "base_model" not in card.data.to_dict(), "a directory is no repository"
    last = records.evals[-1]
    found = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert found == {"accuracy": last["accuracy"], "reverse_kl": last["reverse_kl"]}
    text = card.text
    assert f"| this model | 4 | {interval_text(last)} | {last['reverse_kl']:.4f} |" in text
    assert "| before training | 0 |" in text
    assert "| teacher |  |" in text
    assert "after step 4 of 4" in text
    assert f"{records.metrics[-1]['sampled_tokens']:,} sampled tokens" in text
    assert "![accuracy against steps](curve.png)" in text
    assert "torch" in text
    assert "2605.11739" in text
    assert (written / "recipe.toml").read_text() in text
    assert "{{" not in text.split("## Citation")[0]
    assert str(run.parent) not in text.split("## Recipe")[0]


def test_the_recipe_has_every_setting_and_nothing_of_this_machine(
    run: Path, tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: run.parent)
    push_to_hub(run, to=tmp_path / "out")
    text = (tmp_path / "out" / "recipe.toml").read_text()
    assert str(run.parent) not in text
    assert 'path = "~/models/student"' in text
    recipe = load_config(tmp_path / "out" / "recipe.toml")
    assert recipe.train == load_config(run / "config.toml").train


def test_addresses_of_servers_are_not_told() -> None:
    config = effopd.Config.of(
        "opd", teacher_server={"url": "http://inside.company:8000", "model": "big", "top_k": 4}
    )
    text = hub._recipe(config)
    assert "inside.company" not in text
    assert 'url = "http://HOST"' in text
    assert hub._models(config, None)[1] == "big behind a server"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"accuracy": None, "accuracy_se": None, "n": 4}, "-"),
        # Wilson's interval of 8 of 10, as if of 10 questions whose answers never change
        ({"accuracy": 0.8, "accuracy_se": (0.16 / 9) ** 0.5, "n": 10}, "0.800 [0.490, 0.943]"),
        ({"accuracy": 0.5, "accuracy_se": 0.1, "n": 10}, "0.500 [0.304, 0.696]"),
        ({"accuracy": 0.95, "accuracy_se": 0.1, "n": 10}, "0.950 [0.754, 1.000]"),
        ({"accuracy": 1.0, "accuracy_se": None, "n": 1}, "1.000"),
    ],
)
def test_intervals(row: dict[str, Any], text: str) -> None:
    assert interval_text(row) == text


def test_a_card_without_a_teacher_names_none(run: Path, tmp_path: Path, no_pictures: None) -> None:
    config = effopd.Config.of("grpo", train={"responses_per_prompt": 4})
    checkpoint = run / "checkpoints" / "step-00004"
    hub._write_card(tmp_path, load_run(run), config, checkpoint, "me/model", None, None)
    card = card_of(tmp_path)
    assert "on answers of its own, without a teacher. These" in card.text
    said = card.text.split("## Licence")[0]
    assert not [word for word in ("| teacher | the", "distil", "by the teacher") if word in said]
    assert card.data.tags == ["effopd", "grpo"]


def test_what_a_world_brings_is_named() -> None:
    config = effopd.Config.of("slope", task={"type": "smollm2", "task": "sums"})
    student = "SmolLM2-135M-Instruct"
    assert hub._models(config, None) == (student, f"{student}, taught sums by effopd")
    tiny = hub._models(effopd.Config.of("slope"), None)
    assert tiny == ("the tiny world's base model", "the tiny world's teacher")


def test_names_of_models() -> None:
    assert hub._named("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert hub._named("/srv/models/mine") == "mine"
    assert hub._repository("mine") is None
    assert hub._repository("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"


# Which checkpoint ---------------------------------------------------------------------------------


def test_a_step_may_be_chosen(run: Path, tmp_path: Path, no_pictures: None) -> None:
    push_to_hub(run, to=tmp_path / "early", step=2)
    saved = load_file(run / "checkpoints" / "step-00002" / "model.safetensors")
    pushed = load_file(tmp_path / "early" / "model.safetensors")
    assert all(torch.equal(saved[name], pushed[name]) for name in saved)
    assert "after step 2 of 4" in (tmp_path / "early" / "README.md").read_text()


def test_the_best_that_was_kept_is_taken(run: Path) -> None:
    records = load_run(run)
    evals = [row | {"accuracy": float(row["step"] == 2)} for row in records.evals]
    records = dataclasses.replace(records, evals=evals)
    assert hub._checkpoint(records, None, best=True).name == "step-00002"
    assert hub._checkpoint(records, None, best=False).name == "step-00004"
    assert hub._checkpoint(records, 4, best=True).name == "step-00004"


def test_refusals(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint of step 3; it has 2, 4"):
        push_to_hub(run, to=tmp_path / "out", step=3)
    with pytest.raises(ConfigError, match=r"to a repository .* or to a directory"):
        push_to_hub(run)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="choose a new or empty directory"):
        push_to_hub(run, to=tmp_path / "full")
    with pytest.raises(ConfigError, match=r"'model' is no name .* its owner too, as me/model"):
        push_to_hub(run, "model")
    with pytest.raises(ConfigError, match="it is a checkpoint of"):
        push_to_hub(run / "checkpoints" / "step-00004", to=tmp_path / "out")


def test_what_fails_on_the_way_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(hub, "_draw_curve", fail)
    with pytest.raises(OSError, match="no space"):
        push_to_hub(run, to=tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_a_damaged_checkpoint_is_not_pushed(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        push_to_hub(tmp_path / "run", to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The upload ---------------------------------------------------------------------------------------


def test_a_repository_is_given_the_same_folder(
    run: Path, written: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def fake(folder: Path, repo: str, *, private: bool, message: str) -> str:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
        seen.update(files=files, repo=repo, private=private, message=message)
        return f"https://huggingface.co/{repo}"

    monkeypatch.setattr(hub, "upload", fake)
    result = CliRunner().invoke(app, ["push", str(run), "--repo", "me/model", "--private"])
    assert result.stdout == "https://huggingface.co/me/model\n"
    assert (seen["repo"], seen["private"]) == ("me/model", True)
    assert seen["message"] == "Step 4 of a run, by effopd"
    weights = (written / "model.safetensors").read_bytes()
    assert seen["files"]["model.safetensors"] == weights
    assert set(seen["files"]) == {
        path.relative_to(written).as_posix() for path in written.rglob("*.*")
    }
    assert [path.name for path in run.glob(".push-*")] == []


class FakeApi:
    """The three calls of an upload."""

    private = False
    fails: Callable[[], None] = staticmethod(lambda: None)
    uploaded: list[dict[str, Any]]

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> Any:
        class Address(str):
            repo_id = repo

        FakeApi.fails()
        assert exist_ok
        return Address(f"https://huggingface.co/{repo}")

    def model_info(self, repo: str) -> Any:
        return type("Info", (), {"private": FakeApi.private})

    def upload_folder(self, **arguments: Any) -> None:
        FakeApi.uploaded.append(arguments)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "uploaded", [], raising=False)
    return FakeApi


def test_uploading(api: type[FakeApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = hub.upload(tmp_path, "me/model", private=False, message="a step")
    assert address == "https://huggingface.co/me/model"
    assert api.uploaded == [
        {"repo_id": "me/model", "folder_path": str(tmp_path), "commit_message": "a step"}
    ]
    with pytest.raises(ConfigError, match="is public"):
        hub.upload(tmp_path, "me/model", private=True, message="a step")
    assert len(api.uploaded) == 1

    def fail() -> None:
        raise OSError("401 Client Error")

    monkeypatch.setattr(api, "fails", staticmethod(fail))
    with pytest.raises(ServerError, match=r"401 Client Error.*hf auth login.*--to"):
        hub.upload(tmp_path, "me/model", private=False, message="a step")


def test_a_name_that_no_repository_can_have() -> None:
    with pytest.raises(ConfigError, match="is no name of a repository"):
        hub.upload(Path(os.devnull), "me/my/model", private=False, message="a step")
