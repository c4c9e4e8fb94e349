"""Repositories through `datasets`, from directories laid out like those of the hub."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pytest
from datasets import disable_progress_bars
from pyarrow import parquet

from effopd.data.hub import hub_rows
from effopd.data.origins import ORIGINS, Origin
from effopd.errors import ConfigError

disable_progress_bars()

CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: train
    path: socratic/train-*
---
# A card
"""


def write(path: Path, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    """Two configurations, two splits, a split in two files."""
    root = tmp_path / "gsm8k"
    for name, questions in (
        ("main/train-00000-of-00002", ["q1", "q2"]),
        ("main/train-00001-of-00002", ["q3"]),
        ("main/test-00000-of-00001", ["t1"]),
        ("socratic/train-00000-of-00001", ["s1"]),
    ):
        answers = [f"#### {i}" for i in range(len(questions))]
        write(root / f"{name}.parquet", question=questions, answer=answers, unused=answers)
    (root / "README.md").write_text(CARD)
    return root


def rows(origin: Origin, tmp_path: Path, fields: list[str] | None = None) -> list[Any]:
    found = hub_rows(origin, "gsm8k", fields, cache=str(tmp_path / "cache"))
    return [(row.name, dict(row.values)) for row in found]


def test_configurations_splits_and_files(gsm8k: Path, tmp_path: Path) -> None:
    origin = replace(ORIGINS["gsm8k"], repo=str(gsm8k))
    fields = ["question", "answer"]
    assert rows(origin, tmp_path, fields) == [
        ("gsm8k-train-1", {"question": "q1", "answer": "#### 0"}),
        ("gsm8k-train-2", {"question": "q2", "answer": "#### 1"}),
        ("gsm8k-train-3", {"question": "q3", "answer": "#### 0"}),
    ]
    test = replace(origin, split="test")
    assert rows(test, tmp_path, ["question"]) == [("gsm8k-test-1", {"question": "t1"})]
    socratic = replace(origin, config="socratic")
    assert rows(socratic, tmp_path, ["question"]) == [("gsm8k-train-1", {"question": "s1"})]
    one = replace(origin, config="", files="main/test-00000-of-00001.parquet")
    assert rows(one, tmp_path, ["question"]) == [("gsm8k-train-1", {"question": "t1"})]


def test_nested_fields_and_json_lines(tmp_path: Path) -> None:
    root = tmp_path / "eurus"
    root.mkdir()
    row = {
        "prompt": [{"content": "s", "role": "system"}, {"content": "q", "role": "user"}],
        "reward_model": {"ground_truth": "g", "style": "rule"},
        "ability": "code",
    }
    (root / "train.jsonl").write_text(json.dumps(row) + "\n")
    fields = ["prompt", "reward_model.ground_truth", "ability"]
    found = hub_rows(Origin(repo=str(root)), "eurus", fields, cache=str(tmp_path / "cache"))
    assert [row.values for row in found] == [row]


MISTAKES = [
    ({"split": "validation"}, "split validation: "),
    ({"config": "other"}, "cannot load "),
    ({"files": "main/gone.parquet"}, "cannot load "),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_what_is_not_there(
    gsm8k: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    origin = replace(ORIGINS["gsm8k"], repo=str(gsm8k), revision="", **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as error:
        rows(origin, tmp_path)
    assert f"cannot load {gsm8k} at its newest commit" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["train.arrow", "train.txt", "train.tar", "train.zip"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    (root / name).write_bytes(b"a,b\n1,2\n")
    with pytest.raises(ConfigError):
        rows(Origin(repo=str(root)), tmp_path)
    assert not list(tmp_path.glob("cache/**/*.arrow")), "nothing was read"


@pytest.mark.parametrize("member", ["train.jsonl", "../../train.jsonl", "/train.jsonl"])
def test_archives_are_not_unpacked(tmp_path: Path, member: str) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    with ZipFile(root / "train.zip", "w") as archive:
        archive.writestr(member, '{"question": "q"}\n')
    with pytest.raises(ConfigError, match=r"holds other files|No .* data files found"):
        rows(Origin(repo=str(root)), tmp_path)
    assert not list(tmp_path.glob("**/*.jsonl"))


def test_code_of_a_data_set_is_not_run(tmp_path: Path) -> None:
    root, mark = tmp_path / "scripted", tmp_path / "ran"
    root.mkdir()
    (root / "scripted.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (root / "train.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(ConfigError, match="scripts are no longer supported"):
        rows(Origin(repo=str(root)), tmp_path)
    assert not mark.exists()


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as error:
        rows(ORIGINS["gsm8k"], tmp_path)
    assert "cannot load openai/gsm8k at 740312add88f" in str(error.value)
