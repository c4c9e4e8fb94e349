"""Values of formulas: residues and digits against plain arithmetic."""

from fractions import Fraction
from math import comb, factorial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.rewards.mathematics.formula import NoFormulaError
from effopd.rewards.mathematics.parser import parse
from effopd.rewards.mathematics.regions import region, same_region
from effopd.rewards.mathematics.values import UndecidedError, equal_values, real_value, residue

pytest.importorskip("mpmath")

Valued = tuple[str, Fraction]
"""A formula in LaTeX and its value."""

NUMBERS = st.one_of(
    st.integers(0, 60).map(lambda n: (str(n), Fraction(n))),
    st.integers(0, 12).map(lambda n: (f"{n}!", Fraction(factorial(n)))),
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(
        lambda pair: (rf"\binom{{{pair[0]}}}{{{min(pair)}}}", Fraction(comb(pair[0], min(pair))))
    ),
)


def _joined(parts: tuple[Valued, str, Valued]) -> Valued:
    (left, a), sign, (right, b) = parts
    if sign == "+":
        return f"({left}+{right})", a + b
    if sign == "-":
        return f"({left}-{right})", a - b
    if sign == "*":
        return rf"({left}\cdot {right})", a * b
    if sign == "^":
        return f"({left})^{{3}}", a**3
    return rf"\frac{{{left}}}{{{right}}}", a / b if b else a


FORMULAS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/^"), inner).filter(
        lambda parts: parts[1] != "/" or parts[2][1] != 0
    ).map(_joined),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(FORMULAS, FORMULAS)
def test_residues_tell_rational_numbers_apart_as_fractions_do(one: Valued, other: Valued) -> None:
    (left, a), (right, b) = one, other
    assert equal_values(parse(left), parse(right)) == (a == b)
    written = parse(rf"\frac{{{a.numerator}}}{{{a.denominator}}}")
    assert equal_values(parse(left), written)
    assert not equal_values(parse(f"{left}+1"), written)
    value = real_value(parse(left))
    assert value is not None
    assert abs(value - float(a)) <= 1e-9 * max(1.0, abs(float(a)))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (r"\sqrt{2}\sqrt{3}", r"\sqrt{6}", True),
        (r"\sqrt{2+\sqrt3}", r"\frac{\sqrt6+\sqrt2}{2}", True),
        (r"\sqrt{10^{40}+1}", "10^{20}", False), (r"\arctan(10^{30})", r"\frac{\pi}{2}", False),
        ("e^{i\\theta}", r"\cos\theta+i\sin\theta", True),
        ("e^{i\\theta}", r"\cos\theta-i\sin\theta", False), (r"\ln x^2", r"2\ln x", False),
        ("x^{3/2}", r"x\sqrt x", True), ("(-8)^{1/3}", "-2", True), ("f(x)+f(y)", "f(x+y)", False),
        ("f(2x)", "f(x+x)", True), (r"\binom{n}{2}", r"\frac{n(n-1)}{2}", True),
        (r"\frac{1}{0}", r"\frac{1}{0}", False),
    ],
)  # fmt: skip
def test_values_at_points(one: str, other: str, equal: bool) -> None:
    assert equal_values(parse(one), parse(other)) == equal
    assert equal_values(parse(other), parse(one)) == equal


def test_what_is_too_large_to_compare_is_said() -> None:
    with pytest.raises(UndecidedError):
        equal_values(parse(r"10^{9000}+\pi"), parse(r"10^{9000}+\pi+10^{-9000}\sqrt{2}"))
    assert residue(parse("2^{2^{100}}")) == residue(parse("4^{2^{99}}"))


@pytest.mark.parametrize(
    "text",
    ["", "1 2", "x+", r"\frac{1}", "(1", "1)", r"\foo", "Answer: 3", "sin{x}",
     "frac{1}{2}", "|x", "^2"],
)  # fmt: skip
def test_what_is_no_formula_is_not_read_in_part(text: str) -> None:
    with pytest.raises(NoFormulaError):
        parse(text)


RELATIONS = {
    "2x-1<5": lambda x: 2 * x - 1 < 5, r"-1\le x<4": lambda x: -1 <= x < 4,
    r"x<-1 \text{ or } x\ge 2": lambda x: x < -1 or x >= 2, "x>-2, x<3": lambda x: -2 < x < 3,
    r"3-x\ge 1": lambda x: 3 - x >= 1, r"x\ne 1, 2": lambda x: x not in {1, 2},
    r"|x-1|\le 2": lambda x: abs(x - 1) <= 2, "x^2-3x+2>0": lambda x: x * x - 3 * x + 2 > 0,
    r"\{x \in [0,3] : x>1\}": lambda x: 1 < x <= 3,
    r"(-2,0)\cup[1,3]\setminus\{2\}": lambda x: (-2 < x < 0 or 1 <= x <= 3) and x != 2,
    r"(-\infty,2]\cap(-1,\infty)": lambda x: -1 < x <= 2,
}  # fmt: skip


@pytest.mark.parametrize("text", RELATIONS, ids=str)
def test_regions_hold_the_numbers_that_their_relations_allow(text: str) -> None:
    found = region(parse(text))
    assert found is not None
    for quarter in range(-20, 21):
        x = quarter / 4
        inside = any((low.value, low.side) <= (x, 0) < (high.value, high.side)
                     for low, high in found.spans)  # fmt: skip
        assert inside == RELATIONS[text](x), x
    assert [other for other in RELATIONS if same_region(found, region(parse(other)), 0.0)] == [text]  # type: ignore[arg-type]
