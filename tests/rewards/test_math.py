"""The verdicts on mathematical answers, with the policy behind each."""

import importlib.util
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.answer_pairs import GROUPS, pairs

from effopd.data.problem import Answer, AnswerRules, Problem
from effopd.errors import ConfigError, MissingExtraError
from effopd.rewards import math
from effopd.rewards.math import MathVerifier
from effopd.rewards.mathematics.decide import VERDICTS, Verdict, decide
from effopd.rewards.workers import WorkerSettings

pytest.importorskip("math_verify")

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    """A patient one: its verdicts do not depend on how busy this machine is."""
    with MathVerifier(WorkerSettings(processes=1, wall_s=120.0)) as verifier:
        yield verifier


def problem(answer: str) -> Problem:
    return Problem(id="p", prompt="", answer=answer)


def boxed(answer: str) -> str:
    return rf"So it is \boxed{{{answer}}}."


def answer_to(gold: str, completion: str, *, is_truncated: bool = False) -> Answer:
    return Answer(problem=problem(gold), completion=completion, is_truncated=is_truncated)


def judged(verifier: MathVerifier, pairs: list[tuple[str, str]]) -> list[Verdict]:
    return verifier.verdicts([answer_to(gold, boxed(answer)) for gold, answer in pairs])


TABLE, MORE = (
    [line.split("\t") for line in block.splitlines()]
    for block in Path(__file__).with_name("verdicts.txt").read_text("utf-8").split("\n\n")[1:]
)
"""Reference, answer, whether it is right, and the policy."""


def test_wanted_verdicts(verifier: MathVerifier) -> None:
    rows = TABLE + MORE
    verdicts = judged(verifier, [(gold, answer) for gold, answer, _, _ in rows])
    wrong = [
        (row, verdict)
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict != ("correct" if row[2] == "right" else "wrong")
    ]
    assert wrong == []


def test_a_reference_that_is_no_formula_is_an_error_not_a_wrong_answer(
    verifier: MathVerifier,
) -> None:
    readable = [
        problem(answer)
        for answer in ("7", r"\sqrt2", r"\text{east}", "C", r"so \boxed{3}", "3:2", "a:b", "12:30")
    ]
    broken = (
        r"A \cup B \{", r"\begin{cases} x & y", " ", r"\frac{sqrt{7} + 1}{2}", r"\frac{1}{2",
        "frac{1}{2}", r"\fraq{1}{2}", "2^", "Answer: 3", "The sum is 3", "#### 3", "ANSWER: 3",
        "A: 3", "答案：3", "Ответ: 3", "The value is three",
        "The function is continuous everywhere but it is not differentiable at the origin",
    )  # fmt: skip
    unreadable = [problem(answer) for answer in broken]
    assert verifier.unreadable([*readable, *unreadable]) == unreadable
    assert judged(verifier, [(unreadable[0].answer, "7")]) == ["error"]
    assert judged(verifier, [(unreadable[0].answer, unreadable[0].answer)]) == ["correct"]


def test_answers_are_grouped_by_value(verifier: MathVerifier) -> None:
    before = dict(verifier.counts)
    halves = [r"\frac{1}{2}", "3", "0.5", None, r"\dfrac{1}{2}", "3", "", "x+1", "1+x", "{"]
    assert verifier.groups(halves) == [0, 1, 0, None, 0, 1, None, 2, 2, 3]
    assert verifier.groups(["073", "73", "74", "73.0", "74"]) == [0, 0, 1, 0, 1]
    assert verifier.groups([]) == []
    assert dict(verifier.counts) == before


def test_rewards_and_counts() -> None:
    with MathVerifier(WorkerSettings(processes=1, wall_s=120.0)) as verifier:
        completions = [boxed("7"), boxed("8"), "7", boxed(""), boxed("9^9^9^9"), boxed("7.0")]
        answers = [answer_to("7", completion) for completion in completions]
        answers += [answer_to("7", boxed("7"), is_truncated=True)]
        assert verifier.rewards(answers) == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        assert verifier.counts == {
            "correct": 2,
            "wrong": 1,
            "no_answer": 2,
            "truncated": 1,
            "timeout": 0,
            "memory": 0,
            "error": 1,
        }
        assert tuple(verifier.counts) == VERDICTS


def test_equal_answers_are_compared_once(
    verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    compare = verifier._pool.verdicts

    def counted(checks: Any) -> list[Verdict]:
        asked.append(len(checks))
        return compare(checks)

    monkeypatch.setattr(verifier._pool, "verdicts", counted)
    answers = [(r"\sqrt8", r"2\sqrt2"), (r"\sqrt8", r"3\sqrt2"), ("7", "7")] * 8
    assert judged(verifier, answers) == ["correct", "wrong", "correct"] * 8
    assert asked == [2]


def test_without_math_verify_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("math_verify") is not None
    monkeypatch.setattr(math, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'effopd\[eval\]'"):
        MathVerifier()


def test_the_documented_examples_print_what_they_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    example = "\n".join(part.split("```")[0] for part in page.split("```python\n")[1:])
    promised = [line.split("  # ")[1] for line in example.split("\n") if "  # " in line]
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == promised
    assert len(promised) == 4


# Pairs in groups, and the settings of a data set --------------------------------------------------


def test_hard_pairs_are_judged_right(verifier: MathVerifier) -> None:
    hard = pairs(copies=3)
    verdicts = judged(verifier, [(pair.reference, pair.answer) for pair in hard])
    missed = [
        (pair, verdict)
        for pair, verdict in zip(hard, verdicts, strict=True)
        if (verdict == "correct") != pair.is_right
    ]
    accepted = [pair for pair, verdict in missed if verdict == "correct"]
    assert len(hard) > 700
    assert {pair.group for pair in hard} == set(GROUPS)
    assert accepted == []
    assert len(missed) <= 0.01 * len(hard), missed
    assert "timeout" not in verdicts


def test_a_data_set_says_what_a_logarithm_is_and_how_far_a_rounding_may_be_off(
    verifier: MathVerifier,
) -> None:
    def verdict(gold: str, answer: str, **rules: Any) -> Verdict:
        asked = replace(problem(gold), rules=AnswerRules(**rules))
        return verifier.verdicts([Answer(problem=asked, completion=boxed(answer))])[0]

    assert verdict(r"\log 2", r"\log_{10} 2") == "wrong"
    assert verdict(r"\log 2", r"\log_{10} 2", log_base="10") == "correct"
    assert verdict(r"\log 2", r"\ln 2", log_base="10") == "wrong"
    for gold, answer in (
        ("0.5613", "0.56"),
        ("1.39e9", r"1.4\times10^9"),
        (r"2.2 \tau", r"2.21\tau"),
    ):
        assert verdict(gold, answer) == "wrong"
        assert verdict(gold, answer, relative_error=0.01) == "correct"
        assert verdict(gold, answer, relative_error=0.001) == "wrong"
    for gold, answer in (("100", "101"), ("7", "7.01"), (r"\frac{1}{3}", "0.333")):
        assert verdict(gold, answer, relative_error=0.01) == "wrong"  # the reference is exact
    with pytest.raises(ConfigError, match="log_base must be 'e' or '10', got '2'"):
        AnswerRules(log_base="2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="relative_error"):
        AnswerRules(relative_error=1.0)


# Properties ---------------------------------------------------------------------------------------

ATOMS = st.one_of(
    st.integers(1, 99).map(str),  # no formula divides by nothing
    st.sampled_from(["x", "y", r"\pi", r"\sqrt{2}", r"\frac{1}{3}", "x^{2}", r"\sin(x)"]),
)
SUMS = st.lists(ATOMS, min_size=1, max_size=3).map("+".join)
FORMULAS = st.one_of(
    SUMS,
    st.tuples(SUMS, SUMS).map(r"\frac{%s}{%s}".__mod__),
    st.tuples(SUMS, SUMS).map(r"\left(%s, %s\right)".__mod__),
)


def dressed(formula: str) -> str:
    """The same formula as someone else writes it."""
    for old, new in (
        (r"\left(", "("),
        (r"\right)", ")"),
        (r"\frac", r"\dfrac"),
        ("+", r" \, + "),
        (r"\pi", r"\pi "),
        ("x^{2}", "x^2"),
    ):
        formula = formula.replace(old, new)
    return rf"$\displaystyle {formula} $"


@settings(deadline=None, max_examples=5)
@given(st.lists(FORMULAS, min_size=20, max_size=20))
def test_a_formula_is_itself_however_it_is_dressed(
    verifier: MathVerifier, formulas: list[str]
) -> None:
    pairs = [(formula, dressed(formula)) for formula in formulas]
    assert judged(verifier, pairs) == ["correct"] * 20
    # The comparison itself is reflexive too, not only the look at the text.
    plain = [formula.replace(r"\left", "").replace(r"\right", "") for formula in formulas]
    assert verifier._pool.verdicts([((text, text),) for text in plain]) == ["correct"] * 20


@settings(deadline=None, max_examples=4)
@given(st.lists(st.tuples(FORMULAS, FORMULAS), min_size=12, max_size=12), st.randoms())
def test_verdicts_are_symmetric_and_do_not_depend_on_the_order(
    verifier: MathVerifier, pairs: list[tuple[str, str]], shuffler: Any
) -> None:
    verdicts = judged(verifier, pairs)
    assert set(verdicts) <= {"correct", "wrong"}
    assert judged(verifier, [(answer, gold) for gold, answer in pairs]) == verdicts
    order = list(range(len(pairs)))
    shuffler.shuffle(order)
    assert judged(verifier, [pairs[i] for i in order]) == [verdicts[i] for i in order]


@settings(deadline=None, max_examples=5)
@given(
    st.lists(
        st.text(alphabet=r"\{}()[]^_=,.+-*/|&% 0123456789xyiefracsqrtin", max_size=30),
        min_size=20,
        max_size=20,
    )
)
def test_no_answer_raises(verifier: MathVerifier, answers: list[str]) -> None:
    verdicts = judged(verifier, [("7", answer) for answer in answers])
    assert set(verdicts) <= set(VERDICTS)
    assert judged(verifier, [("7", "7")]) == ["correct"]


def test_verdicts_are_the_same_in_threads_and_in_a_copy(verifier: MathVerifier) -> None:
    pairs = [(gold, answer) for gold, answer, _, _ in TABLE]
    here = judged(verifier, pairs)
    with ThreadPoolExecutor(3) as threads:
        there = list(threads.map(lambda pair: judged(verifier, [pair])[0], pairs))
    assert there == here
    with pickle.loads(pickle.dumps(verifier)) as copy:
        assert copy.settings == verifier.settings
        assert judged(copy, pairs) == here
        assert sum(copy.counts.values()) == len(pairs)


# Benchmarks ---------------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, str]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("deepmath_1000.jsonl", ["+", "E[X|Y] = E[X]"]), ("minerva.jsonl", []),
        ("hmmt25_nov.jsonl", [r"\frac{sqrt{7} + 1}{2}"]), ("math.jsonl", []),
        ("hmmt25_feb.jsonl", []), ("gsm8k.jsonl", []),
    ],
)  # fmt: skip
def test_references_of_benchmarks_are_read_and_equal_themselves(
    verifier: MathVerifier, name: str, broken: list[str]
) -> None:
    references = [str(row["answer"]) for row in rows(name)]
    asked = [problem(reference) for reference in references]
    assert [each.answer for each in verifier.unreadable(asked)] == broken
    itself = [answer_to(reference, boxed(reference)) for reference in references]
    assert set(verifier.verdicts(itself)) == {"correct"}
    decided = [decide(each, "0") for each in references if each not in broken]
    same = [tuple((pair[0], pair[0]) for pair in d) for d in decided if isinstance(d, tuple)]
    assert set(verifier._pool.verdicts(same)) <= {"correct"}


def test_math_500_reference_solutions_are_right(verifier: MathVerifier) -> None:
    found = rows("math.jsonl")
    answers = [answer_to(row["answer"], row["solution"]) for row in found]
    verdicts = verifier.verdicts(answers)
    misses = [
        (row["unique_id"], verdict)
        for row, verdict in zip(found, verdicts, strict=True)
        if verdict != "correct"
    ]
    assert len(found) == 500
    assert misses == []


def test_gsm8k_answers_are_right_with_sign_unit_and_commas(verifier: MathVerifier) -> None:
    found = rows("gsm8k.jsonl")
    answers = [
        answer_to(row["answer"], boxed(written))
        for row in found[::5]
        for number in (row["answer"].replace(",", ""),)
        for written in (number, f"{number}.00", rf"\${number}", rf"{number} \text{{ dollars}}")
    ]
    verdicts = verifier.verdicts(answers)
    misses = [
        (answer, verdict)
        for answer, verdict in zip(answers, verdicts, strict=True)
        if verdict != "correct"
    ]
    assert len(found) == 1319
    assert misses == []
    off_by_one = [answer_to(row["answer"], boxed(row["answer"] + "1")) for row in found[::5]]
    assert set(verifier.verdicts(off_by_one)) == {"wrong"}
