"""Problems from JSON Lines."""

import json
from pathlib import Path
from typing import Any

import pytest

from effopd.data.files import JsonlTask
from effopd.data.problem import Problem
from effopd.errors import ConfigError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"question": f"q{i}", "answer": f"a{i}", "level": i} for i in range(count)]


def refusal(task: JsonlTask) -> str:
    with pytest.raises(ConfigError) as error:
        task.load()
    return str(error.value)


def refused_file(tmp_path: Path, content: str | bytes, **settings: Any) -> str:
    """The message about a training file, its path replaced by FILE."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    task = JsonlTask(train_path=str(path), test_path=str(path), **settings)
    return refusal(task).replace(str(path), "FILE")


# Reading ------------------------------------------------------------------------------------------


def test_fields_template_and_ids(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"q": "1+1", "a": 2}, {"q": "{question}", "a": "x"})
    test = write(tmp_path / "test.jsonl", {"q": "2+2", "a": 4.5})
    task = JsonlTask(
        train_path=train,
        test_path=test,
        prompt_field="q",
        answer_field="a",
        template="Solve {question} now; again: {question}",
    ).load()
    assert list(task.train) == [
        Problem(id="train-1", prompt="Solve 1+1 now; again: 1+1", answer="2"),
        Problem(id="train-2", prompt="Solve {question} now; again: {question}", answer="x"),
    ]
    assert list(task.test) == [
        Problem(id="test-1", prompt="Solve 2+2 now; again: 2+2", answer="4.5")
    ]


@pytest.mark.parametrize("test_size", [1, 3, 9])
def test_the_last_problems_are_held_out(tmp_path: Path, test_size: int) -> None:
    task = JsonlTask(train_path=write(tmp_path / "x.jsonl", *rows(10)), test_size=test_size).load()
    assert [p.prompt for p in task.train] == [f"q{i}" for i in range(10 - test_size)]
    assert [p.prompt for p in task.test] == [f"q{i}" for i in range(10 - test_size, 10)]


def test_too_few_to_hold_out(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", *rows(10))
    assert refusal(JsonlTask(train_path=path, test_size=10)) == (
        f"{path} has 10 problems, too few to hold out test_size = 10: give test_path or lower "
        "test_size"
    )


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
def test_only_a_newline_ends_a_line(tmp_path: Path, separator: str) -> None:
    text = f"above{separator}below"
    path = tmp_path / "x.jsonl"
    row = json.dumps({"question": text, "answer": "1"}, ensure_ascii=ord(separator) < 0x20)
    path.write_text(f"{row}\n\n  \n{row}\r\n{row}", encoding="utf-8")
    task = JsonlTask(train_path=str(path), test_path=str(path)).load()
    assert [p.prompt for p in task.train] == [text] * 3
    assert [p.id for p in task.train] == ["x-1", "x-4", "x-5"], "numbers of lines, blank ones too"


def test_without_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"question": "q"}, {"question": "r"})
    settings: dict[str, Any] = {"train_path": path, "test_size": 1, "verifier": "none"}
    task = JsonlTask(**settings, answer_field="").load()
    assert [p.answer for p in (*task.train, *task.test)] == ["", ""]
    assert JsonlTask(**settings).load().train[0].answer == ""
    message = refusal(JsonlTask(**(settings | {"verifier": "math"})))
    assert "no field 'answer'" in message
    assert 'or set verifier = "none" to train without any' in message


def test_conversations(tmp_path: Path) -> None:
    said = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    messages = [{"role": role, "content": text} for role, text in said]
    path = write(tmp_path / "x.jsonl", {"question": messages}, {"question": messages[:3]})
    task = JsonlTask(train_path=path, test_size=1, verifier="none", template="<{question}>").load()
    for problem in (*task.train, *task.test):
        assert (problem.turns, problem.prompt) == ((("q", "a"),), "<r>")
    (counts,) = task.counts
    assert str(counts) == (
        f"{path}: 2 of 2 rows kept; answers left out at the end of 1 conversations"
    )


def test_teachers_and_levels(tmp_path: Path) -> None:
    lines = [{"question": "q", "answer": "a", "by": name, "hard": level} for name, level in NAMED]
    path = write(tmp_path / "x.jsonl", *lines)
    settings: dict[str, Any] = {"train_path": path, "test_path": path}
    named = JsonlTask(**settings, teacher_field="by", level_field="hard").load()
    assert [(p.teacher, p.level) for p in named.train] == [("math", 1), ("7", -2), ("code", 0)]
    assert named.train == named.test
    plain = JsonlTask(**settings).load()
    assert [(p.teacher, p.level) for p in plain.train] == [("", 0)] * 3


NAMED: list[tuple[str | int, int]] = [("math", 1), (7, -2), ("code", 0)]

REFUSED_EXTRAS = [
    ("{}", "FILE line 2: no field 'by'; the row has 'question', 'answer'"),
    ('{"by": ""}', "FILE line 2: field 'by' is empty"),
    ('{"by": null}', "FILE line 2: field 'by' must be text or a number, got None"),
    ('{"by": "m"}', "FILE line 2: no field 'hard'; the row has 'question', 'answer', 'by'"),
    ('{"by": "m", "hard": "1"}', "FILE line 2: field 'hard' must be an integer, got '1'"),
    ('{"by": "m", "hard": 1.0}', "FILE line 2: field 'hard' must be an integer, got 1.0"),
    ('{"by": "m", "hard": true}', "FILE line 2: field 'hard' must be an integer, got True"),
    ('{"by": "m", "hard": null}', "FILE line 2: field 'hard' must be an integer, got None"),
]


@pytest.mark.parametrize(("extra", "message"), REFUSED_EXTRAS, ids=lambda text: text[:40])
def test_refused_teachers_and_levels_are_named(tmp_path: Path, extra: str, message: str) -> None:
    good = {"question": "q", "answer": "a"}
    lines = [json.dumps(good | {"by": "m", "hard": 1}), json.dumps(good | json.loads(extra))]
    content = "\n".join(lines)
    found = refused_file(tmp_path, content, teacher_field="by", level_field="hard")
    assert found == message


REFUSED_LINES = [
    ("not json", "FILE line 2 is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ('{"question": "q"', "FILE line 2 is not JSON: Expecting ',' delimiter: line 1 column 17"),
    ('["q", "a"]', "FILE line 2 is not a JSON object"),
    ('{"question": "q"}', "FILE line 2: no field 'answer'; the row has 'question'"),
    ('{"answer": "a"}', "FILE line 2: no field 'question'; the row has 'answer'"),
    ('{"question": null, "answer": "a"}', "field 'question' must be text or a number, got None"),
    ('{"question": "q", "answer": ["a"]}', "field 'answer' must be text or a number, got ['a']"),
    ('{"question": "q", "answer": true}', "field 'answer' must be text or a number, got True"),
    ('{"question": " ", "answer": "a"}', "FILE line 2: field 'question' is empty"),
    ('{"question": "q", "answer": ""}', "FILE line 2: field 'answer' is empty"),
    ('{"question": "\\ud83d", "answer": "a"}', "holds half a surrogate pair"),
    ("[" * 100_000, "FILE line 2 is not JSON: "),
    ('{"question": ' + "9" * 5000 + "}", "FILE line 2 is not JSON: "),
]


@pytest.mark.parametrize(("line", "message"), REFUSED_LINES, ids=lambda text: text[:40])
def test_refused_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    good = '{"question": "q", "answer": "a"}'
    assert message in refused_file(tmp_path, f"{good}\n{line}\n{good}\n")


def test_whole_surrogate_pairs_are_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "\\ud83d\\ude00", "answer": "a"}\n')
    assert JsonlTask(train_path=str(path), test_path=str(path)).load().train[0].prompt == "😀"


def test_refused_files(tmp_path: Path) -> None:
    assert refused_file(tmp_path, "\n \n") == "FILE holds no problems"
    assert refused_file(tmp_path, b"\n\xff\xfe{}").startswith("FILE line 2 is not UTF-8: ")
    missing = tmp_path / "gone.jsonl"
    assert refusal(JsonlTask(train_path=str(missing))) == f"no such problem file: {missing}"
    assert refusal(JsonlTask(train_path=str(tmp_path))).startswith(f"cannot read {tmp_path}: ")


REFUSED_SETTINGS = [
    (
        {"template": "Solve it."},
        "template must contain {question} or be one of plain, math, code, think_first, choice, "
        "complete, got 'Solve it.'",
    ),
    ({"answer_field": ""}, "answer_field must name a field, or set verifier = 'none'"),
    ({"verifier": "code"}, "verifier = 'code' needs tests of programs: use type = 'dataset'"),
    ({"test_size": 0}, "test_size must be at least 1, got 0"),
    ({"test_size": -3}, "test_size must be at least 1, got -3"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED_SETTINGS, ids=str)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        JsonlTask(train_path="x", **settings)
    assert str(error.value) == message


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark files beside the repository")
def test_a_real_benchmark_file() -> None:
    task = JsonlTask(
        train_path=str(DATA / "gsm8k.jsonl"), prompt_field="problem", test_size=319
    ).load()
    assert (len(task.train), len(task.test)) == (1000, 319)
    assert task.train[0].answer == "18"
    assert len({p.id for p in (*task.train, *task.test)}) == 1319
