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
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", True, "a union has no order"),
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
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", True,
     "brackets of matrices do not count"),
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
    ("7", "7 or 8", False, "two answers are not one"), ("-1/2", "1/2", False, "signs count"),
]  # fmt: skip

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
    ("2^{67}", "2^{67}-1", False, "large numbers are compared exactly"),
    (r"1-\frac{1}{2^{100}}", "1", False, "and so are fractions"),
    (r"\frac{2^{2005}+1}{3\cdot2^{2006}}", r"\frac16", False, "and so are fractions"),
    (r"\binom{100}{50}", r"\binom{100}{50}+1", False, "and so are binomials"),
    ("100!", "100!-1", False, "and so are factorials"),
    ("100000!", r"100000\cdot 99999!", True, "whatever their size"),
    ("10^{10^{10}}", r"10\cdot10^{10^{10}-1}", True, "whatever their size"),
    ("10^{10^{10}}", "10^{10^{10}}+1", False, "whatever their size"),
    (r"\pi+10^{-60}", r"\pi", False, "irrational ones to as many digits as it takes"),
    (r"\sqrt{2}^2-2", "0", True, "irrational ones to as many digits as it takes"),
    ("e^{-200}", "2e^{-200}", False, "small numbers are compared by relative error"),
    (r"\pi^{100}", r"\pi^{100}+1", False, "irrational ones to as many digits as it takes"),
    (r"\pi+e^{-200}", r"\pi", False, "irrational ones to as many digits as it takes"),
    ("6-5i", "z = 6-5i", True, "a name may stand before any formula"),
    ("2i,-2i", "x=2i,-2i", True, "a name may stand before a list"),
    ("f(x)=x+1", "x+1", True, "a name may be a function"),
    ("y=5", "x=5", False, "two names differ"), (r"\gamma+1", "1", False, "gamma is a letter"),
    (r"\gamma^{2}-1", r"\gamma^2-1", True, "gamma is a letter"),
    (r"\gamma_2", r"\gamma_{2}", True, "gamma is a letter"),
    (r"\log 2", r"\ln 2", True, "log is the natural logarithm"),
    (r"\log_{10} 2", r"\ln 2", False, "unless its base is written"),
    (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3", True, "relations may be joined"),
    (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x\ge3", False, "their ends count"),
    (r"(2,\infty)", r"\{x \mid x>2\}", True, "a set builder is its condition"),
    (r"(-2,2)", "x^2<4", True, "quadratic relations are solved"),
    (r"(-\infty,1)\cup(3,\infty)", "|x-2|>1", True, "relations with absolute values are solved"),
    (r"(1,2)", "]1,2[", True, "open ends have two spellings"),
    ("(a,b)", "a<x<b", True, "ends may be letters"),
    ("p > 1", r"\{p: p>1\}", True, "a set builder is its condition"),
    ("x > 1", "y > 1", False, "two letters differ"),
    ("2x < 6", r"(-\infty, 3)", True, "linear relations are solved"),
    (r"\mathbb{R}", r"(-\infty,\infty)", True, "all real numbers"),
    (r"\mathbb{R}\setminus\{3\}", r"x \neq 3", True, "all but one"),
    (r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", r"\frac{-1\pm\sqrt{17}}{2}", True,
     "plus or minus is two solutions"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}", False, "one of two is not both"),
    (r"\frac{\pi}{2}", r"\frac\pi2", True, "one token needs no braces"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}{1}\\[6pt]{2}\end{pmatrix}", True,
     "space between rows does not count"),
    (r"\begin{pmatrix}-1/3\\2/3\end{pmatrix}", r"\frac13\begin{pmatrix}-1\\2\end{pmatrix}", True,
     "a number times a matrix multiplies its entries"),
    ("5", r"5\\", True, "a line may end"),
    (r"\frac{20000}{\pi}", r"\frac{20{,}000}{\pi}", True, "commas between thousands do not count"),
    (r"12000\pi", r"12,000\pi", True, "commas between thousands do not count"),
    ("(1,000, 2)", "(1000, 2)", False, "in brackets they separate entries"),
    ("25000", r"25\ 000", True, "spaces between thousands do not count"),
    ("260", r"\boldsymbol{260}", True, "fonts do not count"),
    (r"\frac{13}{6}", r"\mathbf{\frac{13}{6}}", True, "fonts do not count"),
    ("600", r"\textcolor{blue}{600}", True, "colours do not count"),
    ("280", r"{\color{red} 280}", True, "colours do not count"),
    ("255", r"\begin{aligned}&255\end{aligned}", True, "alignment does not count"),
    ("No", "NO", True, "short words are words"),
    ("No", r"\text{No.}", True, "short words are words"),
    ("52_8", "(52)_8", True, "bases have several spellings"),
    ("52_8", r"52\text{ base }8", True, "bases have several spellings"),
    ("3:2", "6:4", True, "ratios are compared by value"),
    ("52_8", r"52 \text{ (base 8)}", True, "bases have several spellings"),
    ("52_8", r"52_{\text{nine}}", False, "two bases differ"),
    (r"\mathbb{Z}", r"\mathbb Z", True, "one token needs no braces"),
    (r"2^{\aleph_0}", r"2^{\aleph_{0}}", True, "one token needs no braces"),
    (r"y^{\prime}+r y-r x(t)=0", "y'+ry-rx(t)=0", True, "primes have two spellings"),
    ("MR=SRMC", r"\text{MR}=\text{SRMC}", True, "commands around words do not count"),
    (r"\frac{2}{e}", r"\frac{2}{\mathrm{e}}", True, "constants may be upright"),
    ("6 - 5i", r"6-5\mathrm{i}", True, "constants may be upright"),
    ("f(x) = x + 1", r"f(x) = x+1 \text{ for all } x \in \mathbb{R}", True,
     "a condition may stand behind"),
    (r"5 \text{ m/s}", r"5 \text{ km/h}", False, "two different units are two answers"),
    (r"12 \text{ square meters}", r"12\text{ ft}^2", False, "two different units are two answers"),
    (r"\$5", "€5", False, "currencies are units"),
    (r"\$5", r"5 \text{ cents}", False, "currencies are units"),
    (r"\$5", "5 dollars", True, "currencies are units"),
    (r"145^\circ", r"145\text{ radians}", False, "degrees are a unit"),
    (r"145^\circ", r"145\degree", True, "degrees have several spellings"),
    ("9.8", r"9.8\,\mathrm{m\,s^{-2}}", True, "units have several spellings"),
    (r"9.8\text{ m/s}^2", r"9.8 \frac{\text{m}}{\text{s}^2}", True, "units have several spellings"),
    ("18 eggs", "18 apples", False, "a word behind a number is compared like a unit"),
    ("B", "A or choice B", False, "two letters choose none"),
    ("A", "A) 5 B) 6 C) 7 D) 8", False, "a list of choices chooses none"),
    (r"\dfrac{\pi}{2}", "pi/2", True, "plain notation is read"),
    (r"\sin x", "sin(x)", True, "plain notation is read"),
    ("x^2", "x**2", True, "plain notation is read"),
    (r"\sqrt{x^2}", "x", False, "letters may be negative"),
    (r"\sin^2 x+\cos^2 x", "1", True, "identities hold"),
    (r"x^2+y^2=4", "2x^2+2y^2=8", True, "equations are equal up to a factor"),
    (r"x^2+y^2=4", "x^2+y^2=2", False, "equations are equal up to a factor"),
    ("1,2", "x=1, y=2", True, "named entries are entries"),
    ("x=1, y=2", "x=2, y=1", False, "names say which entry is which"),
    ("7", "7, 7.5", False, "all solutions and no others"),
    (r"\int_0^1 2x\,dx", "1", True, "integrals are worked out"),
    (r"\frac{\sqrt{3}}{2}", r"{\sqrt{3} \over 2}", True, "fractions have several spellings"),
    (r"\frac12", r"\nicefrac{1}{2}", True, "fractions have several spellings"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\cr2\end{pmatrix}", True, "rows end"),
    ("260", r"\begin{array}{l}260\end{array}", True, "alignment does not count"),
    ("260", r"\framebox{260}", True, "frames do not count"),
    ("260", r"\text{Answer: } 260", True, "what introduces an answer does not count"),
    ("260", r"\textbf{The final answer is 260}", True, "what introduces an answer does not count"),
    ("25000", r"25{\,}000", True, "spaces between thousands do not count"),
    (r"\mathbb{R}", r"\R", True, "sets of numbers have several spellings"),
    (r"\varnothing", r"\text{No solution}", True, "no solution is the empty set"),
    (r"\text{no real solutions}", r"\{\}", True, "no solution is the empty set"),
    (r"\varnothing", "0", False, "the empty set is no number"),
    (r"\infty", r"\text{inf}", True, "infinity has several spellings"),
    (r"\infty", "Infinity", True, "infinity has several spellings"),
    (r"\infty", r"\text{-inf}", False, "signs count"),
    ("f(x)=x+1", r"f(x)=x+1 \quad \forall x\in\mathbb{R}", True, "a condition may stand behind"),
    ("f(x)=-x", "f(t)=-t", True, "what a function is of may be renamed"),
    ("f(x)=-x", r"t\mapsto -t", True, "what a function is of may be renamed"),
    ("f(x,y)=x-y", "f(y,x)=y-x", True, "what a function is of may be renamed"),
    ("f(x,y)=x-y", "f(a,b)=b-a", False, "but not exchanged"),
    ("f(x)=x+t", "f(t)=t+x", False, "the other letters may not"),
    ("f(x)=x+1", "f(t)=x+1", False, "all of them have to be"),
    (r"\{x: x>2\}", r"\{t \mid t>2\}", True, "what a set is of may be renamed"),
    (r"\{x: x>a\}", r"\{a \mid a>x\}", False, "the other letters may not"),
    (r"\$1.5 \text{ million}", "1,500,000", True, "millions are numbers"),
    ("1 million", "1000000", True, "millions are numbers"),
    ("5", "5 million", False, "millions are numbers"),
    ("f(x)=0", r"f(x)\equiv 0", True, "a function may be constant"),
    (r"x\equiv 3 \pmod 4", r"x \equiv 3 \pmod{4}", True, "congruences are read"),
    (r"x\equiv 3 \pmod 4", r"3 \pmod 4", True, "congruences are read"),
    (r"x\equiv 3 \pmod 4", r"x\equiv 3 \pmod 5", False, "congruences are read"),
    (r"60 \text{ minutes}", r"60 \text{ min}", True, "units have several spellings"),
    (r"\min(a,b)", r"\text{min}(a,b)", True, "and `min` is a function elsewhere"),
    (r"9 \text{ J/(mol K)}", r"9\ \text{J}/(\text{mol}\cdot\text{K})", True,
     "units may be divided"),
    (r"9\,\mu\text{m}", r"9 \text{ micrometers}", True, "units may have prefixes"),
    (r"9\,\mu\text{m}", r"9 \text{ m}", False, "prefixes count"),
    (r"9 \text{ Å}", r"9\,\AA", True, "units have several spellings"),
    ("9.8", r"\qty{9.8}{\metre\per\second\squared}", True, "units have several spellings"),
    (r"30^\circ 15'", r"30.25^{\circ}", True, "minutes are parts of a degree"),
    (r"30^\circ 15'", r"30^{\circ}16^{\prime}", False, "minutes are parts of a degree"),
    ("A,C", "A and C", True, "letters may be joined by words"),
    (r"[1,2]\cup[3,4]", "[1,2] U [3,4]", True, "a union has several spellings"),
    (r"(-\infty,2)\cup(3,\infty)", r"]-\infty;2[\cup]3;+\infty[", True,
     "open ends have two spellings"),
    (r"(-\infty,2)\cup(3,\infty)", r"]-\infty,2]\cup]3,\infty[", False, "their ends count"),
    (r"12:30 \text{ PM}", r"12:30\text{ p.m.}", True, "halves of a day have several spellings"),
    (r"12:30 \text{ PM}", r"12:30\text{ a.m.}", False, "halves of a day count"),
    (r"12\text{th}", "12^{th}", True, "ordinals have several spellings"),
    ("5", r"\approx 5", True, "a sign before the answer does not count"),
]  # fmt: skip


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
