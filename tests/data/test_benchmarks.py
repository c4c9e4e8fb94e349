"""Benchmarks by name: from files in the forms they are distributed in, and from the hub."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import disable_progress_bars

from effopd.data.benchmarks import load_benchmark
from effopd.data.dataset import DatasetSpec, registry
from effopd.data.mapping import TEMPLATES
from effopd.errors import ConfigError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
disable_progress_bars()


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def plus(**changes: Any) -> dict[str, Any]:
    """A problem as EvalPlus writes it."""
    return {
        "task_id": "HumanEval/0", "prompt": "def double(x):\n", "entry_point": "double",
        "canonical_solution": "    return 2 * x\n", "base_input": [[1]], "plus_input": [[2]],
        "atol": 0,
    } | changes  # fmt: skip


def test_every_benchmark_is_pinned_or_a_file() -> None:
    for name, benchmark in registry().benchmarks.items():
        assert benchmark.licence, name
        assert benchmark.source, name
        assert benchmark.schemas, name
        for schema in benchmark.schemas:
            settings: Any = schema.fields
            assert DatasetSpec(path="x.jsonl", **settings).template in TEMPLATES
        if benchmark.hub:
            settings = {**benchmark.schemas[0].fields, **benchmark.hub}
            assert re.fullmatch("[0-9a-f]{40}", DatasetSpec(hub=True, **settings).revision), name


def test_free_answers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl", {"problem": "1+1?", "answer": 2}, {"problem": "2?", "answer": "$2$"}
    )
    found = load_benchmark("aime25", path)
    first, second = found.questions
    assert (first.problem.id, second.problem.id) == ("aime25-1", "aime25-2")
    assert first.problem.prompt == TEMPLATES["math"].replace("{question}", "1+1?")
    assert (first.problem.answer, first.solution) == ("2", r"\boxed{2}")
    assert (found.verifier, found.source) == ("math", path)
    assert (found.counts.read, found.counts.kept) == (2, 2)
    assert load_benchmark("aime25", path, limit=1).questions == (first,)


def test_gsm8k_with_and_without_its_working(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.jsonl", {"question": "q", "answer": "work\n#### 1,000"})
    bare = write(tmp_path / "bare.jsonl", {"problem": "q", "answer": "1,000"})
    assert [load_benchmark("gsm8k", path).questions[0].problem.answer for path in (raw, bare)] == [
        "1,000", "1,000",
    ]  # fmt: skip


def test_options_are_shuffled_by_question_and_seed(tmp_path: Path) -> None:
    rows = [
        {"question": f"Q{i}\n\nA. right {i}\nB. b\nC. c\nD. d", "answer": "A"} for i in range(20)
    ]
    path = write(tmp_path / "gpqa.jsonl", *rows)
    found = load_benchmark("gpqa", path, seed=1)
    for i, question in enumerate(found.questions):
        problem = question.problem
        assert f"{problem.answer}. right {i}\n" in problem.prompt + "\n"
        assert question.solution == rf"\boxed{{{problem.answer}}}"
    letters = [q.problem.answer for q in found.questions]
    assert len(set(letters)) == 4
    assert letters == [q.problem.answer for q in load_benchmark("gpqa", path, seed=1).questions]
    assert letters != [q.problem.answer for q in load_benchmark("gpqa", path, seed=2).questions]
    alone = load_benchmark("gpqa", write(tmp_path / "one.jsonl", rows[7]), seed=1)
    assert alone.questions[0].problem.answer == letters[7]


def test_programs_bring_their_reference(tmp_path: Path) -> None:
    (question,) = load_benchmark("humaneval+", write(tmp_path / "h.jsonl", plus())).questions
    assert question.problem.tests is not None
    assert question.problem.tests.inputs == ([1], [2])
    assert question.solution == "```python\ndef double(x):\n    return 2 * x\n\n```"
    assert "def double(x):" in question.problem.prompt


def test_programs_that_inputs_and_outputs_cannot_judge_are_counted(tmp_path: Path) -> None:
    test = {"input": "1\n", "output": "2\n"}
    row = {"language": "python", "prompt": "Add one.", "official_tests": [test]}
    path = write(
        tmp_path / "cf.jsonl",
        row,
        row | {"interaction_format": "ask"},
        row | {"language": "cpp"},
    )
    found = load_benchmark("codeforces", path)
    assert [q.problem.id for q in found.questions] == ["codeforces-1"]
    assert found.counts.dropped == {"no usable tests": 1, "language is not 'python'": 1}
    assert found.questions[0].solution == ""


def test_a_row_of_mathematics_that_cannot_be_read_stops(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"problem": "p", "answer": "1"}, {"problem": "p"})
    with pytest.raises(ConfigError, match=r"x.jsonl line 2: no field 'answer'.*: repair the file"):
        load_benchmark("aime24", path)


def test_a_file_in_no_known_form(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"text": "p", "answer": "1"})
    with pytest.raises(ConfigError, match=r"x.jsonl line 1 is in no schema of gsm8k: no field 'q"):
        load_benchmark("gsm8k", path)
    with pytest.raises(ConfigError, match="holds no rows of gsm8k"):
        load_benchmark("gsm8k", write(tmp_path / "empty.jsonl"))


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", {"question": "p", "answer": "1"})
    found = load_benchmark("mine", path)
    assert [q.problem.id for q in found.questions] == ["mine-1"]
    with pytest.raises(ConfigError, match=r"unknown benchmark 'mine': choose of aime24.*=FILE"):
        load_benchmark("mine")


def test_what_is_not_on_the_hub_says_where_it_is() -> None:
    with pytest.raises(ConfigError, match=r"--data taco=FILE \(from BAAI/TACO"):
        load_benchmark("taco")


def test_the_schema_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPQA as its repository has it: a table with commas, of one configuration."""
    root = tmp_path / "gpqa"
    root.mkdir()
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: gpqa_diamond\n  data_files: gpqa_diamond.csv\n---\n"
    )
    columns = ["Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
    with (root / "gpqa_diamond.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, ["Which, then?", "yes", "a", "b", "c"]])
    monkeypatch.setitem(registry().benchmarks["gpqa"].hub, "repo", str(root))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (question,) = load_benchmark("gpqa").questions
    assert f"{question.problem.answer}. yes" in question.problem.prompt
    assert question.problem.prompt.startswith("Which, then?\n\nA. ")


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not here")
@pytest.mark.parametrize(
    ("name", "file", "questions"),
    [
        ("aime24", "aime24", 30), ("aime25", "aime25", 30), ("math500", "math", 500),
        ("minerva", "minerva", 272), ("gpqa", "gpqa", 198), ("gsm8k", "gsm8k", 1319),
        ("humaneval+", "humaneval_plus_60", 60), ("mbpp+", "mbpp_plus_60", 60),
        ("hmmt25_feb", "hmmt25_feb", 30),
    ],
)  # fmt: skip
def test_the_files_of_the_paper(name: str, file: str, questions: int) -> None:
    found = load_benchmark(name, str(DATA / f"{file}.jsonl"))
    assert len(found.questions) == questions
    assert found.counts.dropped == {}
    assert all(question.solution for question in found.questions)
    if name == "gpqa":
        letters = Counter(question.problem.answer for question in found.questions)
        assert sorted(letters) == ["A", "B", "C", "D"]
        assert all(30 < count < 70 for count in letters.values())
