r"""Whether two formulas without relations have the same value: exactly, or to many digits.

Formulas are evaluated twice. First in the integers modulo a prime of 127 bits, with a random
residue for every letter and for everything that is not rational: sums, products, integer powers,
factorials and binomials of any size are compared exactly there, and what is equal there is equal
(but for a chance of 1e-38). Where something irrational differs, values decide, in floating point
with more digits than the largest numbers in the formulas have, at several points when there are
letters. A number is never computed that does not fit in memory.
"""

import hashlib
import math
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Any

import mpmath
from mpmath import mp

from effopd.rewards.mathematics.formula import Node, words

_PRIME = 98629203427514219405270466091295473637
"""p = 4 q + 1 with q prime: no small power of a number is 1, and -1 has a root."""
_ROOT = 98449759026165755158121794025343671396
"""A square root of -1 modulo the prime."""
_MAX_BITS = 4096
_MAX_FACTORIAL = 200_000
_DIGITS = 40
_MAX_HEIGHT = 4000
_DECIMAL = 1e-6
_TOO_LARGE = "equal to 40 digits, but numbers have thousands"
_POINTS = ((0.1, 0.9), (1.1, 3.0), (4.0, 40.0), (-0.9, -0.1), (-3.0, -1.1), (-9.0, 9.0))
"""Ranges of the points at which letters are tried."""


class UndefinedError(ValueError):
    """The formula has no value: it divides by zero, or is no number."""


class UndecidedError(Exception):
    """The values are too large to tell them apart."""


_NO_VALUE = (ArithmeticError, NotImplementedError, TypeError, ValueError)
"""What an evaluation raises at a point where there is none."""


def equal_values(reference: Node, answer: Node, *, relative_error: float = 0.0) -> bool:
    """Whether formulas without relations and sets are equal; UndecidedError if too long."""
    is_decimal = has(reference, "decimal") or has(answer, "decimal")
    try:
        wanted, is_rational = residue(reference)
        given, is_other_rational = residue(answer)
    except UndefinedError:
        return False
    if wanted == given:
        return True
    if is_rational and is_other_rational and not is_decimal:
        return False
    if any(has(node, "constant", r"\infty") for node in (reference, answer)):
        return False
    tolerance = _DECIMAL if is_decimal else 0.0
    if has(reference, "decimal"):
        tolerance = max(tolerance, relative_error)
    return _equal_at_points(reference, answer, tolerance)


def has(node: Node, kind: str, name: str = "") -> bool:
    """Whether a formula has a part of a kind, and of a name if one is given."""
    if node.kind == kind and (not name or node.name == name):
        return True
    return any(isinstance(part, Node) and has(part, kind, name) for part in node.args)


def letters(node: Node) -> frozenset[str]:
    """The names of its symbols."""
    if node.kind == "symbol":
        return frozenset({node.name})
    return frozenset().union(*(letters(part) for part in node.args if isinstance(part, Node)))


def real_value(node: Node) -> Any:
    """Its value as a real `mpf` of 60 digits, infinite ones too; None when it is no real number."""
    if letters(node):
        return None
    try:
        with mp.workdps(60):
            value = mpmath.mpmathify(_numeric(node, {}))
            if isinstance(value, mpmath.mpc):
                if abs(value.imag) > mpmath.mpf(10) ** -40 * max(1, abs(value.real)):
                    return None
                value = value.real
    except (*_NO_VALUE, UndecidedError):
        return None
    return None if mpmath.isnan(value) else value


def exact_integer(node: Node) -> int | None:
    """Its value where it is an integer of up to 4,096 bits that only arithmetic makes."""
    value = _exact(node)
    return int(value) if value is not None and value.denominator == 1 else None


@lru_cache(maxsize=4096)
def _exact(node: Node) -> Fraction | None:
    """Its value where only arithmetic makes it, of up to 4,096 bits."""
    if node.kind in {"number", "decimal"}:
        value: Fraction = node.args[0]
    elif node.kind in {"add", "mul", "pow"}:
        known = [part for each in node.args if (part := _exact(each)) is not None]
        if len(known) < len(node.args):
            return None
        if node.kind == "pow":
            base, exponent = known
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            is_small = exponent.denominator == 1 and abs(exponent) * bits <= _MAX_BITS
            if not is_small or (not base and exponent < 0):
                return None
            value = base ** int(exponent)
        else:
            value = Fraction(sum(known) if node.kind == "add" else math.prod(known))
    else:
        return None
    size = max(abs(value.numerator), value.denominator).bit_length()
    return value if size <= _MAX_BITS else None


# Exactly, modulo a prime --------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def residue(node: Node) -> tuple[int, bool]:
    """Its value modulo the prime, and whether all of it is rational."""
    if node.kind in {"number", "decimal"}:
        value: Fraction = node.args[0]
        return value.numerator * pow(value.denominator, -1, _PRIME) % _PRIME, True
    if node == Node("constant", "i"):
        return _ROOT, True
    if node.kind in {"symbol", "constant"}:
        return _hashed(node.kind, node.name), node.kind == "symbol"
    parts = [residue(part) for part in node.args]
    values, is_rational = [value for value, _ in parts], all(rational for _, rational in parts)
    if node.kind == "add":
        return sum(values) % _PRIME, is_rational
    if node.kind == "mul":
        return reduce(lambda result, factor: result * factor % _PRIME, values, 1), is_rational
    if node.kind == "pow" and (exponent := exact_integer(node.args[1])) is not None:
        if values[0] == 0 and exponent < 0:
            raise UndefinedError("division by zero")
        return pow(values[0], exponent, _PRIME), parts[0][1]
    if node.kind == "call" and (count := _counted(node)) is not None:
        return count, True
    return _hashed(node.kind, node.name, *values), False


def _counted(node: Node) -> int | None:
    """A factorial or a binomial of integers that are not too large."""
    result = below = 1
    match node.name, [exact_integer(part) for part in node.args]:
        case "factorial", [int(n)] if 0 <= n <= _MAX_FACTORIAL:
            for k in range(2, n + 1):
                result = result * k % _PRIME
        case "binom", [int(n), int(k)] if 0 <= k <= n and min(k, n - k) <= _MAX_FACTORIAL // 2:
            for j in range(1, min(k, n - k) + 1):
                result, below = result * (n - j + 1) % _PRIME, below * j % _PRIME
        case _:
            return None
    return result * pow(below, -1, _PRIME) % _PRIME


def _hashed(*parts: object) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=24).digest()
    return int.from_bytes(digest, "big") % _PRIME


# In floating point --------------------------------------------------------------------------------


def _equal_at_points(reference: Node, answer: Node, tolerance: float) -> bool:
    """Whether values agree wherever both are real; everywhere for complex formulas."""
    names = sorted(letters(reference) | letters(answer))
    height = _height(reference) + _height(answer)
    is_too_high = height > _MAX_HEIGHT
    digits = _DIGITS + (0 if is_too_high else int(2 * height))
    is_complex = any(has(node, "constant", "i") for node in (reference, answer))
    compared = 0
    for trial, span in enumerate(_POINTS if names else _POINTS[:1]):
        try:
            wanted, given = _values_at(reference, answer, (trial, span), digits)
            if not is_complex and names:
                small = mpmath.mpf(10) ** -20
                reality = {abs(mpmath.im(each)) <= abs(each) * small for each in (wanted, given)}
                if reality == {False}:
                    continue
                if len(reality) > 1:
                    return False
            # agreement to the tolerance, or without one to the digits that are reliable
            size = abs(wanted) if tolerance > _DECIMAL or not tolerance else min(1, abs(wanted))
            if abs(wanted - given) > (tolerance or mpmath.mpf(10) ** (15 - digits)) * size:
                # Of values that may both be zero only more digits tell whether they are.
                if tolerance or abs(wanted - given) > mpmath.mpf(10) ** (15 - digits):
                    return False
                wanted, given = _values_at(reference, answer, (trial, span), 3 * digits)
                if abs(wanted - given) > mpmath.mpf(10) ** (15 - 3 * digits):
                    return False
            if not tolerance and not compared:
                # values that agree still do with many more digits, with all before the point
                size = max(abs(wanted), abs(given))
                before_point = int(mpmath.log10(size)) if size > 1 else 0
                if before_point > _MAX_HEIGHT:
                    raise UndecidedError(_TOO_LARGE)
                more = 10 * digits + 2 * before_point
                wanted, given = _values_at(reference, answer, (trial, span), more)
                with mp.workdps(more):
                    if abs(wanted - given) > mpmath.mpf(10) ** (15 + before_point - more):
                        return False
        except _NO_VALUE:
            continue
        compared += 1
    if compared and is_too_high and not tolerance:
        raise UndecidedError(_TOO_LARGE)
    return compared >= (2 if names else 1)


def _values_at(reference: Node, answer: Node, place: tuple[int, Any], digits: int) -> list[Any]:
    """Both values at a point; its coordinates depend on names, the trial and its range."""
    trial, (low, high) = place
    with mp.workdps(digits):
        point = {
            name: low + (high - low) * mpmath.mpf(_hashed("point", name, trial)) / _PRIME
            for name in letters(reference) | letters(answer)
        }
        values = [mpmath.mpmathify(_numeric(node, point)) for node in (reference, answer)]
    if not all(map(mpmath.isfinite, values)):
        raise UndefinedError("no finite value")
    return values


def _height(node: Node) -> float:
    """Decimal digits that integers in a formula may take, roughly."""
    if node.kind in {"number", "decimal"}:
        value: Fraction = node.args[0]
        return 0.302 * (value.numerator.bit_length() + value.denominator.bit_length())
    heights = [_height(part) for part in node.args if isinstance(part, Node)]
    if node.kind == "pow":
        exponent = exact_integer(node.args[1])
        return heights[0] * (abs(exponent) if exponent is not None else 1) + heights[1]
    if node.kind == "call" and node.name in {"factorial", "binom"}:
        counts = [exact_integer(part) for part in node.args]
        if None not in counts:
            return max(abs(count or 0) for count in counts) * 4.0
    return sum(heights)


def _numeric(node: Node, point: dict[str, Any]) -> Any:
    """Its value in floating point at the present precision."""
    if node.kind in {"number", "decimal"}:
        value: Fraction = node.args[0]
        return mpmath.mpf(value.numerator) / value.denominator
    if node.kind == "symbol":
        if node.name not in point:
            raise UndefinedError(f"{node.name} has no value")
        return point[node.name]
    if node.kind == "constant":
        return {"e": mp.e, r"\pi": mp.pi, "i": mp.j, r"\infty": mp.inf}[node.name] + 0
    parts = [_numeric(part, point) for part in node.args]
    if node.kind == "add":
        return sum(parts[1:], parts[0])
    if node.kind == "mul":
        return mpmath.fprod(parts)
    if node.kind == "pow":
        return _power(parts[0], parts[1], _exact(node.args[1]))
    if node.kind == "call":
        return _call(node.name, parts)
    raise UndefinedError(f"{node.kind} is no number")


def _power(base: Any, exponent: Any, exact: Fraction | None) -> Any:
    if base == 0 and mpmath.re(exponent) < 0:
        raise UndefinedError("division by zero")
    if abs(exponent) > mpmath.mpf(2) ** _MAX_BITS or (
        abs(exponent) > 10**6 and abs(exponent) * abs(mpmath.log(abs(base) + 2)) > 10**60
    ):
        raise UndecidedError("a power is too large")
    is_real = mpmath.im(base) == 0 and mpmath.re(base) < 0
    if exact is not None and is_real and exact.denominator % 2 and exact.denominator > 1:
        root = mpmath.re(-base) ** exponent  # the real root of a negative number
        return -root if exact.numerator % 2 else root
    return base**exponent


def _call(name: str, parts: list[Any]) -> Any:
    if name == "log" and len(parts) == 2:
        return mpmath.log(parts[0]) / mpmath.log(parts[1])
    if name == "root":
        degree = int(parts[1]) if parts[1] == int(mpmath.re(parts[1])) else None
        exact = Fraction(1, degree) if degree else None
        return _power(parts[0], 1 / parts[1], exact)
    if name in _CALLS:
        return _CALLS[name](*parts)
    # a smooth function of its own for every other name: equal arguments have equal values
    total = mpmath.mpf(_hashed("function", name)) / _PRIME
    for place, part in enumerate(parts):
        weight = 1 + mpmath.mpf(_hashed("weight", name, place)) / _PRIME
        total += mpmath.cos(weight * part + place) + weight * part / 7
    return total


_TRIGONOMETRY = words("sin cos tan cot sec csc sinh cosh tanh coth sech csch")
_CALLS = {
    **{name: getattr(mpmath, name) for name in _TRIGONOMETRY | words("ln erf floor ceil re im")},
    **{f"arc{name}": getattr(mpmath, f"a{name}") for name in _TRIGONOMETRY},
    "abs": abs, "norm": abs, "arg": mpmath.arg, "conj": mpmath.conj, "Re": mpmath.re,
    "Im": mpmath.im, "sgn": mpmath.sign, "max": lambda *values: max(map(mpmath.re, values)),
    "min": lambda *values: min(map(mpmath.re, values)), "factorial": mpmath.factorial,
    "factorial2": mpmath.fac2, "binom": mpmath.binomial, r"\Gamma": mpmath.gamma,
    r"\zeta": mpmath.zeta,
}  # fmt: skip
