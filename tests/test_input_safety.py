"""Whole commands meet hostile input: no question, no code, no secret, no way out of a directory."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.tiny import tiny_config, train_tiny, write_models
from typer.testing import CliRunner

from effopd.cli.main import app
from effopd.config.reading import to_toml

CANARIES = {
    name: f"canary-{name.lower()}-0123456789"
    for name in (
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY",
        "EFFOPD_TEACHER_KEY", "AWS_SECRET_ACCESS_KEY",
    )
}  # fmt: skip
EVIL = "import pathlib\npathlib.Path({marker!r}).touch()\nclass C: pass\nM = T = C\n"


def effopd(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, which has nobody to ask."""
    command = [sys.executable, "-m", "effopd.cli.main", *map(str, arguments)]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )


# Secrets ------------------------------------------------------------------------------------------


def test_no_secret_of_the_environment_is_in_a_run_or_in_what_it_says(
    models: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "run.toml"
    recipe.write_text(to_toml(tiny_config(models, {"train.steps": 2, "checkpoint.every": 2})))
    out = tmp_path / "out"
    done = effopd("train", recipe, "--out", out, environment=CANARIES)
    assert done.returncode == 0, done.stderr
    wrong = effopd("train", recipe, "optimizer.lrr=1", environment=CANARIES)
    missing = effopd("train", recipe, "student.path=./none", "--debug", environment=CANARIES)
    assert wrong.returncode == 2
    assert "Traceback" in missing.stderr
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"config.toml", "run.json", "metrics.jsonl"}
    said = [text.encode() for run in (done, wrong, missing) for text in (run.stdout, run.stderr)]
    for canary in CANARIES.values():
        assert [path for path in written if canary.encode() in path.read_bytes()] == []
        assert not any(canary.encode() in text for text in said)


# Code ---------------------------------------------------------------------------------------------


def test_code_of_a_model_is_not_run_and_nothing_is_asked(models: Path, tmp_path: Path) -> None:
    config = tiny_config(models, {"student.path": str(tmp_path / "student")})
    os.symlink(models / "teacher", tmp_path / "teacher")
    write_models(tmp_path / "own")
    (tmp_path / "own" / "student").rename(tmp_path / "student")
    student, marker = tmp_path / "student", tmp_path / "executed"
    (student / "evil.py").write_text(EVIL.format(marker=str(marker)))
    settings = json.loads((student / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (student / "config.json").write_text(
        json.dumps(settings | {"model_type": "evil", "auto_map": auto_map})
    )
    recipe = tmp_path / "run.toml"
    recipe.write_text(to_toml(config))
    done = effopd("train", recipe, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: {student} needs code of its own, which effopd never runs"
    )
    assert not marker.exists()


# Places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["plain", "with spaces", "-rf", "ünïcödé ☃", "x" * 200, "a\nb", "\x1b[2J", "..hidden"],
    ids=repr,
)
def test_any_directory_of_the_user_s_own_can_hold_a_run(
    models: Path, tmp_path: Path, name: str
) -> None:
    config = tiny_config(models, {"train.steps": 1, "label": "../../x"})
    (tmp_path / "parent").mkdir()
    assert train_tiny(config, tmp_path / "parent" / name)[0]
    assert os.listdir(tmp_path) == ["parent"], "a label is not a path"
    assert os.listdir(tmp_path / "parent") == [name]


@pytest.mark.parametrize("kind", ["file", "long", "below-a-file"])
def test_places_that_cannot_be_directories(models: Path, tmp_path: Path, kind: str) -> None:
    recipe = tmp_path / "run.toml"
    recipe.write_text(to_toml(tiny_config(models)))
    places = {"file": recipe, "long": tmp_path / ("x" * 300), "below-a-file": recipe / "out"}
    result = CliRunner().invoke(app, ["train", str(recipe), "--out", str(places[kind])])
    assert result.exit_code == 2, result.output
    assert "cannot be a run directory" in result.stderr
    assert "Choose another one (--out)" in result.stderr


def test_a_link_is_followed_because_the_user_made_it(models: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert train_tiny(tiny_config(models, {"train.steps": 1}), tmp_path / "run")[0]
    assert (tmp_path / "disk" / "metrics.jsonl").is_file()
