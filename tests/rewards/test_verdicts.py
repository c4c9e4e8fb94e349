"""What text and arithmetic decide, without any algebra."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.rewards.mathematics.decide import (
    MAX_CHARACTERS,
    VERDICTS,
    decide,
    exact_number,
    numbers_equal,
    split_unit,
)
from effopd.rewards.mathematics.latex import as_words, normalize_latex

LATEX = st.text(alphabet=r"\frac{}()[]^_$%,.+-=<>|/! 0123456789abexyπ√½²°", max_size=60)
ANY = st.one_of(LATEX, st.text(max_size=40))
INTEGERS = st.integers(-(10**9), 10**9)
COUNTS = st.integers(1, 10**6)


# Notation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (" 5 . ", "5"), (".5", ".5"), ("$5$", "5"), (r"\(5\)", "5"), (r"\$18.90", "$18.90"),
        ("$x$ and $y$", "x and y"), ("$18", "$18"), ("{5}", "5"), (r"\{5\}", r"\{5\}"),
        ("{5}/{6}", "{5}/{6}"), ("１２", "12"), ("١٢", "12"), ("1\u200b2\ufeff", "12"),
        ("1\ud8002", "12"), ("1\x002", "12"), ("−5", "-5"), ("10⁻³", "10^{-3}"),
        ("√12", r"\sqrt{12}"), ("2π", r"2\pi"), (r"1\,000", "1000"), (r"11,\! 111", "11111"),
        (r"\pi\,r", r"\pi r"), ("1{,}000", "1000"), ("(1,000, 2)", "(1,000, 2)"),
        (r"\frac{20{,}000}{\pi}", r"\frac{20000}{\pi}"), ("25~000", "25000"),
        (r"\textcolor{blue}{600}", "600"), (r"\mathbf{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\mathrm{m\,s^{-2}}", r"\text{m s^-2}"), (r"\mbox{ inches}^2", r"\text{inches}^2"),
        (r"\mathbb Z", r"\mathbb{Z}"), (r"y^{\prime\prime}", "y''"), ("x**2", "x^2"), (r"5\\", "5"),
        (r"\left(1,2\right]", "(1,2]"), (r"\left. x \right|", "x |"),
        (r"\leftarrow", r"\leftarrow"), (r"\dfrac12", r"\frac12"), ("1e-3", r"1\times 10^{-3}"),
        ("2e", "2e"), ("e^e^x", "e^{e}^{x}"), ("E_1", r"\text{E}_1"), (r"\tilde_1", r"\tilde_1"),
        ("xe3", "xe3"), (r"0.1\overline{6}", r"\frac{1}{6}"), (r".\overline{9}", r"\frac{1}{1}"),
        (r"\{ \}", r"\emptyset"),
        (r"\begin{matrix}1\\[2pt]2\end{matrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
)  # fmt: skip
def test_one_notation(text: str, plain: str) -> None:
    assert normalize_latex(text) == plain


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("5 cm", ("5", "cm")), ("5cm", ("5", "cm")), (r"5\text{ centimeters}", ("5", "cm")),
        (r"864 \text{ inches}^2", ("864", "in^2")), (r"3\text{m}^{3}", ("3", "m^3")),
        (r"90^\circ", ("90", "degree")), (r"90^{\circ}", ("90", "degree")),
        (r"\frac{1}{2} kg", (r"\frac{1}{2}", "kg")), ("18 eggs", ("18", "egg")),
        (r"18\text{ eggs}", ("18", "egg")), (r"9.8 \frac{\text{m}}{\text{s}^2}", ("9.8", "m s^-2")),
        (r"9.8\text{m s^-2}", ("9.8", "m s^-2")), ("28.71 cm^3/mol", ("28.71", "cm^3 mol^-1")),
        (r"12 \text{ square meters}", ("12", "m^2")),
        (r"5 \text{ miles per hour}", ("5", "h^-1 mi")), ("-$5", ("-5", "dollar")),
        ("€5", ("5", "euro")), (r"145\degree", ("145", "degree")),
        (r"145\text{ radians}", ("145", "rad")), ("7 million", ("7 million", "")),
        (r"7\text{ dozen}", (r"7\text{ dozen}", "")), ("7 or 8", ("7 or 8", "")),
        ("5x", ("5x", "")), ("5m", ("5m", "")), ("2ab", ("2ab", "")), ("cm", ("cm", "")),
        (r"\text{cm}", (r"\text{cm}", "")), ("x", ("x", "")),
    ],
)  # fmt: skip
def test_units(text: str, split: tuple[str, str]) -> None:
    assert split_unit(text) == split


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"\text{Evelyn}", "evelyn"), ("No solution", "none"), ("None", "none"),
        (r"\text{No}", "no"), ("even.", "even"), (r"\text{even}", "even"), ("x", None),
        ("ab", None), (r"\sin x", None), ("2 apples", None),
    ],
)  # fmt: skip
def test_words(text: str, words: str | None) -> None:
    assert as_words(text) == words


# Numbers ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(INTEGERS, COUNTS)
def test_fractions_are_read_exactly(above: int, below: int) -> None:
    value, sign, size = Fraction(above, below), "-" if above < 0 else "", abs(above)
    for text in (
        rf"{sign}\frac{{{size}}}{{{below}}}",
        rf"\frac{{{above}}}{{{below}}}",
        f"{above}/{below}",
        f"{above:,} / {below:,}",
    ):
        assert exact_number(text) == value


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=5, min_value=-(10**9)))
def test_decimals_are_read_exactly(value: Decimal) -> None:
    assert exact_number(f"{value:f}") == Fraction(value)
    assert exact_number(f"{value:,f}") == Fraction(value)
    assert exact_number(rf"{value:f} \times 10^{{-3}}") == Fraction(value) / 1000


@settings(deadline=None)
@given(COUNTS, COUNTS, COUNTS)
def test_mixed_numbers_add(whole: int, above: int, below: int) -> None:
    value = whole + Fraction(above, below)
    assert exact_number(rf"{whole}\frac{{{above}}}{{{below}}}") == value
    assert exact_number(f"-{whole} {above}/{below}") == -value


@pytest.mark.parametrize(
    "text", ["", "x", "1,2", "12,34", "1/0", r"\frac{1}{0}", "1 2", "--1", "1+1", "2^3", "9" * 1001]
)
def test_what_is_no_number(text: str) -> None:
    assert exact_number(text) is None


@pytest.mark.parametrize(
    ("reference", "answer", "decimal", "agree"),
    [
        ("1/3", "0.333333", True, True), ("1/3", "0.33333", True, False),
        ("1/1000", "0.00100001", True, False), ("0", "0.0000001", True, False),
        ("1000000", "1000000.0000001", True, True), ("12345678", "12345679", False, False),
        ("1/3", "333333/1000000", False, False),
    ],
)  # fmt: skip
def test_decimals_may_be_rounded_at_the_seventh_digit(
    reference: str, answer: str, decimal: bool, agree: bool
) -> None:
    wanted, given_number = exact_number(reference), exact_number(answer)
    assert wanted is not None
    assert given_number is not None
    assert numbers_equal(wanted, given_number, decimal=decimal) == agree


# Decisions ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ANY)
def test_every_text_answers_itself(text: str) -> None:
    wanted = "correct" if normalize_latex(text) else "no_answer"
    assert decide(text, text) == wanted


@settings(deadline=None)
@given(ANY, ANY)
def test_a_decision_is_a_verdict_or_pairs(reference: str, answer: str) -> None:
    decision = decide(reference, answer)
    if isinstance(decision, str):
        assert decision in VERDICTS
    else:
        assert decision
        assert all(len(text) <= 2 * MAX_CHARACTERS for pair in decision for text in pair[:2])


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        ("7", "", "no_answer"), ("", "7", "error"), ("7", "9^9^9^9", "error"),
        ("7", "9^{9^{9^{9}}}", "error"), ("7", "(" * 41 + ")" * 41, "error"),
        ("7", "1" * 1001, "error"), ("7", "x" * (MAX_CHARACTERS + 1), "error"),
        ("7", "∅" * MAX_CHARACTERS, "error"),
        ("x " * MAX_CHARACTERS, "x " * MAX_CHARACTERS, "correct"), ("C", "c", "correct"),
        ("C", "C) 3", "correct"), ("C", "D", "wrong"), (r"\text{east}", "seat", "wrong"),
        ("x", "Evelyn", "wrong"), ("4210_{5}", "4210_5", "correct"), ("4210_5", "4210", "correct"),
        ("4210_5", "4210_6", "wrong"), (r"30\%", r"0.3", "correct"),
        (r"30\%", "30 percent", "correct"), (r"30\%", "31", "wrong"), ("0.3", r"30\%", "correct"),
        ("300", r"300\%", "wrong"), ("3", r"300\%", "wrong"),
    ],
)  # fmt: skip
def test_decided_without_algebra(reference: str, answer: str, verdict: str) -> None:
    assert decide(reference, answer) == verdict


def test_powers_of_several_letters_are_no_tower() -> None:
    assert decide("x^2y^2z^2", "y^2x^2z^2") == (("x^2y^2z^2", "y^2x^2z^2"),)


def test_what_algebra_has_to_compare() -> None:
    assert decide(r"\sqrt8", r"2\sqrt2") == ((r"\sqrt8", r"2\sqrt2"),)
    assert decide(r"x\%", "y") == (("x", "y"), (r"\frac{x}{100}", "y"))
