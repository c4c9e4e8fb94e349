"""Whether a result is what a test expects: pure functions of plain built-ins and bytes.

They run in the process that asked, never in the one that ran the program. What they are given was
decoded from bounded text, so that no value brings an `__eq__` of its own. None of them raises.
"""

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from effopd.tasks.code_tests import CodeTests

VALUE_ERROR = 1e-6
"""Absolute error that every float may have: EvalPlus' where the problem gives none."""
RELATIVE_ERROR = 1e-7

_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_MAX_NUMBER_BYTES = 1000
_MOST_REPEATS = 100
"""How often, on average, elements may be repeated where the order does not count."""
_FRACTION = re.compile(rb"[.eE]")


def is_expected(tests: CodeTests, index: int, expected: Any, given: Any) -> bool:
    """Whether the result of a test is right.

    Args:
        tests: Kind, rule and tolerance.
        index: Of the test; some rules look at its arguments.
        expected: Text, or the value that is right.
        given: Bytes that were printed, or the value that was returned.
    """
    try:
        if tests.rule == "tokens":
            return same_tokens(given, expected.encode(), tests.atol)
        if tests.rule == "lines":
            return same_lines(given, expected.encode())
        return _VALUE_RULES[tests.rule](tests, tests.inputs[index], expected, given)
    except RecursionError:
        return False


# Printed text -------------------------------------------------------------------------------------


def same_tokens(given: bytes, expected: bytes, error: float) -> bool:
    """Whether texts have the same words, wherever their lines end.

    Numbers are equal by value: `5` and `5.0`. Where the expected one is a decimal fraction, it may
    be off by `error`, absolute or relative. Case counts, and so does the order.
    """
    left, right = given.split(), expected.split()
    return len(left) == len(right) and all(
        a == b or _same_number(a, b, error) for a, b in zip(left, right, strict=True)
    )


def same_lines(given: bytes, expected: bytes) -> bool:
    """Whether texts have the same lines, without the white space around each and at both ends.

    A line of numbers may be written otherwise, with the same values: as LiveCodeBench compares.
    """
    left, right = given.strip().split(b"\n"), expected.strip().split(b"\n")
    return len(left) == len(right) and all(
        a.strip() == b.strip() or _same_numbers(a.split(), b.split())
        for a, b in zip(left, right, strict=True)
    )


def _same_numbers(given: Sequence[bytes], expected: Sequence[bytes]) -> bool:
    return len(given) == len(expected) and all(
        _same_number(a, b, 0.0) for a, b in zip(given, expected, strict=True)
    )


def _same_number(given: bytes, expected: bytes, error: float) -> bool:
    if max(len(given), len(expected)) > _MAX_NUMBER_BYTES:
        return False
    if not _NUMBER.fullmatch(given) or not _NUMBER.fullmatch(expected):
        return False
    if Decimal(given.decode()) == Decimal(expected.decode()):
        return True
    if not error or not _FRACTION.search(expected):
        return False
    a, b = float(given), float(expected)
    return math.isfinite(a) and abs(a - b) <= error * max(1.0, abs(b))


# Returned values ----------------------------------------------------------------------------------


def equal_values(given: Any, expected: Any, atol: float = 0.0, *, tuples_are_lists: bool) -> bool:
    """Equality of plain values as Python has it, with floats close and NaN equal to itself.

    `2` is `2.0` and `True` is `1`; a list is no tuple unless it is said so. Two floats are close at
    any depth of lists, tuples and dicts when they differ by at most
    `max(atol, 1e-6) + 1e-7 |expected|`; elements of sets and keys have to be equal.
    """

    def equal(given: Any, expected: Any) -> bool:
        if isinstance(given, float) and isinstance(expected, float):
            return _close(given, expected, max(atol, VALUE_ERROR))
        if isinstance(given, dict) and isinstance(expected, dict):
            return len(given) == len(expected) and all(
                key in given and equal(given[key], each) for key, each in expected.items()
            )
        if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
            return (
                (tuples_are_lists or type(given) is type(expected))
                and len(given) == len(expected)
                and all(equal(a, b) for a, b in zip(given, expected, strict=True))
            )
        return bool(given == expected)

    return equal(given, expected)


def _close(given: float, expected: float, atol: float) -> bool:
    if given == expected or (math.isnan(given) and math.isnan(expected)):
        return True
    if not math.isfinite(given) or not math.isfinite(expected):
        return False
    return abs(given - expected) <= atol + RELATIVE_ERROR * abs(expected)


# One function a rule: (tests, arguments, expected, given) -> whether it is right.


def _json(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    wanted = [expected, *expected] if tests.is_wrapped else [expected]
    return any(equal_values(given, each, tests.atol, tuples_are_lists=True) for each in wanted)


def _value(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    return equal_values(given, expected, tests.atol, tuples_are_lists=False)


def _set(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    """The same elements, in any order and as often as one likes."""
    if not isinstance(given, list | tuple | set | frozenset):
        return False
    if len(given) > _MOST_REPEATS * len(expected) + _MOST_REPEATS:
        return False  # elements chosen to collide would take for ever
    try:
        return set(given) == set(expected)
    except TypeError:  # an element that cannot be in a set
        return False


def _presence(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    """Something where the reference returns something; a bool says it itself."""
    is_there = given if isinstance(given, bool) else given is not None
    return is_there == (expected is not None)


def _root(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    """A zero of the polynomial whose coefficients are the argument, lowest first."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return False
    try:
        value = sum(c * math.pow(given, power) for power, c in enumerate(arguments[0]))
    except OverflowError:
        return False
    return abs(value) <= tests.atol


def _anything(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    return True


def _zero_too(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    return _value(tests, arguments, expected, given) or _is_number(given, 0)


def _pyramid(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    """The height may be that of a side, as in the reference, or of the pyramid."""
    base, height = arguments
    slant = math.hypot(base / 2, height)
    return _value(tests, arguments, expected, given) or _is_number(
        given, round(base**2 + 2 * base * slant)
    )


def _digit_distance(tests: CodeTests, arguments: list[Any], expected: Any, given: Any) -> bool:
    """The sum of the digits of the difference, as in the reference, or of their differences."""
    if _value(tests, arguments, expected, given):
        return True
    left, right = (str(number) for number in arguments)
    if not (left + right).isdecimal():
        return False
    width = max(len(left), len(right))
    digits = zip(left.zfill(width), right.zfill(width), strict=True)
    return _is_number(given, sum(abs(int(a) - int(b)) for a, b in digits))


def _is_number(given: Any, wanted: int) -> bool:
    return isinstance(given, int | float) and given == wanted


_VALUE_RULES: dict[str, Callable[[CodeTests, list[Any], Any, Any], bool]] = {
    "json": _json,
    "value": _value,
    "set": _set,
    "presence": _presence,
    "root": _root,
    "anything": _anything,
    "zero_too": _zero_too,
    "pyramid": _pyramid,
    "digit_distance": _digit_distance,
}
