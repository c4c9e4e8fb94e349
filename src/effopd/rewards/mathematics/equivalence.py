r"""Whether two formulas are the same answer.

Runs in a worker process only: an answer of ten characters may take for ever to compute. Formulas
are parsed by a grammar of answers and compared by value; integrals, sums, products and limits are
left to math-verify, whose LaTeX grammar executes nothing either.
"""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from itertools import product, zip_longest
from typing import Any

from effopd.rewards.mathematics import formula
from effopd.rewards.mathematics.formula import Node, NoFormulaError, number, renamed
from effopd.rewards.mathematics.parser import parse
from effopd.rewards.mathematics.regions import linear_root, region, same_region, substituted
from effopd.rewards.mathematics.values import equal_values, has, letters, real_value, residue

_CALCULUS = re.compile(r"\\(?:i?i?int|oint|sum|prod|lim|begin\{cases\})(?![a-zA-Z])")
_OR = re.compile(r"\\text\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b|;")
_DEFINED = re.compile(r"[a-zA-Z]\s*\(\s*([a-z](?:\s*,\s*[a-z])*)\s*\)\s*=")
_FLIPPED = str.maketrans("<>", "><")


class UnreadableReferenceError(ValueError):
    """The reference answer is no formula that can be read."""


def equal(reference: str, answer: str, relative_error: float = 0.0) -> bool:
    """Whether two formulas in normalised LaTeX are the same answer; may compute for ever.

    The relative error is allowed where the reference has a decimal point. An answer that is no
    formula is wrong; a reference raises UnreadableReferenceError, and what only an evaluation that
    is too long could tell UndecidedError.
    """
    if _CALCULUS.search(reference) or _CALCULUS.search(answer):
        return _equal_by_math_verify(reference, answer)
    try:
        wanted = list(readings(reference))
    except NoFormulaError as error:
        raise UnreadableReferenceError(f"{reference}: {error}") from None
    try:
        given = list(readings(answer))
    except NoFormulaError:
        return False
    ours, theirs = _variables(reference), _variables(answer)
    if ours != theirs and len(ours) == len(theirs) > 0:
        names = {name: name for node in given for name in letters(node) - set(ours)}
        given = [renamed(node, names | dict(zip(theirs, ours, strict=True))) for node in given]
    return any(same(one, other, relative_error) for one in wanted for other in given)


def _variables(text: str) -> list[str]:
    """What the functions are of that a text defines; none where they are of different letters."""
    found = set(_DEFINED.findall(text))
    return found.pop().replace(" ", "").split(",") if len(found) == 1 else []


def readings(text: str) -> Iterator[Node]:
    r"""What a text may mean: one formula, or with `\pm` the list of its values, also of several."""
    signs = len(re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", text))
    if not signs or signs > 4:
        yield parse(text)
        return
    inside = re.fullmatch(r"\\\{(.*)\\\}", text)
    text = _OR.sub(",", inside.group(1) if inside else text)
    # the items of a list, split at commas outside all brackets
    items, depth = [""], 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    for is_coupled in (True, False) if signs > 1 else (True,):
        yield parse(",".join(one for item in items for one in _signed(item, is_coupled)))


def _signed(item: str, is_coupled: bool) -> Iterator[str]:
    """An item with each choice of its signs."""
    text, *rest = re.split(r"\\(pm|mp)(?![a-zA-Z])", item)
    signs = rest[::2]
    for choice in product("+-", repeat=min(len(signs), 1) if is_coupled else len(signs)):
        chosen = choice * len(signs) if is_coupled else choice
        pairs = zip(chosen, signs, rest[1::2], strict=True)
        swapped = {"+": "-", "-": "+"}
        yield text + "".join((c if s == "pm" else swapped[c]) + part for c, s, part in pairs)


def same(reference: Node, answer: Node, error: float = 0.0) -> bool:
    """Whether two formulas are the same answer, `error` apart at most where decimals are."""
    conditions = {node.name for node in (reference, answer) if node.kind == "qualified"} - {"all"}
    if len(conditions) > 1:
        return False
    reference, answer = _plain(reference), _plain(answer)
    if reference.kind == answer.kind == "such":
        of = [node.args[0] for node in (reference, answer)]
        ours, theirs = (node.args[0] if node.name == "in" else node for node in of)
        if ours.kind == theirs.kind == "symbol":
            kept = {name: name for name in letters(answer) - {ours.name}}
            answer = renamed(answer, kept | {theirs.name: ours.name})
    # the numbers in a chain `a = b = c` are all the last one
    if _is_equation(answer) and "~" not in answer.name:
        numbers = [side for side in answer.args if real_value(side) is not None]
        if not all(equal_values(numbers[-1], side) for side in numbers):
            return False
    if _is_equation(reference) or _is_equation(answer):
        return _same_equation(reference, answer, error)
    if reference.kind == answer.kind == "seq" or "list" in {reference.kind, answer.kind}:
        found = _same_items(reference, answer, error)
        if found is not None:
            return found
    spans = region(reference), region(answer)
    if spans[0] is not None and spans[1] is not None:
        return same_region(spans[0], spans[1], error)
    if reference.kind == answer.kind == "relation":
        return _same_relation(reference, answer, error)
    if {reference.kind, answer.kind} == {"seq", "relation"}:
        return _same_bounds(reference, answer, error)
    if "set" in {reference.kind, answer.kind}:
        return _matched(_items(reference), _items(answer), error)
    if reference.kind == answer.kind and reference.kind in {"union", "intersection"}:
        return _matched(list(reference.args), list(answer.args), error)
    if reference.kind == answer.kind and reference.kind in {"difference", "such"}:
        return _each(reference.args, answer.args, error)
    if ("relation", "in") in {reference[:2], answer[:2]}:  # one of them, the other is no relation
        wanted, given = (n.args[1] if n.kind == "relation" else n for n in (reference, answer))
        return same(wanted, given, error)
    is_value = not {reference.kind, answer.kind} & {"relation", "seq", "list"}
    return is_value and equal_values(reference, answer, relative_error=error)


def _plain(node: Node) -> Node:
    """Without conditions behind it, and with vectors and matrices worked out."""
    if node.kind == "qualified":
        return _plain(node.args[0])
    if node.kind == "list":
        items = list(node.args)
        while (  # a condition behind a formula, such as `k \in \mathbb{Z}`
            len(items) > 1
            and items[-1][:2] == ("relation", "in")
            and items[-1].args[-1].name.startswith(r"\mathbb")
        ):
            del items[-1]
            while len(items) > 1 and items[-1].kind == "symbol" and _is_equation(items[0]):
                del items[-1]  # `a, b \in \mathbb{R}`
        items = [_plain(item) for item in items]
        return items[0] if len(items) == 1 else node._replace(args=tuple(items))
    if node.kind == "relation":
        return node._replace(args=tuple(_plain(part) for part in node.args))
    if node.kind in {"add", "mul"} and has(node, "seq"):
        return _vector(node)
    return node


def _vector(node: Node) -> Node:
    """A sum of vectors, or a number times one, as a vector; others stay as they are."""
    parts = [_vector(part) if part.kind in {"add", "mul"} else part for part in node.args]
    vectors = [part for part in parts if part.kind == "seq"]
    if node.kind == "mul" and len(vectors) == 1:
        scale = formula.product(*(part for part in parts if part.kind != "seq"))
        return _entrywise(partial(formula.product, scale), vectors)
    shapes = {(part.name, len(part.args)) for part in vectors}
    if node.kind == "add" and len(vectors) == len(parts) and len(shapes) == 1:
        return _entrywise(lambda *entries: Node("add", "", entries), vectors)
    return node


def _entrywise(function: Any, vectors: list[Node]) -> Node:
    entries = []
    for group in zip(*(vector.args for vector in vectors), strict=False):
        is_row = all(entry.kind == "seq" for entry in group)
        entries.append(_entrywise(function, list(group)) if is_row else function(*group))
    return vectors[0]._replace(args=tuple(entries))


# Equations ----------------------------------------------------------------------------------------


def _is_equation(node: Node) -> bool:
    return node.kind == "relation" and set(node.name.split()) <= {"=", "~"}


def _side(equation: Node) -> Node:
    """What an equation says: its last side, or the last before a side that is about the same."""
    signs = equation.name.split()
    place = signs.index("~") if "~" in signs else -1
    if place == 0 and is_name(equation.args[0], equation.args[-1]):
        place = -1
    return equation.args[place]


def is_name(left: Node, right: Node) -> bool:
    """Whether the left side of an equation is the name of what stands on the right."""
    if left.kind == "symbol":
        return left.name not in letters(right)
    if left.kind == "seq":
        return all(part.kind == "symbol" for part in left.args)
    if left.kind == "call" or (left.kind == "mul" and not has(left, "number")):
        return not (letters(left) & letters(right)) if left.kind == "mul" else True
    return False


def _same_equation(reference: Node, answer: Node, error: float) -> bool:
    """At least one of them is an equation."""
    if not _is_equation(reference):
        is_named = is_name(answer.args[0], answer.args[-1])
        if not is_named and answer.args[-1] == number(0) and letters(answer):
            return False  # an equation to solve
        return same(reference, _side(answer), error)
    has_name = is_name(reference.args[0], reference.args[-1])
    if not _is_equation(answer):
        if has_name:
            return same(_side(reference), answer, error)
        if is_name(reference.args[-1], reference.args[0]) and len(reference.args) == 2:
            return same(reference.args[0], answer, error)
        return False
    if has_name and is_name(answer.args[0], answer.args[-1]):
        one, other = reference.args[0], answer.args[0]
        if {one.kind, other.kind} == {"symbol", "call"}:
            same_name = one.name.rstrip("'") == other.name.rstrip("'")
        else:  # two symbols have the residues of their names
            same_name = residue(one) == residue(other)
        if same_name:
            return same(_side(reference), _side(answer), error)
    if len(reference.args) != len(answer.args) or len(reference.args) > 2:
        return _each(reference.args, answer.args, error)
    wanted, given = (sides.args[0] - sides.args[1] for sides in (reference, answer))
    if _proportional(wanted, given):
        return True
    # solved for one letter that is linear in both
    for name in sorted(letters(wanted) & letters(given)):
        solved = linear_root(wanted, name), linear_root(given, name)
        if solved[0] and solved[1]:
            return equal_values(solved[0][0], solved[1][0])
    return False


def _proportional(one: Node, other: Node, *, positive: bool = False) -> bool:
    """Whether two formulas are constant multiples of one another, by a positive one if asked."""
    if letters(one) != letters(other):
        return False
    moved, other_moved = renamed(one, {}), renamed(other, {})
    if not equal_values(one * other_moved, moved * other):
        return False
    if not positive:
        return residue(one)[0] != 0 and residue(other)[0] != 0
    for place, name in enumerate(sorted(letters(one))):
        value = 1 + Fraction(37 * place, 100)
        one, other = substituted(one, name, value), substituted(other, name, value)
    values = real_value(one), real_value(other)
    return None not in values and bool(values[0] * values[1] > 0)


def _same_relation(reference: Node, answer: Node, error: float) -> bool:
    """Relations between formulas: side by side, turned round, or by their difference."""
    if len(reference.args) == len(answer.args):
        turned = " ".join(reversed(answer.name.split())).translate(_FLIPPED)
        if reference.name == answer.name and _each(reference.args, answer.args, error):
            return True
        if reference.name == turned and _each(reference.args, answer.args[::-1], error):
            return True
    signs = reference.name, answer.name
    if not all(sign in {"<", ">", "<=", ">=", "!="} for sign in signs):
        return False
    wanted, given = (node.args[0] - node.args[1] for node in (reference, answer))
    if signs[0] == signs[1]:
        return _proportional(wanted, given, positive=signs[0] != "!=")
    is_turned = signs[0] == signs[1].translate(_FLIPPED)
    return is_turned and _proportional(wanted, -given, positive=True)


def _same_bounds(one: Node, other: Node, error: float) -> bool:
    """Whether an interval and `a < x < b` have the same ends, and both are open or closed alike."""
    interval, chain = (one, other) if one.kind == "seq" else (other, one)
    signs = chain.name.split()
    if len(signs) != 2 or not set(signs) <= {"<", "<="} or chain.args[1].kind != "symbol":
        return False
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    wanted, given = (each.args if each is interval else each.args[::2] for each in (one, other))
    return interval.name == brackets and _each(wanted, given, error)


# Lists, sets, tuples ------------------------------------------------------------------------------


def _same_items(reference: Node, answer: Node, error: float) -> bool | None:
    """Points, vectors and lists; None where they may still be regions."""
    kinds = {reference.kind, answer.kind}
    if kinds == {"seq"}:
        matrices = [node.name in {"matrix", "row"} for node in (reference, answer)]
        if matrices == [True, True]:
            return _each(reference.args, answer.args, error)
        if not any(matrices) and len(reference.args) == 2 and reference.name != answer.name:
            return False
        return _each(_entries(reference), _entries(answer), error)
    listed = [item for node in (reference, answer) if node.kind == "list" for item in node.args]
    if "relation" in kinds or any(
        item.kind == "relation" and not _is_equation(item) for item in listed
    ):
        return None
    if kinds == {"list", "seq"}:
        return _each(map(_unnamed, _entries(reference)), map(_unnamed, _entries(answer)), error)
    wanted, given = _items(reference), _items(answer)
    names = [_names(wanted), _names(given)]
    if len(set(names[0])) > 1 and "" not in names[0]:
        if "" in names[1]:
            return _each(map(_unnamed, wanted), given, error)
    elif "" in names[0] or "" in names[1]:
        wanted, given = list(map(_unnamed, wanted)), list(map(_unnamed, given))
    return _matched(wanted, given, error)


def _names(items: list[Node]) -> list[str]:
    """Per item the name that it is assigned to, indices of solutions apart; "" without one."""
    return [
        re.sub(r"_\{\d+\}$", "", item.args[0].name) or str(item.args[0]) if _is_named(item) else ""
        for item in items
    ]


def _is_named(item: Node) -> bool:
    return _is_equation(item) and is_name(item.args[0], item.args[-1])


def _unnamed(item: Node) -> Node:
    return _side(item) if _is_named(item) else item


def _items(node: Node) -> list[Node]:
    return list(node.args) if node.kind in {"set", "list"} else [node]


def _entries(node: Node) -> tuple[Node, ...]:
    """The entries of a tuple, and of a matrix with one row or one column."""
    if node.name == "matrix" and 1 in {len(node.args), len(node.args[0].args)}:
        return tuple(entry for row in node.args for entry in row.args)
    return node.args


def _each(wanted: Iterable[Node], given: Iterable[Node], error: float) -> bool:
    pairs = zip_longest(wanted, given)
    return all(one and other and same(one, other, error) for one, other in pairs)


def _matched(wanted: list[Node], given: list[Node], error: float) -> bool:
    """Whether each one of either list is somewhere in the other."""
    if max(len(wanted), len(given)) > 64:
        return False
    table = [[same(one, other, error) for other in given] for one in wanted]
    is_even = bool(wanted) == bool(given)
    return is_even and all(map(any, table)) and all(map(any, zip(*table, strict=True)))


# What only a computer algebra system can do -------------------------------------------------------


def _equal_by_math_verify(reference: str, answer: str) -> bool:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, verify
    from math_verify import parse as parse_latex

    rules = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    config = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=rules)]
    wanted, given = (
        parse_latex(
            f"${text}$",
            extraction_config=config,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
        for text in (reference, answer)
    )
    if not wanted:
        try:
            parse(reference)
        except NoFormulaError as error:
            raise UnreadableReferenceError(f"{reference}: {error}") from None
    return bool(wanted) and bool(given) and bool(verify(wanted[0], given[0], timeout_seconds=None))
