"""The task of data sets: sources, hold-out, filters, settings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from effopd.data.dataset import DatasetSpec, DatasetTask
from effopd.data.filters import Filters
from effopd.data.problem import Counts, Problem
from effopd.errors import ConfigError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count: int, prefix: str = "q") -> list[dict[str, Any]]:
    return [{"question": f"{prefix}{i}", "answer": i, "hard": i} for i in range(count)]


def refusal(task: DatasetTask) -> str:
    with pytest.raises(ConfigError) as error:
        task.load()
    return str(error.value)


# Loading ------------------------------------------------------------------------------------------


def test_the_last_problems_that_pass_are_held_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", *numbered(10), {"question": "q"}, *numbered(3))
    train = DatasetSpec(path=path, level_field="hard")
    task = DatasetTask(train=train, test_size=2, filters=Filters(min_level=3)).load()
    assert [p.prompt for p in task.train] == ["q3", "q4", "q5", "q6", "q7"]
    assert [p.prompt for p in task.test] == ["q8", "q9"]
    assert task.train[0] == Problem(id="x-4", prompt="q3", answer="3", level=3)
    dropped = {"level below 3": 6, "no readable reference answer": 1}
    assert task.counts == (Counts(name=path, read=14, kept=7, dropped=dropped),)


def test_sources_are_mixed_after_holding_out(tmp_path: Path) -> None:
    more = [{"p": f"m{i}", "a": i} for i in range(2)] + [{"p": "q1", "a": 1}, {"p": "q3", "a": 3}]
    spec = DatasetSpec(
        path=jsonl(tmp_path / "y.jsonl", *more), prompt_field="p", answer_field="a", log_base="10"
    )
    first = DatasetSpec(path=jsonl(tmp_path / "x.jsonl", *numbered(4)))
    task = DatasetTask(train=first, more=(spec,), test_size=1).load()
    # What was there before is left out, held out or not.
    assert [p.prompt for p in task.train] == ["q0", "q1", "q2", "m0", "m1"]
    assert [p.prompt for p in task.test] == ["q3"]
    assert [p.rules.log_base for p in task.train] == ["e"] * 3 + ["10"] * 2
    assert [(c.kept, dict(c.dropped)) for c in task.counts] == [
        (4, {}),
        (2, {"the prompt of an earlier row": 2}),
    ]
    assert refusal(DatasetTask(train=first, more=(first,), test_size=1)).startswith("no problems")
    with pytest.raises(ConfigError, match="needs programs with tests"):
        DatasetTask(
            train=DatasetSpec(path="z.jsonl", tests_form="evalplus"), more=(spec,), verifier="code"
        )


def test_test_problems_are_not_filtered_and_not_trained_on(tmp_path: Path) -> None:
    train = DatasetSpec(path=jsonl(tmp_path / "x.jsonl", *numbered(6)), level_field="hard")
    test_path = jsonl(tmp_path / "y.jsonl", {"p": "q4", "a": "z"}, {"p": "q4", "a": "z"}, {"p": 1})
    test = DatasetSpec(path=test_path, prompt_field="p", answer_field="a")
    task = DatasetTask(train=train, test=test, filters=Filters(min_level=2)).load()
    assert [p.prompt for p in task.train] == ["q2", "q3", "q5"]
    assert [p.id for p in task.test] == ["y-1", "y-2"]
    assert [dict(counts.dropped) for counts in task.counts] == [
        {"level below 2": 2, "the prompt of a test problem": 1},
        {"no readable reference answer": 1},
    ]


def test_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    train = DatasetSpec(path=jsonl(tmp_path / "a" / "x.jsonl", *numbered(3)))
    test = DatasetSpec(path=jsonl(tmp_path / "b" / "x.jsonl", *numbered(3, "t")))
    assert refusal(DatasetTask(train=train, test=test)) == (
        "2 problems would have the id 'x-1': give the files different names"
    )


def test_too_few_and_none(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", *numbered(3))
    assert refusal(DatasetTask(train=DatasetSpec(path=path), test_size=3)) == (
        f"3 problems of {path} are too few to hold out test_size = 3: give test or lower test_size"
    )
    source = DatasetSpec(path=path, prompt_field="qustion")
    assert refusal(DatasetTask(train=source)) == (
        f"no problems are left. {path}: 0 of 3 rows kept; 3: no readable question\n"
        f"The first that cannot be read: {path} line 1: no field 'qustion'; the row has "
        "'question', 'answer', 'hard'"
    )
    assert refusal(DatasetTask(train=DatasetSpec(path="gone.jsonl"))) == (
        "no such problem file: gone.jsonl"
    )


# In memory ----------------------------------------------------------------------------------------


def test_rows_in_memory_are_those_of_a_file(tmp_path: Path) -> None:
    rows = [*numbered(6), {"question": "q"}]
    path = jsonl(tmp_path / "train.jsonl", *rows)
    task = DatasetTask(
        train=DatasetSpec(path=path, level_field="hard"), test_size=2, filters=Filters(min_level=1)
    )
    expected = task.load()
    for source in (rows, iter(rows), Dataset.from_list(rows)):
        found = task.of_rows(source)
        assert (found.train, found.test) == (expected.train, expected.test)
        assert [dict(c.dropped) for c in found.counts] == [
            {"level below 1": 1, "no readable reference answer": 1}
        ]
    assert expected.train[0] == Problem(id="train-2", prompt="q1", answer="1", level=1)


def test_test_problems_in_memory(tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a": "So\n#### 2"}, {"q": "2+2", "a": "#### 4"}]
    fields = {"name": "gsm8k", "prompt_field": "q", "answer_field": "a", "template": "plain"}
    spec = DatasetSpec(path="memory", **fields)
    task = DatasetTask(train=spec, test=spec).of_rows(rows, rows[:1])
    assert [(p.id, p.prompt, p.answer) for p in task.train] == [("train-2", "2+2", "4")]
    assert [(p.id, p.prompt, p.answer) for p in task.test] == [("test-1", "1+1", "2")]
    with pytest.raises(ConfigError, match="train 1 must be a mapping of fields, got 'text'"):
        DatasetTask(train=spec).of_rows(["text"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="2 problems of memory are too few"):
        DatasetTask(train=spec).of_rows(rows)


# Settings -----------------------------------------------------------------------------------------


def test_settings_over_those_of_the_data_set() -> None:
    spec = DatasetSpec(name="deepmath", path="x.jsonl", answer_field="answer", template="plain")
    assert (spec.answer_field, spec.template) == ("answer", "plain")
    assert (spec.prompt_field, spec.level_field) == ("question", "difficulty")
    assert (spec.repo, spec.split, spec.title) == ("", "", "x.jsonl")
    hub = DatasetSpec(name="gsm8k", hub=True, split="test")
    assert hub.title == "openai/gsm8k@740312add88f test"
    assert DatasetSpec(**asdict(hub)) == hub, "what is written down is complete"


def test_verifiers_and_what_they_need() -> None:
    math, code = DatasetSpec(path="x.jsonl"), DatasetSpec(name="eurus_code", path="x.jsonl")
    for verifier in ("boxed", "math"):
        with pytest.raises(ConfigError, match="needs answer_field; programs are checked by 'code'"):
            DatasetTask(train=code, verifier=verifier)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'code' needs programs with tests: set tests_form"):
        DatasetTask(train=math, verifier="code")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'code' needs programs with tests: set tests_form"):
        DatasetTask(train=code, test=math, verifier="code")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="test_size must be at least 1, got 0"):
        DatasetTask(train=math, test_size=0)
    for source in (math, code):
        DatasetTask(train=source, verifier="none")
    assert len({DatasetTask(train=math), DatasetTask(train=math)}) == 1, "usable as keys"


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark files beside the repository")
def test_real_problems() -> None:
    train = DatasetSpec(name="deepmath", path=f"{DATA}/deepmath_1000.jsonl", answer_field="answer")
    test = DatasetSpec(path=f"{DATA}/aime24.jsonl", prompt_field="problem", template="math")
    benchmarks = tuple(f"{DATA}/{name}.jsonl" for name in ("aime24", "math", "minerva"))
    filters = Filters(min_level=6, benchmarks=benchmarks, benchmark_words=8)
    task = DatasetTask(train=train, test=test, filters=filters).load()
    assert (len(task.train), len(task.test)) == (617, 30)
    assert task.counts[0].dropped == {"level below 6": 381, "8 words in a row of math.jsonl": 2}
    assert min(p.level for p in task.train) == 6
    assert task.test[0].prompt.endswith("within \\boxed{}.")
