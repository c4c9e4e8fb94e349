"""docs/data.md and the settings of data sets, which it shows."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from effopd.config.reading import to_toml
from effopd.data.dataset import DatasetSpec, DatasetTask, registry
from effopd.data.filters import Filters
from effopd.data.mapping import TEMPLATES
from effopd.errors import ConfigError
from effopd.training.config import Config, load_config, make_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text("utf-8")
MODELS = {"student": {"path": "student"}, "teacher": {"path": "teacher"}}


def config(**settings: Any) -> Config:
    return make_config(MODELS | settings)


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        config(**settings)
    return str(error.value)


def task(**settings: Any) -> dict[str, Any]:
    return {"type": "dataset", "train": {"path": "x.jsonl"}} | settings


# The page -----------------------------------------------------------------------------------------


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    example, arguments = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    resolved = config(**tomllib.loads(example))
    assert isinstance(resolved.task, DatasetTask)
    assert resolved.task.train == DatasetSpec(name="deepmath", hub=True)
    assert resolved.task.filters.min_level == 6
    assert resolved.prompt.too_long == "drop"
    path = tmp_path / "config.toml"
    path.write_text(to_toml(resolved))
    assert load_config(path) == resolved
    given = config(**(tomllib.loads(example) | tomllib.loads(arguments))).prompt.template_kwargs
    assert given == {"thinking": True, "reasoning_effort": "low"}


def test_the_python_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out.strip() == example.strip().rsplit("# ", 1)[1]


def test_the_table_of_data_sets() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w/-]+)` \| `(\w{40})` \| (.+) \|$", PAGE, re.MULTILINE)
    named = {name: spec for name, spec in registry().datasets.items() if name != "custom"}
    assert rows == [(n, s["repo"], s["revision"], s["licence"]) for n, s in named.items()]


def test_every_setting_template_and_filter_is_described() -> None:
    words = set(re.findall(r"\w+", PAGE))
    of_source = {field.name for field in fields(DatasetSpec)}
    of_filters = {field.name for field in fields(Filters)}
    assert of_source | of_filters | set(TEMPLATES) <= words


# Settings -----------------------------------------------------------------------------------------


def test_sections_and_overrides() -> None:
    resolved = make_config(
        MODELS | {"task": task()},
        ["task.train.path=y.jsonl", "task.filters.min_level=3", "task.test_size=7"],
    )
    assert resolved.task == DatasetTask(
        train=DatasetSpec(path="y.jsonl"), test_size=7, filters=Filters(min_level=3)
    )


def test_what_needs_a_verifier() -> None:
    unchecked = task(verifier="none")
    assert "needs task.verifier" in refusal(
        task=unchecked, method="effopd", validation={"type": "accuracy", "prompts": 8}
    )
    assert "set task.verifier" in refusal(task=unchecked, method="grpo")
    assert config(task=unchecked, method="opd").task.verifier == "none"  # type: ignore[union-attr]


def test_models_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"task\.type = 'dataset' needs student\.path"):
        make_config({"task": task()})
