"""The verdicts on mathematical answers, with the policy behind each."""

import importlib.util
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.errors import MissingExtraError
from effopd.rewards import math
from effopd.rewards.math import MathVerifier
from effopd.rewards.notation import tidy
from effopd.rewards.verdicts import VERDICTS, Verdict
from effopd.rewards.workers import WorkerSettings
from effopd.tasks.problem import Answer, Problem

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


# Reference, answer, whether it is right, and the policy -------------------------------------------

TABLE = [
    ("1/2", "0.5", True, "numbers are compared by value"),
    ("2/3", "0.667", False, "a decimal is exact unless it has about seven digits"),
    (r"50\%", "0.5", True, "a percentage is its share"),
    (r"50\%", "50", True, "a question for a percentage may be answered without the sign"),
    ("7", r"7\%", False, "a percentage is not the number before its sign"),
    ("7", r"700\%", False, "a percentage above 100 stands for no plain number"),
    ("5 cm", "5", True, "a unit may be left out"),
    ("5 cm", "5 m", False, "two different units are two answers; nothing is converted"),
    (r"\$18.90", "18.9", True, "a currency sign is no part of the number"),
    ("1,000,000", "1000000", True, "commas between thousands do not count"),
    ("1000", "1.000", False, "a point is the decimal point"),
    ("(1,2)", "[1,2]", False, "open and closed ends differ"),
    (r"(-\infty,3]", r"x\le 3", True, "an interval is the relation that describes it"),
    (r"x\le 3", r"(-\infty,3]", True, "and the other way round"),
    ("x>3", r"(3,\infty)", True, "a relation is the interval it describes"),
    (
        r"(-\infty,1)\cup(2,\infty)",
        r"(2,\infty)\cup(-\infty,1)",
        True,
        "a union has no order",
    ),
    (r"\{1,2,3\}", r"\{3,1,2\}", True, "a set has no order"),
    ("(1,2,3)", "(3,2,1)", False, "a tuple has one"),
    ("1,2", "2,1", True, "a list of solutions is a set"),
    (r"\{1,2\}", "1,2,3", False, "all solutions and no others"),
    (r"\{1,2\}", r"\{1\}", False, "all solutions and no others"),
    ("x=5", "5", True, "the name may be left out"),
    ("2x+y=3", "y=3-2x", True, "equations are compared by their solutions"),
    ("7", "3=7", False, "an equation of two numbers must hold"),
    ("7", "x=3=7", False, "so must every step of a chain"),
    (r"6.022\times10^{23}", "6.022e23", True, "e is the power of ten after a number"),
    ("1e3", "1000", True, "e is the power of ten after a number"),
    ("10^{100}", "10^{99}", False, "large numbers are compared exactly"),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
        True,
        "brackets of matrices do not count",
    ),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)", True, "a column is the tuple of its entries"),
    (r"\sqrt8", r"2\sqrt2", True, "equal values in any form"),
    (r"3\frac12", "3.5", True, "a mixed number adds"),
    (r"3\frac12", "3/2", False, "a mixed number does not multiply"),
    (r"0.\overline{3}", "1/3", True, "a repeating decimal is exact"),
    ("0.333", "1/3", False, "a decimal is exact unless it has about seven digits"),
    (r"\pi", "3.14159", False, "a decimal is exact unless it has about seven digits"),
    ("i", r"\sqrt{-1}", True, "i is the imaginary unit"),
    (r"90^\circ", r"\pi/2", False, "degrees are not converted"),
    (r"\varnothing", r"\emptyset", True, "one empty set"),
    ("No solution", "None", True, "phrases that mean the same"),
    (r"\text{(B)}", "B", True, "letters of choices"),
    ("073", "73", True, "zeros in front do not count"),
    ("1011_2", "11", False, "digits in a base are not converted"),
    ("7", "7 or 8", False, "two answers are not one"),
    ("-1/2", "1/2", False, "signs count"),
]

MORE = [
    (r"\pi", "3.1415927", True, "seven digits are enough"),
    (r"\sqrt2", "1.4142136", True, "seven digits are enough"),
    (r"\sqrt2", "1.41", False, "three are not"),
    (r"10^{-35}\pi", r"2\cdot10^{-35}\pi", False, "small numbers are compared by relative error"),
    ("6.6e-34", "1.2e-35", False, "small numbers are compared by relative error"),
    (r"-1", r"e^{i\pi}", True, "complex numbers have values"),
    ("6-5i", "-5i+6", True, "complex numbers have values"),
    (r"90^\circ", "90", True, "degrees may be left out"),
    ("x=5", "x=3=5", False, "every step of a chain must hold"),
    ("5", "x+1=5", True, "a chain may begin with a name or an expression"),
    ("x_1", "x", False, "an index of a letter is no base"),
    ("5d", "5m", False, "a letter next to a number is no unit"),
    (r"\frac{1}{2}", r"\foo \frac{1}{2}", False, "what cannot be read whole is not read in part"),
    ("1/0", "2/0", False, "what has no value equals nothing"),
    ("7", "1/0", False, "what has no value equals nothing"),
    (r"\infty", r"-\infty", False, "signs count"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", "(1,2)", True, "a row is the tuple of its entries"),
    ("(3,2)", "(5,1)", False, "points are compared entry by entry"),
    (r"\pm 3", "3,-3", True, "plus or minus is two solutions"),
    ("3,4", "x=3 or x=4", True, "names may be left out of lists"),
    (r"\text{east}", "seat", False, "a word is no product of letters"),
    ("ab", "ba", True, "two letters are a product"),
    ("e^{e^e+e-1}", "e^{e-1+e^{e}}", True, "exponents need no braces"),
    ("e^{e^e+e-1}", "1", False, "what cannot be read whole is not read in part"),
    (r"\frac{1}{3}E_1+E_2", r"E_2+E_{1}/3", True, "letters may have an index, E too"),
    ("E_1", "E_2", False, "letters with two indices differ"),
]


def test_wanted_verdicts(verifier: MathVerifier) -> None:
    rows = TABLE + MORE
    verdicts = judged(verifier, [(gold, answer) for gold, answer, _, _ in rows])
    wrong = [
        (row, verdict)
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict != ("correct" if row[2] else "wrong")
    ]
    assert wrong == []


def test_a_reference_that_is_no_formula_is_an_error_not_a_wrong_answer(
    verifier: MathVerifier,
) -> None:
    readable = [problem(answer) for answer in ("7", r"\sqrt2", r"\text{east}", "C")]
    unreadable = [problem(answer) for answer in (r"A \cup B \{", r"\begin{cases} x & y", " ")]
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


def test_the_documented_example_prints_what_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    promised = [line.split("  # ")[1] for line in example.split("\n") if "  # " in line]
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == promised
    assert len(promised) == 3


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


@pytest.mark.parametrize("digits", ["12", "0.25", "7/3", r"\frac{22}{7}", r"2\frac{1}{4}", "1e-3"])
def test_exact_arithmetic_agrees_with_algebra(verifier: MathVerifier, digits: str) -> None:
    others = ["12", r"\frac{1}{4}", r"\frac{7}{3}", r"\frac{44}{14}", r"\frac{9}{4}", "0.001"]
    exact = judged(verifier, [(digits, other) for other in others])
    algebra = verifier._pool.verdicts([((tidy(digits), other),) for other in others])
    assert exact.count("correct") == 1
    assert algebra == exact


# Benchmarks ---------------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, str]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


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
        for row in found
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
    off_by_one = [answer_to(row["answer"], boxed(row["answer"] + "1")) for row in found]
    assert set(verifier.verdicts(off_by_one)) == {"wrong"}
