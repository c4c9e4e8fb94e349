"""Whether a result is what a test expects: pure functions of plain built-ins and bytes.

They run in the process that asked, never in the one that ran the program. What they are given was
decoded from bounded text, so that no value brings an `__eq__` of its own. None of them raises, and
each takes time linear in what it is given, but for sorting: whatever a program returns.
"""

import hashlib
import math
import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import partial
from typing import Any

from effopd.data.code_tests import CodeTests

VALUE_ERROR = 1e-6
"""Absolute error that every float may have: EvalPlus' where the problem gives none."""
RELATIVE_ERROR = 1e-7

_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
_REAL = re.compile(
    rb"-?(?:0|[1-9][0-9]*)?\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?|-?[1-9][eE][+-][0-9]{2,3}"
)
"""Numbers that are expected by value: decimal fractions, and `1e+16` as programs print it."""
_FORMAT = re.compile(rb"-?[0-9]*\.[0-9]{1,2}0")
"""Fractions of two or three decimals that end in 0: written by a format, and no rounded results."""
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_MAX_NUMBER_BYTES = 1000
_EXACT = Context(prec=5000, Emax=MAX_EMAX, Emin=MIN_EMIN)
"""Rounds no difference of numbers of that length with exponents of three digits."""


def is_expected(tests: CodeTests, index: int, expected: Any, given: Any) -> bool:
    """Whether the bytes that were printed, or the value that was returned, are right."""
    try:
        if tests.rule == "exact":
            return bool(given.split() == expected.encode().split())
        if tests.rule == "tokens":
            return same_tokens(given, expected.encode(), tests.atol)
        return _is_value(tests, tests.inputs[index], expected, given)
    except RecursionError:
        return False


# Printed text -------------------------------------------------------------------------------------


def same_tokens(given: bytes, expected: bytes, error: float) -> bool:
    """Whether texts have the same words, wherever their lines end.

    Case counts, and so does the order. As a judge has it, an integer or any other word is a text:
    `10` is neither `0010` nor `1e1`; but a program may print `10.0`. A decimal fraction is a value:
    it may be written otherwise, and be off by `error`, absolute or relative. One of two or three
    decimals that ends in 0 is a text again, since a format made it: `1.10` is not `1.1`.
    """
    left, right = given.split(), expected.split()
    return len(left) == len(right) and all(
        a == b or _same_number(a, b, error) for a, b in zip(left, right, strict=True)
    )


def _same_number(given: bytes, expected: bytes, error: float) -> bool:
    if max(len(given), len(expected)) > _MAX_NUMBER_BYTES:
        return False
    if _INTEGER.fullmatch(expected):
        return given.startswith(expected + b".") and not given[len(expected) + 1 :].strip(b"0")
    if not _REAL.fullmatch(expected) or _FORMAT.fullmatch(expected):
        return False
    if not _NUMBER.fullmatch(given):
        return False
    a, b = Decimal(given.decode()), Decimal(expected.decode())
    margin = _EXACT.multiply(Decimal(repr(error)), max(Decimal(1), b.copy_abs()))
    return _EXACT.subtract(a, b).copy_abs() <= margin


# Returned values ----------------------------------------------------------------------------------


def equal_values(
    given: Any, expected: Any, atol: float = 0.0, *, tuples_are_lists: bool = False
) -> bool:
    """Equality of plain values as Python has it, with floats close and NaN equal to itself.

    `2` is `2.0` and `True` is `1`; a list is no tuple unless it is said so. Two floats are close at
    any depth of lists, tuples and dicts when they differ by at most
    `max(atol, 1e-6) + 1e-7 |expected|`; keys, elements of sets and complex numbers must be equal.
    """
    equal = partial(equal_values, atol=atol, tuples_are_lists=tuples_are_lists)
    if isinstance(given, float) and isinstance(expected, float):
        if given == expected or (math.isnan(given) and math.isnan(expected)):
            return True
        error = max(atol, VALUE_ERROR) + RELATIVE_ERROR * abs(expected)
        return math.isfinite(error) and abs(given - expected) <= error
    if isinstance(given, dict) and isinstance(expected, dict):
        return len(given) == len(expected) and all(
            key in given and equal(given[key], each) for key, each in expected.items()
        )
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        same_kind = tuples_are_lists or type(given) is type(expected)
        return same_kind and len(given) == len(expected) and all(map(equal, given, expected))
    if isinstance(expected, set | frozenset | complex):
        return _key(given) == _key(expected)
    return bool(given == expected)


def _key(value: Any) -> str:
    """A text that equal plain values share, NaN too; no program can make sets of it collide."""
    if value is None or isinstance(value, str):
        return repr(value)
    if isinstance(value, float) and not value.is_integer():
        return value.hex()
    if isinstance(value, int | float):
        return f"{int(value):x}"
    if isinstance(value, complex):
        return _key(value.real) + (f" {_key(value.imag)}" if value.imag else "")
    if isinstance(value, bytes | bytearray):
        return f"bytes {value.hex()}"
    if isinstance(value, list | tuple):
        kind, parts = type(value).__name__, [_key(each) for each in value]
    elif isinstance(value, set | frozenset):
        kind, parts = "set", sorted({_key(each) for each in value})
    elif isinstance(value, dict):
        kind, parts = "dict", sorted(_key(pair) for pair in value.items())
    else:
        raise TypeError(f"a {type(value).__name__} is not a plain value")
    return f"{kind} {hashlib.sha256(repr(parts).encode('utf-8', 'surrogatepass')).hexdigest()}"


def _is_value(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    """Whether a returned value is right by the rule of its tests."""

    def is_number(wanted: int) -> bool:
        return isinstance(given, int | float) and given == wanted

    is_equal = partial(equal_values, given, atol=tests.atol, tuples_are_lists=tests.rule == "json")
    match tests.rule:
        case "json":
            is_wrapped = tests.is_wrapped and isinstance(expected, list | tuple)
            return any(map(is_equal, [expected, *expected] if is_wrapped else [expected]))
        case "set":  # the same elements, in any order and as often as one likes
            collections = list | tuple | set | frozenset
            if isinstance(given, collections) and isinstance(expected, collections):
                return {_key(each) for each in given} == {_key(each) for each in expected}
        case "presence":  # something where the reference returns something; a bool says it itself
            is_there = given if isinstance(given, bool) else given is not None
            return is_there == (expected is not None)
        case "root":  # a zero of the polynomial whose coefficients are the argument, lowest first
            if isinstance(given, bool) or not isinstance(given, int | float):
                return False
            try:
                value = sum(c * math.pow(given, power) for power, c in enumerate(arguments[0]))
            except OverflowError:
                return False
            return abs(value) <= tests.atol
        case "anything":
            return True
        case "zero_too":
            return is_equal(expected) or is_number(0)
        case "pyramid":  # the height may be that of a side, as in the reference, or of the pyramid
            base, height = arguments
            slant = math.hypot(base / 2, height)
            return is_equal(expected) or is_number(round(base**2 + 2 * base * slant))
        case "digit_distance":  # of the difference, as in the reference, or between the digits
            left, right = (str(number) for number in arguments)
            if not is_equal(expected) and (left + right).isdecimal():
                width = max(len(left), len(right))
                digits = zip(left.zfill(width), right.zfill(width), strict=True)
                return is_number(sum(abs(int(a) - int(b)) for a, b in digits))
    return is_equal(expected)
