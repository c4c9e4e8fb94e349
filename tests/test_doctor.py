"""What the doctor finds, and that what it lets pass is what runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.architectures import ROWS, save, write_problems

from effopd.cli.doctor import Finding, doctor, examine
from effopd.errors import ConfigError
from effopd.models.footprint import gpu_named

PAPER = Path(__file__).parents[1] / "recipes" / "paper"
RECIPES = sorted(path for path in PAPER.glob("*.toml") if not path.stem.startswith("base-"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    save(tmp_path / "student", "qwen3")
    save(tmp_path / "teacher", "qwen3", seed=1, rows=ROWS + 5)
    write_problems(tmp_path / "problems.jsonl")
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
[student]
path = "{tmp_path / "student"}"
[teacher]
path = "{tmp_path / "teacher"}"
[task]
type = "jsonl"
train_path = "{tmp_path / "problems.jsonl"}"
test_size = 2
"""
    )
    return path


def found(recipe: Path, *overrides: str, gpu: str | None = None) -> list[Finding]:
    card = gpu_named(gpu) if gpu else None
    return list(examine(recipe, overrides, offline=True, gpu=card))


def problems(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.check, each.text) for each in findings if each.level == "problem"]


def test_a_sound_run_has_no_problem(recipe: Path) -> None:
    findings = found(recipe, gpu="80GB")
    assert problems(findings) == []
    text = "\n".join(map(str, findings))
    assert "tokenizers: teacher has the student's tokens" in text
    assert "heads have 259, 264 rows" in text
    assert "10 to train on, 2 held out" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_paper_pass_offline(path: Path) -> None:
    assert problems(found(path)) == []


def sandbox(*overrides: str, offline: bool = True) -> list[Finding]:
    """What is said of the sandbox for a recipe that runs programs."""
    findings = examine(PAPER / "code-4b.toml", overrides, offline=offline, gpu=None)
    return [each for each in findings if each.check == "sandbox"]


def test_programs_need_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path without bubblewrap stands for a machine without it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (away,) = sandbox("code.sandbox.kind=bubblewrap")
    (here,) = sandbox("code.sandbox.kind=bubblewrap", offline=False)
    assert (away.level, here.level) == ("warning", "problem")
    assert "bubblewrap" in here.text
    assert not sandbox("task.verifier=none", "validation.type=teacher_kl")


def test_a_sandbox_elsewhere_is_not_tried() -> None:
    (finding,) = sandbox("code.sandbox.kind=url", "code.sandbox.url=http://127.0.0.1:9")
    assert (finding.level, finding.text) == ("warning", "not tried: http://127.0.0.1:9")


def test_a_card_that_is_too_small(recipe: Path) -> None:
    assert {check for check, _ in problems(found(recipe, gpu="1000"))} == {
        "writing",
        "scoring",
        "update",
        "one trial of the search",
    }


def test_wrong_settings_end_the_visit(recipe: Path) -> None:
    (finding,) = found(recipe, "train.steps=0")
    assert (finding.level, finding.check) == ("problem", "settings")
    assert "train.steps must be at least 1, got 0" in finding.text


def test_a_model_that_is_not_there(recipe: Path) -> None:
    assert ("teacher", True) in {
        (check, "no directory on this disk" in text)
        for check, text in problems(found(recipe, "teacher.path=nobody/nothing"))
    }


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 10**9), ("num_hidden_layers", -1)])
def test_impossible_sizes_are_problems(recipe: Path, name: str, value: int) -> None:
    path = recipe.parent / "student" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert any(f"{name} must be a whole number" in text for _, text in problems(found(recipe)))


def test_another_chat_template_is_noticed(recipe: Path) -> None:
    path = recipe.parent / "teacher" / "chat_template.jinja"
    path.write_text(path.read_text() + "!")
    assert any(each.check == "chat template" and each.level == "warning" for each in found(recipe))


def test_weights_of_another_model(recipe: Path) -> None:
    save(recipe.parent / "other", "qwen3", num_hidden_layers=3)
    weights = recipe.parent / "other" / "model.safetensors"
    weights.rename(recipe.parent / "student" / "model.safetensors")
    assert any("its config.json describes" in text for _, text in problems(found(recipe)))


def test_a_test_problem_among_the_training_problems(recipe: Path) -> None:
    path = recipe.parent / "problems.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[-1], *lines]) + "\n")
    assert ("problems", "1 test problems are among the training problems") in problems(
        found(recipe)
    )


def test_json_and_verdict(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(recipe, [], offline=True, gpu=None, as_json=True)
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert {"level", "check", "text", "remedy"} == rows[0].keys()
    assert not doctor(recipe, ["train.steps=0"], offline=True, gpu=None, as_json=False)
    with pytest.raises(ConfigError, match="--gpu must be"):
        doctor(recipe, [], offline=True, gpu="abacus", as_json=False)


def test_a_student_in_float16_needs_masters(recipe: Path) -> None:
    (found_problem,) = problems(found(recipe, "student.dtype=float16"))
    assert found_problem[0] == "settings"
    assert "memory.master_weights" in found_problem[1]
    for remedy in ("memory.master_weights=true", "student.lora={r=2}"):
        assert problems(found(recipe, "student.dtype=float16", remedy)) == []
