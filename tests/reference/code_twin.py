"""When results of programs agree, said plainly: pair by pair, in exact fractions."""

import cmath
import math
import re
from fractions import Fraction
from typing import Any

COLLECTIONS = (list, tuple, set, frozenset)


def same(a: Any, b: Any) -> bool:
    """Equality as Python has it, at any depth, with NaN equal to itself."""
    if isinstance(a, complex) or isinstance(b, complex):
        if not isinstance(a, int | float | complex) or not isinstance(b, int | float | complex):
            return False
        left, right = complex_parts(a), complex_parts(b)
        return same(left[0], right[0]) and same(left[1], right[1])
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    for kinds in ((list,), (tuple,)):
        if isinstance(a, kinds) and isinstance(b, kinds):
            return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, set | frozenset) and isinstance(b, set | frozenset):
        return same_elements(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return same_elements(a.items(), b.items())
    return bool(a == b)


def complex_parts(value: complex) -> tuple[Any, Any]:
    return (value.real, value.imag) if isinstance(value, complex) else (value, 0)


def same_elements(a: Any, b: Any) -> bool:
    return all(any(same(x, y) for y in b) for x in a) and all(any(same(x, y) for x in a) for y in b)


def same_set(a: Any, b: Any) -> bool:
    """The rule of collections whose order does not count."""
    if isinstance(a, COLLECTIONS) and isinstance(b, COLLECTIONS):
        return same_elements(a, b)
    return close(a, b, 1e-6, tuples_are_lists=False)


def close(a: Any, b: Any, atol: float, *, tuples_are_lists: bool) -> bool:
    """Equality with floats within `atol + 1e-7 |b|` in lists, tuples and values of dicts."""
    if isinstance(a, float) and isinstance(b, float):
        if not cmath.isfinite(a) or not cmath.isfinite(b):
            return same(a, b)
        return abs(a - b) <= atol + 1e-7 * abs(b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b) or (type(a) is not type(b) and not tuples_are_lists):
            return False
        pairs = zip(a, b, strict=True)
        return all(close(x, y, atol, tuples_are_lists=tuples_are_lists) for x, y in pairs)
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(
            close(a[key], b[key], atol, tuples_are_lists=tuples_are_lists) for key in b
        )
    return same(a, b)


def same_number(given: str, expected: str, error: float) -> bool:
    """Whether a printed word is the number that is expected."""
    if given == expected:
        return True
    _, point, decimals = expected.partition(".")
    if not point and "e" not in expected:
        is_canonical = expected.lstrip("-").isdigit() and expected == str(int(expected))
        return is_canonical and given.rstrip("0") == f"{expected}."
    if expected.startswith("+") or re.match("-?0[0-9]", expected):
        return False
    if point and decimals.isdigit() and len(decimals) in {2, 3} and decimals[-1] == "0":
        return False
    if point and not re.match("[0-9]", decimals):
        return False
    if not point and not re.fullmatch("-?[1-9]e[+-][0-9]{2,3}", expected):
        return False
    if any(re.search("e[+-]?[0-9]{4}", word) for word in (given, expected)):
        return False
    try:
        a, b = Fraction(given), Fraction(expected)
    except ValueError:
        return False
    return abs(a - b) <= Fraction(repr(error)) * max(Fraction(1), abs(b))
