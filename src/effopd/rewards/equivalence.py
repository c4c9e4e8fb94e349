r"""Whether two formulas are the same answer: math-verify, with its mistakes put right.

Runs in a worker process only (`effopd.rewards.worker`): SymPy may compute for ever on an answer of
ten characters. Model text is read by math-verify's LaTeX grammar alone; neither `eval`, `sympify`
nor `parse_expr` ever sees it.

What is put right around math-verify 0.9 (docs/rewards.md has the table): a chain of equations must
agree with itself (`3 = 7` is not 7); numbers are compared by relative error, so that `10^{-35}` is
not `2 \cdot 10^{-35}`; `i` and `\sqrt{-1}` are one number; a row or a column is the tuple of its
entries; sets and relations compare both ways round; a formula that cannot be read as a whole is not
read in part; letters are never dropped as if they were units.
"""

import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float, I, Interval, MatrixBase, Tuple, nan, zoo

Formula = Any
"""What math-verify reads: a SymPy expression, relation, set, tuple or matrix."""

_DIGITS = 30
_EXACT = 1e-20
_DECIMAL = 1e-6
_EQUALS = re.compile(r"(?<![<>!\\])=")
_LATEX = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(
        basic_latex=True,
        units=False,
        malformed_operators=True,
        nits=True,
        boxed="none",
        equations=False,
    ),
)


class UnreadableReferenceError(ValueError):
    """The reference answer is no formula that math-verify can read."""


def equal(reference: str, answer: str) -> bool:
    """Whether two formulas in tidy LaTeX are the same answer; may compute for ever.

    Raises:
        UnreadableReferenceError: The reference is no formula; an answer that is none is wrong.
    """
    wanted = read(reference)
    if wanted is None:
        raise UnreadableReferenceError(reference)
    given = read(answer)
    return given is not None and _agrees_with_itself(answer) and same(wanted, given)


@lru_cache(maxsize=64)  # the samples of one problem come together and share its reference
def read(text: str) -> Formula | None:
    """The formula that all of `text` is; None when math-verify cannot read it."""
    found = parse(
        f"${text}$",
        extraction_config=[_LATEX],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return found[0] if found else None


def same(reference: Formula, answer: Formula) -> bool:
    """Whether two formulas are equal, by value for numbers and by math-verify for the rest."""
    wanted, given = _as_tuples(_with_unit(reference), _with_unit(answer))
    if wanted.has(nan, zoo) or given.has(nan, zoo):
        return False
    if (numbers := (_value(wanted), _value(given))) and None not in numbers:
        return _close(*numbers, decimal=wanted.has(Float) or given.has(Float))
    return bool(verify(wanted, given, timeout_seconds=None, allow_set_relation_comp=True))


def _agrees_with_itself(answer: str) -> bool:
    """Whether the numbers in a chain `a = b = c` are all the last one; true without a chain."""
    parts = [part for part in _EQUALS.split(answer) if part.strip()]
    if len(parts) < 2 or re.search(r"[,;]|\b(?:or|and)\b", answer):
        return True
    formulas = [read(part) for part in parts]
    values = [_value(_with_unit(formula)) for formula in formulas if formula is not None]
    numbers = [value for value in values if value is not None]
    decimal = "." in answer
    return all(_close(number, numbers[-1], decimal=decimal) for number in numbers)


def _with_unit(formula: Formula) -> Formula:
    """The formula with every free letter i as the imaginary unit."""
    letters = [letter for letter in formula.free_symbols if letter.name in {"i", "I"}]
    return formula.subs(dict.fromkeys(letters, I)) if letters else formula


def _as_tuples(reference: Formula, answer: Formula) -> tuple[Formula, Formula]:
    """Both as tuples when one of them is a vector and the other is not."""
    if isinstance(reference, MatrixBase) == isinstance(answer, MatrixBase):
        return reference, answer
    return _as_tuple(reference), _as_tuple(answer)


def _as_tuple(formula: Formula) -> Formula:
    """A row, a column, or what looks like an open interval, as a tuple."""
    if isinstance(formula, MatrixBase) and 1 in formula.shape:
        return Tuple(*formula)
    if isinstance(formula, Interval) and formula.left_open and formula.right_open:
        return Tuple(formula.start, formula.end)
    return formula


def _value(formula: Formula) -> Any:
    """The formula's value to 30 digits where it is a number; else None."""
    if not isinstance(formula, Expr) or formula.free_symbols:
        return None
    try:
        value = formula.doit().evalf(_DIGITS)
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return None  # SymPy cannot; math-verify may compare the symbols
    return value if value.is_number and value.is_finite else None


def _close(reference: Any, answer: Any, *, decimal: bool) -> bool:
    """Whether two numbers agree: to 20 digits, with decimals to 1e-6 (see `numbers_agree`)."""
    error, size = abs(reference - answer), abs(reference)
    if decimal:
        return bool(error <= _DECIMAL * min(1, size))
    return bool(error <= _EXACT * max(size, abs(answer)))
