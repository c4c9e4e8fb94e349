"""Whole commands meet hostile input: no question, no code, no secret, no way out of a directory."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.tiny import tiny_config, train_tiny
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


RUN_ALL = """
import json, sys, traceback
from effopd.cli.main import app

for words in json.loads(sys.argv[1]):
    try:
        app(words)
    except SystemExit as ended:
        status = ended.code
    except Exception:  # --debug
        traceback.print_exc()
        status = 1
    print(f"\\nSTATUS {status}", file=sys.stderr, flush=True)
"""


def in_one_process(*commands: list[str | Path]) -> tuple[list[str], str, str]:
    """Commands one after the other in a process that has nobody to ask and knows all secrets.

    Returns:
        What each wrote to its standard error, the last line being its status, and all output.
    """
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | CANARIES,
    )
    parts = re.split(r"(?<=\nSTATUS \d)\n", done.stderr)
    return parts[: len(commands)], done.stdout, done.stderr


def evil_student(models: Path, directory: Path) -> Path:
    """A model directory with code of its own, which leaves `executed` behind when it runs."""
    student = directory / "student"
    shutil.copytree(models / "student", student)
    (student / "evil.py").write_text(EVIL.format(marker=str(directory / "executed")))
    settings = json.loads((student / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (student / "config.json").write_text(
        json.dumps(settings | {"model_type": "evil", "auto_map": auto_map})
    )
    return student


def test_no_secret_is_written_or_said_no_code_of_a_model_is_run_and_nothing_is_asked(
    models: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "run.toml", tmp_path / "out"
    recipe.write_text(to_toml(tiny_config(models, {"train.steps": 2, "checkpoint.every": 2})))
    student = evil_student(models, tmp_path)
    (done, wrong, missing, evil), *output = in_one_process(
        ["train", recipe, "--out", out],
        ["train", recipe, "optimizer.lrr=1"],
        ["train", recipe, "student.path=./none", "--debug"],
        ["train", recipe, f"student.path={student}", "--out", tmp_path / "evil"],
    )
    # Secrets of the environment
    assert done.endswith("STATUS 0")
    assert wrong.endswith("STATUS 2")
    assert "Traceback" in missing
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"config.toml", "run.json", "metrics.jsonl"}
    for canary in CANARIES.values():
        assert [path for path in written if canary.encode() in path.read_bytes()] == []
        assert not any(canary in text for text in output)
    # Code of a model
    *_, said, status = filter(None, evil.splitlines())
    assert status == "STATUS 2"
    assert said == f"error: {student} needs code of its own, which effopd never runs"
    assert not (tmp_path / "executed").exists()


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
    assert "cannot hold the run" in result.stderr
    assert "Choose another directory (--out)" in result.stderr


def test_a_link_is_followed_because_the_user_made_it(models: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert train_tiny(tiny_config(models, {"train.steps": 1}), tmp_path / "run")[0]
    assert (tmp_path / "disk" / "metrics.jsonl").is_file()
