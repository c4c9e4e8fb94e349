"""docs/recipes.md: its recipe runs, and its defaults are those that runs have."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from tests.support.architectures import save

from effopd.cli.run import run_recipe
from effopd.config.reading import to_toml
from effopd.doctor import check_file
from effopd.models.loading import real_device
from effopd.records import read_json, read_jsonl
from effopd.training.config import load_config, make_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "recipes.md").read_text("utf-8")
TINY = [
    "train.steps=1", "train.prompts_per_step=4", "sampling.max_new_tokens=8",
    "evaluation.problems=2", "prompt.max_tokens=64", "validation.prompts=4",
]  # fmt: skip
"""Sizes alone; what else the recipe says stays."""


def test_the_recipe_for_ones_own_models_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert "extends" not in example
    recipe = tmp_path / "run.toml"
    recipe.write_text(example, encoding="utf-8")
    save(tmp_path / "models" / "student", "qwen3")
    save(tmp_path / "models" / "teacher", "qwen3", seed=1)
    rows = [{"prompt": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(24)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "prompts.jsonl").write_text(lines, encoding="utf-8")
    findings = check_file(recipe, [], offline=True).findings
    assert [each for each in findings if each.level == "problem"] == []
    assert run_recipe(recipe, TINY, tmp_path / "run")
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1]
    # Records say which device was taken.
    taken = real_device("auto")
    assert load_config(recipe).device == "auto"
    assert load_config(tmp_path / "run" / "config.toml").device == taken
    assert read_json(tmp_path / "run" / "run.json")["device"] == taken
    assert run_recipe(recipe, TINY, tmp_path / "run")  # the same command finds it finished


def test_the_defaults_are_those_of_a_run() -> None:
    table = PAGE.split("has these defaults:")[1].split("## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", table, re.MULTILINE)
    assert len(rows) > 20
    models = {"student": {"path": "s"}, "teacher": {"path": "t"}}
    named = {"type": "dataset", "train": {"path": "x", "answer_field": "answer"}}
    tiny = tomllib.loads(to_toml(make_config({})))
    own = tomllib.loads(to_toml(make_config(models | {"task": named})))
    for setting, shown in rows:
        value = tiny if setting == "task.type" else own
        for part in setting.split("."):
            value = value[part]
        assert tomllib.loads(f"x = {shown}")["x"] == value, setting


def test_every_command_names_a_file_that_is_there() -> None:
    for domain in ("math", "code"):
        for size in ("1.5b", "4b"):
            assert (ROOT / "recipes" / "paper" / f"{domain}-{size}.toml").is_file()
        for size in ("14b", "32b"):
            assert (ROOT / "examples" / "verl" / f"{domain}-{size}.sh").is_file()
    named = re.findall(r"(?:recipes|examples)/[\w./-]+\.(?:toml|sh)", PAGE)
    missing = [path for path in named if "SIZE" not in path and not (ROOT / path).is_file()]
    assert missing == []
