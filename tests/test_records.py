import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.errors import RecordError
from effopd.records import (
    SCHEMA,
    JsonlWriter,
    checkpoint_path,
    checkpoint_step,
    display_text,
    list_checkpoints,
    load_run,
    read_jsonl,
    run_of_checkpoint,
    truncate_jsonl,
    write_json_atomic,
    write_text_atomic,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
rows_strategy = st.lists(
    st.dictionaries(st.text().filter(lambda key: key != "schema"), json_values, max_size=4),
    max_size=4,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, *rows):
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)
        return writer.offset


@given(rows=rows_strategy)
def test_rows_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("records") / "rows.jsonl"
    offset = write(path, *rows)
    assert read_jsonl(path) == [{"schema": 1, **row} for row in rows]
    assert offset == path.stat().st_size


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"loss": float("nan")}, "loss"),
        ({"loss": float("-inf")}, "loss"),
        ({"kl_nats": [0.1, float("inf")]}, r"kl_nats\[1\]"),
        ({"a": {"b": float("nan")}}, r"a\.b"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_name(path, row, field):
    with JsonlWriter(path) as writer:
        with pytest.raises(RecordError, match=f"{field} is not finite; write None"):
            writer.write(row)
        writer.write({"step": 1})
    assert read_jsonl(path) == [{"schema": 1, "step": 1}]


def test_what_json_cannot_hold_is_refused(path):
    with JsonlWriter(path) as writer, pytest.raises(RecordError, match="not JSON serializable"):
        writer.write({"step": {1, 2}})


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_line_cut_anywhere_is_dropped_and_repaired(path, cut):
    first = write(path, {"step": 1})
    second = write(path, {"step": 2, "text": "ü\x00"})
    cut = min(cut, second - first)
    os.truncate(path, second - cut)
    found = [row["step"] for row in read_jsonl(path)]
    assert found == ([1, 2] if cut == 1 else [1])
    with JsonlWriter(path) as writer:
        assert writer.offset == first
        writer.write({"step": 3})
    assert [row["step"] for row in read_jsonl(path)] == [1, 3]


def test_a_file_without_any_newline_is_repaired_to_empty(path):
    path.write_bytes(b"\0" * 200_000)
    assert read_jsonl(path) == []
    with JsonlWriter(path) as writer:
        assert writer.offset == 0


def test_a_failed_write_leaves_no_part_of_its_line(path, monkeypatch):
    with JsonlWriter(path) as writer:
        writer.write({"step": 1})
        real = os.write

        def full_disk(descriptor, data):
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[:10])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full_disk)
            with pytest.raises(OSError, match="No space left"):
                writer.write({"step": 2, "x": 1})
        writer.write({"step": 3})
    assert [row["step"] for row in read_jsonl(path)] == [1, 3]


def test_truncating_goes_back_to_an_offset(path):
    first = write(path, {"step": 1})
    write(path, {"step": 2}, {"step": 3})
    truncate_jsonl(path, first)
    assert [row["step"] for row in read_jsonl(path)] == [1]
    truncate_jsonl(path, 0)
    assert path.read_bytes() == b""


def test_a_missing_file_counts_as_empty_for_truncation(path):
    truncate_jsonl(path, 0)
    assert not path.exists()
    with pytest.raises(RecordError, match="has 0 bytes"):
        truncate_jsonl(path, 1)


def test_truncating_beyond_the_end_names_a_remedy(path):
    size = write(path, {"step": 1})
    with pytest.raises(RecordError, match=r"has 22 bytes.*resume from an older checkpoint"):
        truncate_jsonl(path, size + 1)


def test_truncating_inside_a_line_is_refused(path):
    size = write(path, {"step": 1})
    with pytest.raises(RecordError, match="inside a line"):
        truncate_jsonl(path, size - 3)
    assert path.stat().st_size == size


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json", "line 2: not valid JSON"),
        (b"", "line 2: not valid JSON"),
        (b"\xff\xfe", "line 2: not valid JSON"),
        (b'{"schema":1,"x":NaN}', "NaN is not a finite number"),
        (b'{"schema":1,"x":1e400}', "1e400 is not a finite number"),
        (b"[" * 100_000, "line 2: not valid JSON"),
        (b'{"schema":2}', "line 2: schema 2, expected 1"),
        (b'{"step":2}', "line 2: schema None, expected 1"),
        (b"[1]", "line 2: schema None, expected 1"),
    ],
)
def test_a_bad_line_is_named(path, line, message):
    write(path, {"step": 1})
    with path.open("ab") as file:
        file.write(line + b'\n{"schema":1,"step":3}\n')
    with pytest.raises(RecordError, match=message) as caught:
        read_jsonl(path)
    assert str(path) in str(caught.value)


def test_atomic_text_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "config.toml"
    write_text_atomic(path, "a = 1\r\n")
    write_text_atomic(path, "a = 2\r\n")
    assert path.read_bytes() == b"a = 2\r\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["config.toml"]


def test_a_failed_replacement_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json_atomic(path, {"a": 1})

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(RecordError, match=r"methods\.opd is not finite"):
        write_json_atomic(tmp_path / "summary.json", {"methods": {"opd": float("nan")}})
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_is_read_whole(tmp_path):
    write_json_atomic(tmp_path / "run.json", {"schema": 1, "label": "opd", "lr": 1e-4})
    write_text_atomic(tmp_path / "config.toml", "seed = 0\n")
    names = ("metrics", "timing", "search", "evals", "rollouts")
    for step, name in enumerate(names):
        write(tmp_path / f"{name}.jsonl", {"step": step})
    run = load_run(tmp_path)
    assert (run.label, run.info["lr"], run.config) == ("opd", 1e-4, "seed = 0\n")
    assert [getattr(run, name)[0]["step"] for name in names] == [0, 1, 2, 3, 4]


def test_files_that_are_not_there_are_empty(tmp_path):
    write_json_atomic(tmp_path / "run.json", {"schema": 1})
    run = load_run(tmp_path)
    assert run.label == tmp_path.name
    assert (run.config, run.metrics, run.search) == ("", [], [])


def test_the_newest_checkpoint_has_the_highest_step(tmp_path):
    write_json_atomic(tmp_path / "run.json", {"schema": SCHEMA})
    assert load_run(tmp_path).checkpoint is None
    steps = [1, 99_999, 100_000, 1_000_000]
    for step in steps:
        checkpoint_path(tmp_path / "checkpoints", step).mkdir(parents=True)
    for stranger in ("step-x", "step-9999999.bak", ".writing-step-9999999"):
        (tmp_path / "checkpoints" / stranger).mkdir()
    found = list_checkpoints(tmp_path / "checkpoints")
    assert [checkpoint_step(path) for path in found] == steps[::-1]
    assert load_run(tmp_path).checkpoint == tmp_path / "checkpoints" / "step-1000000"


def test_the_run_of_a_checkpoint_is_found(tmp_path):
    step = checkpoint_path(tmp_path / "checkpoints", 8)
    assert run_of_checkpoint(step) is None
    (tmp_path / "config.toml").write_text("")
    assert run_of_checkpoint(step) == tmp_path
    assert run_of_checkpoint(tmp_path / "elsewhere" / step.name) is None
    assert run_of_checkpoint(tmp_path) is None


def test_a_missing_run_names_a_remedy(tmp_path):
    with pytest.raises(RecordError, match=r"is not a directory; expected a run .*Check the path"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RecordError, match=r"has no run\.json"):
        load_run(tmp_path)


def test_a_damaged_run_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 1')
    with pytest.raises(RecordError, match=r"run\.json: not valid JSON"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字 🙂\n\tindented", "plain é 漢字 🙂\n\tindented"),
        ("\x1b[2J", "␛[2J"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x1b]52;c;ZXZpbA==\x1b\\", "␛]52;c;ZXZpbA==␛\\"),
        ("\x9b31m", "⟨9B⟩31m"),
        ("a\rb\x7f\x00", "a␍b␡␀"),
        ("\u202eevil\u202c \u2066x\u2069", "⟨202E⟩evil⟨202C⟩ ⟨2066⟩x⟨2069⟩"),
        ("line\u2028end \ud800", "line⟨2028⟩end \ufffd"),
    ],
)
def test_what_steers_a_terminal_is_shown(text, shown):
    assert display_text(text) == shown


@given(st.text(st.characters(codec=None)))
@settings(deadline=None)
def test_shown_text_holds_no_control_and_can_be_encoded(text):
    shown = display_text(text)
    shown.encode()
    assert not [c for c in shown if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160)]
    assert display_text(shown) == shown
