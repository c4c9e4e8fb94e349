"""Rows of JSON Lines, parquet, memory, and repositories laid out like those of the hub."""

import json
import os
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pytest
from datasets import disable_progress_bars
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from effopd.data.rows import Row, file_rows, hub_rows, memory_rows, needed_columns
from effopd.errors import ConfigError

disable_progress_bars()


def jsonl(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return path


def table(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


def refusal(path: Path) -> str:
    """The message about a file, its path replaced by FILE."""
    with pytest.raises(ConfigError) as error:
        list(file_rows(str(path)))
    return str(error.value).replace(str(path), "FILE")


# JSON Lines ---------------------------------------------------------------------------------------


def test_rows_of_json_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", '{"a": 1}', "", '{"a": {"b": null}}\r', "{}")
    assert list(file_rows(str(path))) == [
        Row(f"{path} line 1", "x-1", {"a": 1}),
        Row(f"{path} line 3", "x-3", {"a": {"b": None}}),
        Row(f"{path} line 4", "x-4", {}),
    ]


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | FLOATS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4), st.booleans())
def test_any_objects_come_back(
    tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, Any]], ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    text = "".join(json.dumps(each, ensure_ascii=ascii_only) + "\n" for each in objects)
    path.write_bytes(text.encode())
    assert [row.values for row in file_rows(str(path))] == objects


REFUSED = [
    (b'{"a": "\xff"}', "FILE is not UTF-8: "),
    (b'{"a": "\xed\xa0\xbd"}', "FILE is not UTF-8: "),
    (b"\x00\x00", "FILE line 2 is not JSON: "),
    (b"\x1f\x8b\x08", "FILE is not UTF-8: "),
    (b"[1]", "FILE line 2 is not a JSON object"),
    (b'"text"', "FILE line 2 is not a JSON object"),
    (b'{"a": 1} {"a": 2}', "FILE line 2 is not JSON: Extra data"),
    (b"[" * 100_000, "FILE line 2 is not JSON: "),
    (b'{"a": ' + b"9" * 5000 + b"}", "FILE line 2 is not JSON: "),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=lambda each: repr(each[:12]))
def test_damaged_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    assert refusal(jsonl(tmp_path / "x.jsonl", "{}", line, "{}")).startswith(message)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", "\ufeff".encode() + b'{"a": 1}', b'{"a": 2}')
    assert [row.values for row in file_rows(str(path))] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
def test_only_a_newline_ends_a_line(tmp_path: Path, separator: str) -> None:
    row = {"question": f"above{separator}below"}
    text = json.dumps(row, ensure_ascii=ord(separator) < 0x20)
    path = tmp_path / "x.jsonl"
    path.write_text(f"{text}\n\n  \n{text}\r\n{text}", encoding="utf-8")
    found = [(each.name, each.values) for each in file_rows(str(path))]
    assert found == [("x-1", row), ("x-4", row), ("x-5", row)], "blank lines count"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.jsonl").write_bytes('{"a": 1}\n{"a": 2}\n'.encode(encoding))
    assert re.match("FILE (line 1 is not JSON|is not UTF-8): ", refusal(tmp_path / "x.jsonl"))


# Parquet ------------------------------------------------------------------------------------------


def test_rows_of_parquet(tmp_path: Path) -> None:
    columns = {"a": ["x", None], "b": [{"c": 1.5}, {"c": None}], "chat": [[{"role": "user"}], []]}
    path = table(tmp_path / "x.parquet", columns)
    assert list(file_rows(str(path))) == [
        Row(f"{path} row 1", "x-1", {"a": "x", "b": {"c": 1.5}, "chat": [{"role": "user"}]}),
        Row(f"{path} row 2", "x-2", {"a": None, "b": {"c": None}, "chat": []}),
    ]


def test_other_columns_are_not_read(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"a": [1], "b": [{"c": 2}], "large": ["x"]})
    assert [row.values for row in file_rows(str(path), ["a", "b.c"])] == [{"a": 1, "b": {"c": 2}}]
    assert needed_columns(["b.c", "b.d", "a"], ["a", "b", "b.c"]) == ["b.c", "b", "a"]
    assert needed_columns(["a", "z"], ["a", "b"]) is None, "all, for the message about z"
    assert needed_columns(None, ["a"]) is None


def test_damaged_parquet(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"a": ["text"] * 100})
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-1], whole[:60] + b"\xff" * 60 + whole[120:]):
        path.write_bytes(content)
        assert refusal(path).startswith("cannot read FILE after row 0: ")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    parquet.write_table(pa.table({"a": text}), tmp_path / "x.parquet")
    assert refusal(tmp_path / "x.parquet").startswith("cannot read FILE after row 0: ")


# Files --------------------------------------------------------------------------------------------


def test_files_by_name_and_by_pattern(tmp_path: Path) -> None:
    for name in ("b-2.jsonl", "b-1.jsonl", "c.jsonl", "odd[1].jsonl"):
        (tmp_path / name).write_text("{}\n")

    def names(pattern: str) -> list[str]:
        return [row.name for row in file_rows(f"{tmp_path}/{pattern}")]

    assert names("b-*.jsonl") == ["b-1-1", "b-2-1"]
    assert names("odd[1].jsonl") == ["odd[1]-1"]
    with pytest.raises(ConfigError, match=r"no problem file matches .*/z-\*\.jsonl"):
        names("z-*.jsonl")
    with pytest.raises(ConfigError, match="is a directory: name the files in it"):
        names("")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.jsonl.gz", "x.json", "x.py", "x", "x.csv"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("{}")
    assert refusal(path).startswith("FILE must end in .jsonl or .parquet: convert it")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_pipes_devices_and_missing_files(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"broken{suffix}").symlink_to(tmp_path / "gone")
    for name in ("pipe", "device", "broken", "gone"):
        assert refusal(tmp_path / f"{name}{suffix}") == "no such problem file: FILE"


# Memory and the hub -------------------------------------------------------------------------------


def test_rows_in_memory() -> None:
    assert list(memory_rows([{"a": 1}, {"a": 2}], "mine")) == [
        Row("mine 1", "mine-1", {"a": 1}),
        Row("mine 2", "mine-2", {"a": 2}),
    ]
    with pytest.raises(ConfigError, match=r"mine 1 must be a mapping of fields, got \[1\]"):
        list(memory_rows([[1]], "mine"))


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
        table(root / f"{name}.parquet", {"question": questions, "answer": answers, "u": answers})
    (root / "README.md").write_text(CARD)
    return root


def rows(repo: Path | str, **settings: Any) -> list[Any]:
    found = hub_rows(str(repo), **{"revision": "", "split": "train", "name": "x"} | settings)
    return [(row.name, dict(row.values)) for row in found]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `datasets` copies goes into the directory of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_configurations_splits_and_files(gsm8k: Path) -> None:
    fields = ["question", "answer"]
    assert rows(gsm8k, config="main", fields=fields) == [
        ("x-train-1", {"question": "q1", "answer": "#### 0"}),
        ("x-train-2", {"question": "q2", "answer": "#### 1"}),
        ("x-train-3", {"question": "q3", "answer": "#### 0"}),
    ]
    only = {"fields": ["question"]}
    assert rows(gsm8k, config="main", split="test", **only) == [("x-test-1", {"question": "t1"})]
    assert rows(gsm8k, config="socratic", **only) == [("x-train-1", {"question": "s1"})]
    file = "main/test-00000-of-00001.parquet"
    assert rows(gsm8k, files=file, **only) == [("x-train-1", {"question": "t1"})]


MISTAKES = [
    ({"split": "validation"}, "split validation: "),
    ({"config": "other"}, "cannot load "),
    ({"files": "main/gone.parquet"}, "cannot load "),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_what_is_not_there(gsm8k: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        rows(gsm8k, **{"config": "main"} | change)
    assert f"cannot load {gsm8k} at its newest commit" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["train.arrow", "train.txt", "train.tar", "train.zip"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    (root / name).write_bytes(b"a,b\n1,2\n")
    with pytest.raises(ConfigError):
        rows(root)
    assert not list(tmp_path.glob("cache/**/*.arrow")), "nothing was read"


@pytest.mark.parametrize("member", ["train.jsonl", "../../train.jsonl", "/train.jsonl"])
def test_archives_are_not_unpacked(tmp_path: Path, member: str) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    with ZipFile(root / "train.zip", "w") as archive:
        archive.writestr(member, '{"question": "q"}\n')
    with pytest.raises(ConfigError, match=r"holds other files|No .* data files found"):
        rows(root)
    assert not list(tmp_path.glob("**/*.jsonl"))


def test_code_of_a_data_set_is_not_run(tmp_path: Path) -> None:
    root, mark = tmp_path / "scripted", tmp_path / "ran"
    root.mkdir()
    (root / "scripted.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (root / "train.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(ConfigError, match="scripts are no longer supported"):
        rows(root)
    assert not mark.exists()


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"^cannot load openai/gsm8k at abc, split train: "):
        rows("openai/gsm8k", revision="abc")
