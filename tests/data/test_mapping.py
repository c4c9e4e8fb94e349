"""Rows of every named data set become problems."""

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effopd.data.code_formats import from_evalplus, from_input_output
from effopd.data.dataset import DatasetSpec, registry
from effopd.data.mapping import MappedRow, RejectedRow, needed_fields, read_row
from effopd.data.problem import Problem
from effopd.data.rows import Row, file_rows

DATA = Path(__file__).parents[2].parent / "shared" / "data"
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
TESTS = json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]})


def named(name: str, **fields: Any) -> DatasetSpec:
    return DatasetSpec(name=name, path="x.jsonl", **fields)


def custom(**fields: Any) -> DatasetSpec:
    return named("custom", **fields)


def problem_of(values: dict[str, Any], spec: DatasetSpec, verifier: Any = "math") -> Problem:
    found = read_row(Row("place", "x-1", values), spec, verifier)
    assert isinstance(found, MappedRow), found
    return found.problem


def unfit(values: dict[str, Any], spec: DatasetSpec, verifier: Any = "math") -> RejectedRow:
    found = read_row(Row("x.jsonl line 1", "x-1", values), spec, verifier)
    assert isinstance(found, RejectedRow)
    return found


# Every data set by name ---------------------------------------------------------------------------


def test_deepmath() -> None:
    row = {
        "question": "What is $1+1$?",
        "final_answer": "2",
        "difficulty": 4.5,
        "topic": "Algebra",
        "r1_solution_1": "...",
    }
    spec = named("deepmath")
    assert problem_of(row, spec) == Problem(
        id="x-1", prompt="What is $1+1$?" + BOXED, answer="2", level=4
    )
    found = read_row(Row("place", "x-1", row), spec, "math")
    assert isinstance(found, MappedRow)
    assert (found.level, found.question) == (4.5, "What is $1+1$?")
    assert needed_fields(spec, "math") == ["question", "final_answer", "difficulty"]


def test_math_12k() -> None:
    row = {"problem": "p", "solution": "s", "answer": "a", "subject": "Geometry", "level": 5}
    assert problem_of(row, named("math_12k")) == Problem(
        id="x-1", prompt="p" + BOXED, answer="a", level=5, source="Geometry"
    )


def test_gsm8k() -> None:
    spec = named("gsm8k")
    row = {"question": "q", "answer": "9 * 2 = <<9*2=18>>18 ####\nSo\n#### 1,018"}
    assert problem_of(row, spec).answer == "1,018"
    assert unfit({"question": "q", "answer": "18"}, spec) == RejectedRow(
        reason="no readable reference answer",
        message="x.jsonl line 1: field 'answer' has nothing after ####",
    )
    assert (
        unfit({"question": "q", "answer": "18 #### "}, spec).reason
        == unfit({"question": "q", "answer": None}, spec).reason
    )


def eurus(ability: str = "code", tests: Any = TESTS) -> dict[str, Any]:
    return {
        "data_source": "taco",
        "prompt": [
            {"role": "system", "content": "Take actions."},
            {"role": "user", "content": "Add two numbers."},
        ],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": tests},
        "extra_info": {"split": "train", "index": 5},
    }


def test_eurus_code() -> None:
    spec = named("eurus_code")
    problem = problem_of(eurus(), spec, "code")
    assert problem == Problem(
        id="x-1",
        prompt="Add two numbers.\nYou need to think first then write the Python code.",
        source="taco",
        tests=from_input_output(TESTS),
    )
    assert problem.tests is not None
    assert problem.tests.inputs == ("1 2\n", "3 4\n")
    assert unfit(eurus("math"), spec, "code") == RejectedRow(reason="ability is not 'code'")
    kept = problem_of(eurus(), replace(spec, system="keep"), "code")
    assert kept.system == "Take actions."


@pytest.mark.parametrize("tests", [None, "", "{", "[]", '{"inputs": [], "outputs": []}', 7])
def test_programs_without_usable_tests(tests: Any) -> None:
    spec = named("eurus_code")
    assert unfit(eurus(tests=tests), spec, "code").reason == "no usable tests"
    assert problem_of(eurus(tests=tests), spec, "none").tests is None, "nothing is checked"


def test_gopd() -> None:
    row = {
        "data_source": "DeepMath-103K",
        "prompt": [{"role": "user", "content": "q" + BOXED}],
        "ability": "math",
        "reward_model": {"ground_truth": "42", "style": "rule"},
        "extra_info": {"index": 1, "opd_teacher": "math"},
    }
    spec = named("gopd_math")
    expected = Problem(id="x-1", prompt="q" + BOXED, answer="42", source="DeepMath-103K")
    assert problem_of(row, spec) == expected
    routed = replace(spec, teacher_field="extra_info.opd_teacher")
    assert problem_of(row, routed) == replace(expected, teacher="math")
    assert unfit(row | {"extra_info": {}}, routed).reason == "no readable teacher or source"
    code = row | {"reward_model": {"ground_truth": TESTS}}
    assert problem_of(code, named("gopd_code"), "code").tests == from_input_output(TESTS)


# The table of data sets ---------------------------------------------------------------------------


def test_every_name_has_a_commit_and_a_licence() -> None:
    for name, known in registry().datasets.items():
        if name == "custom":
            assert known == {}
            continue
        spec = DatasetSpec(name=name, hub=True)
        assert re.fullmatch(r"[0-9a-f]{40}", spec.revision), name
        assert re.fullmatch(r"[\w-]+/[\w-]+", spec.repo), name
        assert known["licence"], name
        assert bool(spec.answer_field) != bool(spec.tests_form), name
        fields = {field.name for field in dataclasses.fields(DatasetSpec)}
        assert known.keys() - {"licence"} <= fields, name


# What is read and what is not ---------------------------------------------------------------------


def test_what_the_verifier_does_not_look_at_is_not_needed() -> None:
    spec = custom(level_field="hard")
    assert problem_of({"question": "q"}, spec, "none") == Problem(id="x-1", prompt="q")
    assert needed_fields(spec, "none") == ["question", "hard"]
    assert needed_fields(named("eurus_code"), "none") == ["prompt", "data_source", "ability"]
    assert needed_fields(named("eurus_code"), "code") == [
        "prompt", "reward_model.ground_truth", "data_source", "ability",
    ]  # fmt: skip
    assert needed_fields(custom(tests_form="evalplus"), "code") is None, "the whole row"


def test_a_level_that_cannot_be_read() -> None:
    spec = custom(level_field="hard")
    for row in ({}, {"hard": "very"}, {"hard": float("nan")}):
        found = read_row(Row("", "x", {"question": "q", "answer": "a"} | row), spec, "math")
        assert isinstance(found, MappedRow)
        assert (found.level, found.problem.level) == (None, 0)
    negative = read_row(Row("", "x", {"question": "q", "answer": "a", "hard": -0.5}), spec, "math")
    assert isinstance(negative, MappedRow)
    assert (negative.level, negative.problem.level) == (-0.5, -1)


UNFIT = [
    ({"answer": "a"}, "no readable question", "no field 'question'; the row has 'answer'"),
    ({"question": "", "answer": "a"}, "no readable question", "field 'question' is empty"),
    ({"question": "\ud83d", "answer": "a"}, "no readable question", "half a surrogate pair"),
    (
        {"question": ["q"], "answer": "a"},
        "no readable question",
        "must hold messages with role and content, got 'q'",
    ),
    ({"question": "q"}, "no readable reference answer", "no field 'answer'"),
    ({"question": "q", "answer": None}, "no readable reference answer", "got None"),
    ({"question": "q", "answer": float("inf")}, "no readable reference answer", "finite"),
]


@pytest.mark.parametrize(("values", "reason", "message"), UNFIT)
def test_rows_that_are_no_problems(values: dict[str, Any], reason: str, message: str) -> None:
    found = unfit(values, custom())
    assert found.reason == reason
    assert found.message.startswith("x.jsonl line 1: ")
    assert message in found.message


def test_forms_of_whole_rows() -> None:
    row = {
        "question": "Add.",
        "input_mode": "stdio",
        "official_tests": [{"input": "1", "output": "1"}],
    }
    tests = problem_of(row, custom(tests_form="codeforces"), "code").tests
    assert tests is not None
    assert (tests.kind, tests.inputs, tests.outputs) == ("stdin", ("1",), ("1",))


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark files beside the repository")
def test_real_programs() -> None:
    spec = custom(prompt_field="prompt", tests_form="evalplus", template="code")
    rows = list(file_rows(str(DATA / "humaneval_plus_60.jsonl")))
    found = [read_row(row, spec, "code") for row in rows]
    problems = [each.problem for each in found if isinstance(each, MappedRow)]
    assert len(problems) == len(found) == 60
    assert problems[0].tests == from_evalplus(rows[0].values)
