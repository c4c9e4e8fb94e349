r"""Sets of real numbers: intervals, unions, relations in one variable, in any spelling.

A region is a sorted list of disjoint spans between two cuts. A cut lies just before or just after a
number, so that open and closed ends need no cases of their own.
"""

from collections.abc import Iterable
from fractions import Fraction
from functools import reduce
from typing import Any, NamedTuple

from mpmath import mp

from effopd.rewards.mathematics.formula import Node, number
from effopd.rewards.mathematics.values import (
    UndefinedError,
    equal_values,
    letters,
    real_value,
    residue,
)


class Cut(NamedTuple):
    """A place on the real line: before (`side` 0) or after (1) the value of a formula."""

    value: Any
    side: int
    end: Node


class Region(NamedTuple):
    """A set of real numbers, and the variable of the relations that describe it, if any."""

    spans: tuple[tuple[Cut, Cut], ...]
    variables: frozenset[str] = frozenset()


_FORWARD = Node("constant", r"\infty")
_BOTTOM = Cut(-mp.inf, 1, -_FORWARD)
_TOP = Cut(mp.inf, 0, _FORWARD)
_LINE = Region(((_BOTTOM, _TOP),))
_SWAPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


def region(node: Node) -> Region | None:
    """The set of real numbers that a formula is; None for others and for letters as ends."""
    if node.kind == "qualified":
        return region(node.args[0])
    if node.kind == "seq" and len(node.args) == 2 and node.name[:1] in "([":
        sides = int(node.name[0] == "("), int(node.name[1] == "]")
        found = _cuts(node.args[0], sides[0], node.args[1], sides[1])
        return Region((found,)) if found else None
    if node.kind == "set":
        points = [_cuts(item, 0, item, 1) for item in node.args]
        return None if None in points else _union(*[Region((each,)) for each in points if each])
    if node == Node("symbol", r"\mathbb{R}"):
        return _LINE
    if node.kind == "such":  # what is before the bar may say where its variable is from
        variable, within = node.args[0], region(node.args[1])
        if variable.kind == "relation":
            domain = region(variable)
            return _both(within, domain) if within and domain else None
        return within if within and variable.kind == "symbol" else None
    if node.kind == "relation":
        return _related(node)
    if node.kind == "list" and node.args[0].kind == "relation":
        return _listed(node)
    if node.kind in {"union", "intersection", "difference"}:
        if (known := _all(map(region, node.args))) is None:
            return None
        if node.kind == "difference":
            return _both(known[0], _outside(_union(*known[1:])))
        return _union(*known) if node.kind == "union" else reduce(_both, known)
    return None


def _all(regions: Iterable[Region | None]) -> list[Region] | None:
    """The regions; None where one of them is none."""
    found = list(regions)
    return None if None in found else [each for each in found if each is not None]


def same_region(reference: Region, answer: Region, relative_error: float) -> bool:
    """Whether two regions have the same ends; variables must be the same where both have some."""
    if reference.variables and answer.variables and reference.variables != answer.variables:
        return False
    if len(reference.spans) != len(answer.spans):
        return False
    return all(
        wanted.side == given.side
        and equal_values(wanted.end, given.end, relative_error=relative_error)
        for pair in zip(reference.spans, answer.spans, strict=True)
        for wanted, given in zip(*pair, strict=True)
    )


def _cuts(low: Node, low_side: int, high: Node, high_side: int) -> tuple[Cut, Cut] | None:
    values = [real_value(end) for end in (low, high)]
    if values[0] is None or values[1] is None or values[0] > values[1]:
        return None
    with mp.workdps(40):
        start, end = (+value for value in values)
    low_side, high_side = low_side | (start == -mp.inf), high_side & (end != mp.inf)
    return Cut(start, low_side, low), Cut(end, high_side, high)


def _related(node: Node) -> Region | None:
    """A chain of relations between linear formulas in one variable: all of them hold."""
    signs = node.name.split()
    if signs == ["in"] and node.args[0].kind == "symbol":
        found = region(node.args[1])
        return found and Region(found.spans, letters(node.args[0]))
    known = _all(map(_step, node.args, signs, node.args[1:]))
    return known and reduce(_both, known)


def _step(left: Node, sign: str, right: Node) -> Region | None:
    variables = letters(left) | letters(right)
    if len(variables) != 1 or sign not in _SWAPPED:
        return None
    if left.kind == "call" and left.name == "abs" and not letters(right):
        size = real_value(right)  # `|u| < c` and its like
        return None if size is None or size < 0 else _between(left.args[0], sign, -right, right)
    formula, variable = left - right, next(iter(variables))
    solved = linear_root(formula, variable)
    slope = real_value(solved[1]) if solved else None
    if solved is None or not slope:
        return _quadratic(formula, sign, variable)
    at = _cuts(solved[0], 0, solved[0], 1)
    if at is None:
        return None
    before, after = at
    spans = {
        "<": [(_BOTTOM, before)], "<=": [(_BOTTOM, after)], ">": [(after, _TOP)],
        ">=": [(before, _TOP)], "!=": [(_BOTTOM, before), (after, _TOP)], "=": [(before, after)],
    }[_SWAPPED[sign] if slope < 0 else sign]  # fmt: skip
    return Region(tuple(spans), variables)


def _between(formula: Node, sign: str, low: Node, high: Node) -> Region | None:
    """Where a formula is between two bounds, or with `>` outside."""
    known = _all([_step(formula, sign, high), _step(formula, _SWAPPED[sign], low)])
    if known is None or sign in {"=", "!="}:
        return None
    return _both(*known) if sign[0] == "<" else _union(*known)


def _quadratic(formula: Node, sign: str, variable: str) -> Region | None:
    """Where `a x^2 + b x + c` with two real roots has a sign."""
    zero, one, minus = (substituted(formula, variable, k) for k in (0, 1, -1))
    half = number(Fraction(1, 2))
    a, b, x = half * (one + minus) - zero, half * (one - minus), Node("symbol", variable)
    square = b * b - number(4) * a * zero
    curvature, discriminant = real_value(a), real_value(square)
    if not curvature or discriminant is None or discriminant <= 0:
        return None
    if not equal_values(a * x * x + b * x + zero, formula):
        return None
    width = Node("pow", "", (square, half))
    if curvature < 0:
        sign, width = _SWAPPED[sign], -width
    low, high = ((each - b) / (number(2) * a) for each in (-width, width))
    return _between(x, sign, low, high)


def linear_root(formula: Node, variable: str) -> tuple[Node, Node] | None:
    """Where a formula that is linear in a variable is zero, and its slope; None otherwise."""
    at_zero, at_one, at_three = (substituted(formula, variable, k) for k in (0, 1, 3))
    slope = at_one - at_zero
    line = at_zero + slope * Node("symbol", variable)
    try:
        bends = residue(line)[0] != residue(formula)[0]
        bends |= residue(at_three)[0] != residue(substituted(line, variable, 3))[0]
        if bends or residue(slope)[0] == 0:
            return None
    except UndefinedError:
        return None
    return -at_zero / slope, slope


def substituted(node: Node, variable: str, value: int | Fraction) -> Node:
    """The formula with a number for a variable."""
    if node == Node("symbol", variable):
        return number(value)
    if not any(isinstance(part, Node) for part in node.args):
        return node
    return node._replace(args=tuple(substituted(part, variable, value) for part in node.args))


def _listed(node: Node) -> Region | None:
    """Relations joined by "or", "and", or by commas, which mean what is not trivial."""
    first = node.args[0]
    items = [
        # `x \ne 2, 3` says it of both
        first._replace(args=(first.args[0], part))
        if part.kind != "relation" and first.name == "!="
        else part
        for part in node.args
    ]
    if any(part.kind != "relation" for part in items) or all(part.name == "=" for part in items):
        return None
    if (known := _all(map(region, items))) is None:
        return None
    if all(part.name == "!=" for part in items):
        return reduce(_both, known)
    both, either = reduce(_both, known), _union(*known)
    if node.name == ",":
        return both if either.spans == _LINE.spans else either
    return both if node.name == "and" else either


def _union(*regions: Region) -> Region:
    spans: list[tuple[Cut, Cut]] = []
    for low, high in sorted(span for each in regions for span in each.spans):
        if spans and low[:2] <= spans[-1][1][:2]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], high, key=lambda cut: cut[:2]))
        else:
            spans.append((low, high))
    return Region(tuple(spans), frozenset().union(*(each.variables for each in regions)))


def _outside(one: Region) -> Region:
    ends = [_BOTTOM, *(cut for span in one.spans for cut in span), _TOP]
    pairs = zip(ends[::2], ends[1::2], strict=True)
    spans = tuple((low, high) for low, high in pairs if low[:2] < high[:2])
    return Region(spans, one.variables)


def _both(one: Region, other: Region) -> Region:
    found = _outside(_union(_outside(one), _outside(other)))
    return Region(found.spans, one.variables | other.variables)
