"""JSON Lines and parquet, row by row, whatever they hold."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from effopd.data import rows
from effopd.data.rows import Row, file_rows, jsonl_rows, local_files, needed_columns, parquet_rows
from effopd.errors import ConfigError


def jsonl(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return path


def table(path: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def refusal(path: Path) -> str:
    """The message about a file, its path replaced by FILE."""
    with pytest.raises(ConfigError) as error:
        list(file_rows(path))
    return str(error.value).replace(str(path), "FILE")


# JSON Lines ---------------------------------------------------------------------------------------


def test_rows_of_json_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", '{"a": 1}', "", '{"a": {"b": null}}\r', "{}")
    assert list(jsonl_rows(path)) == [
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
    assert [row.values for row in jsonl_rows(path)] == objects


REFUSED = [
    (b'{"a": NaN}', "FILE line 2 is not JSON: JSON has no NaN"),
    (b'{"a": -Infinity}', "FILE line 2 is not JSON: JSON has no -Infinity"),
    (b'{"a": "\xff"}', "FILE line 2 is not UTF-8: "),
    (b'{"a": "\xed\xa0\xbd"}', "FILE line 2 is not UTF-8: "),
    (b"\x00\x00", "FILE line 2 is not JSON: "),
    (b"\x1f\x8b\x08", "FILE line 2 is not UTF-8: "),
    (b"[1]", "FILE line 2 is not a JSON object"),
    (b'"text"', "FILE line 2 is not a JSON object"),
    (b'{"a": 1} {"a": 2}', "FILE line 2 is not JSON: Extra data"),
    (b"[" * 100_000, "FILE line 2 is not JSON: "),
    (b'{"a": ' + b"9" * 5000 + b"}", "FILE line 2 is not JSON: "),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=lambda each: repr(each[:12]))
def test_damaged_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    assert refusal(jsonl(tmp_path / "x.jsonl", "{}", line, "{}")).startswith(message)


def test_byte_order_marks_are_read_over(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    second = mark + b'{"' + mark + b'a": "2"}'
    path = jsonl(tmp_path / "x.jsonl", mark + b'{"a": 1}', second)
    assert [row.values for row in jsonl_rows(path)] == [{"a": 1}, {"a": "2"}]
    assert not list(jsonl_rows(jsonl(tmp_path / "y.jsonl", mark, b"")))


def test_a_mark_before_the_first_column_of_parquet_is_read_over(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"\ufeffq": ["1"], "b": [2]})
    assert [row.values for row in parquet_rows(path, ["q"])] == [{"q": "1", "b": 2}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_of_unicode_are_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.jsonl").write_bytes('{"a": 1}\n{"a": 2}\n'.encode(encoding))
    assert refusal(tmp_path / "x.jsonl") == (
        "FILE line 1 is not UTF-8: the file is in UTF-16 or UTF-32, save it as UTF-8, for example "
        "with iconv -f UTF-16 -t UTF-8"
    )


def test_rows_before_a_damaged_line_are_read(tmp_path: Path) -> None:
    found = jsonl_rows(jsonl(tmp_path / "x.jsonl", '{"a": 1}', "{"))
    assert next(found).values == {"a": 1}
    with pytest.raises(ConfigError, match="line 2 is not JSON"):
        next(found)


def test_a_line_of_a_gigabyte_costs_no_gigabyte(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", "{}", "")
    os.truncate(path, 1024**3)  # a hole: nothing is written
    assert refusal(path) == "FILE line 2 is longer than 134217728 bytes"


def test_the_longest_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 9)
    assert len(list(jsonl_rows(jsonl(tmp_path / "x.jsonl", '{"a":12}', '{"a":123}')))) == 2
    message = refusal(jsonl(tmp_path / "x.jsonl", '{"a":12}', '{"a":1234}'))
    assert message == "FILE line 2 is longer than 9 bytes"


# Parquet ------------------------------------------------------------------------------------------


def test_rows_of_parquet(tmp_path: Path) -> None:
    columns = {"a": ["x", None], "b": [{"c": 1.5}, {"c": None}], "chat": [[{"role": "user"}], []]}
    path = table(tmp_path / "x.parquet", columns)
    assert list(parquet_rows(path)) == [
        Row(f"{path} row 1", "x-1", {"a": "x", "b": {"c": 1.5}, "chat": [{"role": "user"}]}),
        Row(f"{path} row 2", "x-2", {"a": None, "b": {"c": None}, "chat": []}),
    ]


def test_other_columns_are_not_read(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"a": [1], "b": [{"c": 2}], "large": ["x"]})
    assert [row.values for row in parquet_rows(path, ["a", "b.c"])] == [{"a": 1, "b": {"c": 2}}]
    assert needed_columns(["b.c", "b.d", "a"], ["a", "b", "b.c"]) == ["b.c", "b", "a"]
    assert needed_columns(["a", "z"], ["a", "b"]) is None, "all, for the message about z"
    assert needed_columns(None, ["a"]) is None


def test_batches_are_numbered_through(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"a": list(range(150))})
    assert [(r.name, r.values["a"]) for r in parquet_rows(path)] == [
        (f"x-{i + 1}", i) for i in range(150)
    ]


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
        (tmp_path / name).touch()
    assert local_files(f"{tmp_path}/b-*.jsonl") == [tmp_path / "b-1.jsonl", tmp_path / "b-2.jsonl"]
    assert local_files(f"{tmp_path}/odd[1].jsonl") == [tmp_path / "odd[1].jsonl"]
    assert local_files("gone.jsonl") == [Path("gone.jsonl")]
    with pytest.raises(ConfigError, match=r"no problem file matches .*/z-\*\.jsonl"):
        local_files(f"{tmp_path}/z-*.jsonl")
    with pytest.raises(ConfigError, match="is a directory: name a file in it"):
        local_files(str(tmp_path))


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
    assert refusal(tmp_path / f"pipe{suffix}") == "FILE is no regular file"
    assert refusal(tmp_path / f"device{suffix}") == "FILE is no regular file"
    assert refusal(tmp_path / f"broken{suffix}") == "no such problem file: FILE"
    assert refusal(tmp_path / f"gone{suffix}") == "no such problem file: FILE"
