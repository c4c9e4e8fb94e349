"""`effopd data preview`: what student and teacher are shown, by value."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tests.fakes import TOKENIZER, WORLD
from tests.support.tiny import tiny_config, train_tiny, write_models
from typer.testing import CliRunner

from effopd.cli.main import app
from effopd.data.problem import Problem, Task
from effopd.data.world import make_tokenizer
from effopd.doctor.preview import Rendered, Shown, block
from effopd.rewards.math import MathVerifier
from effopd.rewards.workers import WorkerSettings
from effopd.training.build import load_problems
from effopd.training.config import load_config
from effopd.training.rows import counts_record

THINKING = (
    "{{ bos_token }}{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}"
    "{% if enable_thinking %} #{% endif %}"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Student and teacher of the tiny world, and a teacher with another chat template."""
    directory = write_models(tmp_path_factory.mktemp("models"))
    tokenizer = make_tokenizer(WORLD)
    tokenizer.chat_template = THINKING
    for file in (directory / "teacher").iterdir():
        other = directory / "other" / file.name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(file.read_bytes())
    tokenizer.save_pretrained(directory / "other")
    return directory


def recipe(tmp_path: Path, models: Path, task: dict[str, Any], **settings: Any) -> Path:
    raw = {
        "student": {"path": str(models / "student")},
        "teacher": {"path": str(models / "teacher")},
        "task": task,
        **settings,
    }
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(raw))
    return path


def problems(path: Path, *questions: str, **fields: Any) -> str:
    rows = [{"question": each, "answer": "7"} | fields for each in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def dataset(tmp_path: Path, *questions: str, **settings: Any) -> dict[str, Any]:
    train = {"path": problems(tmp_path / "train.jsonl", *questions)}
    test = {"path": problems(tmp_path / "test.jsonl", "6 + 6 =")}
    return {"type": "dataset", "train": train, "test": test, "verifier": "boxed"} | settings


def lines(*arguments: object) -> list[str]:
    found = CliRunner().invoke(app, ["data", "preview", *map(str, arguments)])
    assert found.exit_code == 0, found.output
    return found.stdout.splitlines()


def test_counts_and_prompts(tmp_path: Path, models: Path) -> None:
    task = dataset(tmp_path, "3 + 4 =", "3 + 4 =", "1 + 1 =", "6 + 6 =")
    path = recipe(tmp_path, models, task)
    assert lines(path) == [
        f"{tmp_path}/train.jsonl: 2 of 4 rows kept; 1: the prompt of an earlier row; "
        "1: the prompt of a test problem",
        f"{tmp_path}/test.jsonl: 1 of 1 rows kept",
        "2 training problems, 1 test problems",
        "",
        "--- train-1",
        "5 tokens, the same for student and teacher:",
        "<bos> 3 + 4 =",
        "reference: 7",
        "",
        "--- train-3",
        "5 tokens, the same for student and teacher:",
        "<bos> 1 + 1 =",
        "reference: 7",
    ]
    assert lines(path, "-n", 1) == lines(path)[:8]
    assert lines(path, "--problems", 0) == lines(path)[:3]


def test_other_prompts_side_by_side(tmp_path: Path, models: Path) -> None:
    path = recipe(tmp_path, models, dataset(tmp_path, "3 + 4 ="))
    override = f"teacher.path={models}/other"
    assert lines(path, override)[4:] == [
        "--- train-1", "5 tokens, the same for student and teacher:", "<bos> 3 + 4 =",
        "reference: 7",
    ]  # fmt: skip
    found = lines(path, override, "prompt.enable_thinking=true")
    assert [" ".join(line.split()) for line in found[5:]] == [
        "student, 5 tokens: | teacher, 6 tokens:",
        "<bos> 3 + 4 = | <bos> 3 + 4 = #",
        "DIFFERENT from token 6 on: the teacher scores the student's tokens, which are not those "
        "of its own prompt",
        "reference: 7",
    ]


def test_each_problem_with_its_own_teacher(tmp_path: Path, models: Path) -> None:
    train = {
        "path": problems(tmp_path / "train.jsonl", "3 + 4 =", by="second", hard=3, of="drill"),
        "teacher_field": "by",
        "level_field": "hard",
        "source_field": "of",
    }
    task = {"type": "dataset", "train": train, "test": train | {"path": str(tmp_path / "t.jsonl")}}
    problems(tmp_path / "t.jsonl", "6 + 6 =", by="first", hard=1, of="drill")
    path = recipe(
        tmp_path,
        models,
        task | {"verifier": "none"},
        teachers={
            "first": {"path": str(models / "teacher")},
            "second": {"path": str(models / "other")},
        },
        prompt={"enable_thinking": True},
    )
    path.write_text(path.read_text().replace("[teacher]", "[reference]"))
    found = lines(path)
    assert found[4] == "--- train-1 level 3 drill teacher second"
    assert "DIFFERENT from token 6 on" in found[7]
    assert found[8] == "reference: none"


def test_long_prompts(tmp_path: Path, models: Path) -> None:
    task = dataset(tmp_path, "3 + 4 =", "3 + 4 + 5 =")
    path = recipe(tmp_path, models, task, prompt={"max_tokens": 5})
    refused = CliRunner().invoke(app, ["data", "preview", str(path)])
    assert refused.exit_code == 2
    assert refused.stderr == (
        "error: prompt train-2 has 7 tokens; allowed are 1 to 5 (prompt.max_tokens, "
        "prompt.too_long)\n"
    )
    assert lines(path, "prompt.too_long=drop", "-n", 0)[2:] == [
        "training prompts: 1 of 2 rows kept; 1: more than 5 tokens",
        "test prompts: 1 of 1 rows kept",
        "1 training problems, 1 test problems",
    ]


def test_what_is_left_out_is_said_and_recorded(tmp_path: Path, models: Path) -> None:
    task = dataset(tmp_path, "3 + 4 =", "1 + 1 + 1 =", "3 + 4 =", verifier="math")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"question": "2 + 2 =", "answer": r"A \cup B \{"}) + "\n")
    prompt = {"max_tokens": 5, "too_long": "drop"}
    config = load_config(recipe(tmp_path, models, task, prompt=prompt))
    said: list[str] = []
    with MathVerifier(WorkerSettings(processes=1, wall_s=120.0)) as verifier:
        found = load_problems(config, TOKENIZER, verifier, said.append)
    assert [problem.id for problem in found.train] == ["train-1"]
    assert [problem.id for problem in found.test] == ["test-1"]
    assert "left out 1 of 3 training problems" in said[0]
    assert said[0].endswith("train-4")
    assert said[1:] == [str(counts) for counts in found.counts]
    assert counts_record(found) == {
        "problems": [
            {
                "name": f"{tmp_path}/train.jsonl",
                "read": 4,
                "kept": 3,
                "dropped": {"the prompt of an earlier row": 1},
            },
            {"name": f"{tmp_path}/test.jsonl", "read": 1, "kept": 1, "dropped": {}},
            {
                "name": "training prompts",
                "read": 2,
                "kept": 1,
                "dropped": {"more than 5 tokens": 1},
            },
            {"name": "test prompts", "read": 1, "kept": 1, "dropped": {}},
        ]
    }
    assert counts_record(Task(train=[], test=[])) == {}


def test_a_run_records_the_counts(tmp_path: Path, models: Path) -> None:
    task = dataset(tmp_path, *[f"{i % 7} + {i // 7} =" for i in range(20)], "0 + 0 =")
    config = tiny_config(models, {"task": task, "method": "opd", "train.steps": 2})
    finished, messages = train_tiny(config, tmp_path / "run")
    assert finished
    assert f"{tmp_path}/test.jsonl: 1 of 1 rows kept" in messages
    train, test = json.loads((tmp_path / "run" / "run.json").read_text())["problems"]
    assert (train["read"], train["kept"]) == (21, 20)
    assert train["dropped"] == {"the prompt of an earlier row": 1}
    assert test["kept"] == 1


def test_the_tiny_world_needs_no_models() -> None:
    found = lines(Path(__file__).parents[2] / "recipes" / "tiny-effopd.toml", "-n", 1)
    assert found[:2] == ["8192 training problems, 512 test problems", ""]
    assert "the same for student and teacher" in found[3]
    assert found[4].startswith("<bos> ")


def test_a_teacher_with_a_prompt_of_its_own(tmp_path: Path, models: Path) -> None:
    train = {"path": str(tmp_path / "train.jsonl"), "keep_fields": ["hint"]}
    task = dataset(tmp_path, "3 + 4 =") | {"train": train}
    problems(tmp_path / "train.jsonl", "3 + 4 =", hint="6 ;")
    own = {"system": "# ", "text": "{hint} {prompt}"}
    found = lines(recipe(tmp_path, models, task, teacher_prompt=own))
    assert [" ".join(line.split()) for line in found[5:8]] == [
        "student, 5 tokens: | teacher, 8 tokens:",
        "<bos> 3 + 4 = | <bos> # 6 ; 3 + 4 =",
        "DIFFERENT from token 2 on: the teacher reads its own prompt (teacher_prompt) before the "
        "student's answers",
    ]


def test_control_characters_are_shown(tmp_path: Path) -> None:
    hostile = "\x1b[2J\x07 \u202eevil [red]"
    problem = Problem(id="p-1", prompt="", answer=hostile, source=hostile)
    same = Rendered(ids=(1,), text=hostile)
    shown = "␛[2J␇ ⟨202E⟩evil [red]"
    assert list(block(Shown(problem=problem, student=same, teacher=same), width=80)) == [
        f"--- p-1 {shown}", "1 tokens, the same for student and teacher:", shown,
        f"reference: {shown}",
    ]  # fmt: skip
    other = Rendered(ids=(2,), text=f"{hostile}\ufffe")
    assert "\x1b" not in "".join(
        block(Shown(problem=problem, student=same, teacher=other), width=80)
    )
