"""Formulas as trees."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple


class Node(NamedTuple):
    r"""A part of a formula.

    `kind` is one of: number and decimal (args: a Fraction), symbol (a name), constant (`e`, `\pi`,
    `i`, `\infty`), add, mul, pow, call (a function by name), seq (name: its two brackets), set,
    such (args: variable or set, condition), union, intersection, difference, relation (name: its
    signs, with spaces), list (name: `,`, `or` or `and`), qualified (args: formula; name: the text
    of the condition behind it).
    """

    kind: str
    name: str = ""
    args: tuple[Any, ...] = ()

    def __add__(self, other: "Node") -> "Node":  # type: ignore[override]
        return Node("add", "", (self, other))

    def __neg__(self) -> "Node":
        return product(number(-1), self)

    def __sub__(self, other: "Node") -> "Node":
        return self + -other

    def __mul__(self, other: "Node") -> "Node":  # type: ignore[override]
        return product(self, other)

    def __truediv__(self, other: "Node") -> "Node":
        return self * Node("pow", "", (other, number(-1)))


class NoFormulaError(ValueError):
    """The text is no formula that this grammar reads."""


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def number(value: int | Fraction) -> Node:
    """An exact number."""
    return Node("number", "", (Fraction(value),))


def product(*factors: Node) -> Node:
    """Their product."""
    return Node("mul", "", factors)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """A formula with other letters; those without a new name get a mark that makes them new."""
    if node.kind == "symbol":
        return node._replace(name=names.get(node.name, f"{node.name}~"))
    return node._replace(
        args=tuple(renamed(part, names) if isinstance(part, Node) else part for part in node.args)
    )
