"""When a result is what a test expects."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import code_twin

from effopd.data.code_tests import CodeTests, Rule
from effopd.errors import ConfigError
from effopd.rewards.code_comparison import equal_values, is_expected, same_tokens
from effopd.rewards.code_extraction import program_of

NAN, INF = math.nan, math.inf


def called(rule: Rule, *arguments: Any, atol: float = 0.0, is_wrapped: bool = False) -> CodeTests:
    """Tests of a function with one input."""
    return CodeTests(
        kind="call", inputs=(list(arguments),), outputs=(None,), entry_point="f", rule=rule,
        atol=atol, is_wrapped=is_wrapped,
    )  # fmt: skip


# Expected, given, whether they agree as values of EvalPlus, and as JSON ---------------------------

VALUES = [
    (2, 2.0, True, True), (2.0, 2, True, True), (1, True, True, True), (0, None, False, False),
    (0, "", False, False), (0, False, True, True), ("2", 2, False, False),
    (b"a", "a", False, False), ([1, 2], [1, 2], True, True), ([1, 2], (1, 2), False, True),
    ((1, 2), [1, 2], False, True), ([(1, 2)], [[1, 2]], False, True),
    ([1, 2], [2, 1], False, False), ([1, 2], [1, 2, 3], False, False),
    ([1, 2, 3], [1, 2], False, False), ([], None, False, False), ([], 0, False, False),
    ([[]], [], False, False), ({1, 2}, {2, 1}, True, True), ({1, 2}, [1, 2], False, False),
    ({1, 2}, frozenset({1, 2}), True, True), ({1, 2}, {1.0, 2.0}, True, True),
    ({NAN}, {float("nan")}, True, True), (complex(NAN, 1), complex(NAN, 1), True, True),
    ({1, 2}, None, False, False), ({"a": 1}, {"a": 1.0}, True, True),
    ({"a": 1}, {"a": 1, "b": 2}, False, False), ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True, True),
    ({"a": 1}, {"b": 1}, False, False), ({1: "x"}, {"1": "x"}, False, False),
    ({"a": (1,)}, {"a": [1]}, False, True), (0.3, 0.1 + 0.2, True, True),
    (1.0, 1.0 + 9e-7, True, True), (1.0, 1.0 + 3e-6, False, False), (1e9, 1e9 + 50, True, True),
    (1e9, 1e9 + 200, False, False), (10**18, 10**18 + 1, False, False),
    (1.0000001, 1, False, False), (1, 1.0000001, False, False),
    ([1.0, [2.0]], [1.0, [2.0 + 1e-7]], True, True), ({"a": 1.0}, {"a": 1.0 + 1e-7}, True, True),
    (NAN, NAN, True, True), (NAN, 0.0, False, False), (0.0, NAN, False, False),
    ([NAN], [float("nan")], True, True), (INF, INF, True, True), (INF, 1.0, False, False),
    (1.0, INF, False, False), (INF, -INF, False, False), (1 + 2j, 1 + 2j, True, True),
    (1 + 2j, 1 + 3j, False, False), (1, 1 + 0j, True, True), (None, None, True, True),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "given_value", "as_value", "as_json"), VALUES)
def test_values(expected: Any, given_value: Any, as_value: bool, as_json: bool) -> None:
    assert is_expected(called("value"), 0, expected, given_value) is as_value
    assert is_expected(called("json"), 0, expected, given_value) is as_json


# 3, 4: a slant height of 4 gives 9 + 2 * 3 * 4; a height of 4 gives a slant of sqrt(18.25).
# |1 - 10| = 9; digit by digit 1 + 1 = 2.
PYRAMID, DIGIT = called("pyramid", 3, 4), called("digit_distance", 1, 10)
WRAPPED, SET, PRESENCE = called("json", is_wrapped=True), called("set"), called("presence")

RULES: list[tuple[CodeTests, list[tuple[Any, Any, bool]]]] = [
    (called("value", atol=1e-2), [(1.0, 1.009, True), (1.0, 1.011, False)]),
    (called("value", atol=1e-9), [(1.0, 1.0 + 9e-7, True)]),
    (called("json"), [([1, 2, 3], 1, False), ([1], 1, False)]),  # the first is not the list
    (WRAPPED, [
        ([5], 5, True), ([5], [5], True), ([[1, 2]], [1, 2], True), ([[1, 2]], (1, 2), True),
        ([5], 6, False), ([5], [[5]], False),
    ]),
    (SET, [
        ((4, 5), (5, 4), True), ((4, 5), [4, 5, 5], True), ((4, 5), {4, 5}, True),
        ((4, 5), [4.0, True + 4], True), ((4, 5), (4,), False), ((4, 5), (4, 5, 6), False),
        ((4, 5), [[4], [5]], False), ((4, 5), 4, False), ((4, 5), None, False),
        (("a", "b"), "ab", False), ("ab", ["a", "b"], False), ((), [], True), (None, None, True),
        (None, [], False), (None, [None], False), (3, 3, True), ({"a": 1}, ["a"], False),
        ([[1], [2, 3]], [[2, 3], [1]], True), ([[1]], [(1,)], False),
        ([{"a": 1}], [{"a": 1.0}], True), ([NAN], [float("nan")], True),
        ([{1}], [frozenset({1.0})], True), ([b"a"], [0xB61], False), ([b"a"], ["a"], False),
        (["1"], [1], False), ([1 + 0j], [1], True), ([2**60], [2**60 + 1], False),
        ([2**53], [float(2**53)], True), ([2**53 + 1], [float(2**53)], False),
    ]),
    (PRESENCE, [
        (True, True, True), (True, "match", True), (True, None, False), (True, False, False),
        (None, None, True), (None, False, True), (None, True, False), (None, 0, False),
    ]),
    (called("anything"), [(True, None, True)]),
    (called("zero_too"), [(7, each, each in {7, 0}) for each in (7, 0, 1, None)]),
    (PYRAMID, [(33, 33, True), (33, 35, True), (33, 34, False), (33, "33", False)]),
    (DIGIT, [(9, 9, True), (9, 2, True), (9, 3, False), (9, None, False)]),
    (called("digit_distance", -1, 10), [(9, 2, False)]),
    *((called("root", coefficients, atol=1e-4), [(99.0, value, is_right)])
      for coefficients, value, is_right in [
        ([1, 2], -0.5, True), ([1, 2], -0.50004, True), ([1, 2], -0.5001, False),
        ([-6, 11, -6, 1], 1, True), ([-6, 11, -6, 1], 3.0, True), ([-6, 11, -6, 1], 2.5, False),
        ([1, 2], NAN, False), ([1, 2], INF, False), ([1, 2], 10**400, False),
        ([1, 2, 3, 4], 1e200, False), ([1, 2], "-0.5", False), ([1, 2], None, False),
        ([-1, 1], True, False),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tests", "expected", "value", "is_right"),
    [(tests, *row) for tests, rows in RULES for row in rows],
)
def test_rules(tests: CodeTests, expected: Any, value: Any, is_right: bool) -> None:
    assert is_expected(tests, 0, expected, value) is is_right


def test_integers_too_long_to_print() -> None:
    given = (10**5000, 10**5000 + 1, 1.0)
    found = [is_expected(called("value"), 0, 10**5000, each) for each in given]
    assert found == [True, False, False]


# Expected, given, whether it passes --------------------------------------------------------------

TEXTS = [
    ("5\n", b"5", True), ("5", b"5\n\n", True),
    ("1 2\n3\n", b"1 2\r\n3\r\n", True), ("1 2\n3\n", b"  1 2  \n3", True),
    ("1 2 3", b"1\n2\n3", True), ("a b", b"a  b", True), ("1 2", b"1  2", True),
    ("1\n\n2", b"1\n2", True), ("YES", b"Yes", False), ("ab", b"a b", False),
    ("1 2", b"2 1", False), ("1 2", b"1 2 3", False), ("1 2", b"1", False),
    ("", b"", True), ("", b"\n", True), ("", b"0", False),
    ("0", b"", False), ("5", b"5.0", True), ("7", b"007", False),
    ("5", b"5.0000001", False), ("0.5", b"0.5000001", True),
    ("0.5", b"0.50001", False), ("0.5", b".5", True), ("0.5", b"5e-1", True),
    ("1000000.5", b"1000001", True), ("1e3", b"1000", False),
    ("0.5", b"nan", False), ("nan", b"nan", True), ("0.5", b"1e999", False),
    ("0.5", b"1e999999999", False), ("0.5", b"inf", False),
    ("5", b"0x5", False), ("5", b"5_0", False), ("50", b"5_0", False),
    ("5", "٥".encode(), False),
    ("123456789012345678901", b"123456789012345678902", False),
    ("é", "é".encode(), True), ("é", "é".encode("latin-1"), False),
    ("a", b"a\0", False), ("a", b"\x1b[2Ka", False), ("a", b"\xff\xfe", False),
    ("a b", "a\N{NO-BREAK SPACE}b".encode(), False),
    # an integer, and any other digits, are text
    ("0010", b"10", False), ("0010", b"10.0", False),
    ("0010", b"0010.0", False), ("07 05", b"7 5", False),
    ("7 5", b"07 05", False), ("10", b"1e1", False), ("10", b"1e+01", False),
    ("10", b"+10", False), ("10", b"10.", True), ("10", b"10.1", False),
    ("10", b"10.0000001", False), ("-10", b"-10.00", True), ("0", b"-0", False),
    ("1e1", b"10", False), ("12e5", b"1200000", False),
    ("1_000", b"1000", False), ("1,000", b"1000", False),
    ("10000000000000000", b"1e+16", False),
    # a fraction that a format made is text
    ("1.10", b"1.1", False), ("1.10", b"1.100", False),
    ("1.10", b"1.1000000", False), ("5.00", b"5", False),
    ("5.00", b"5.0", False), ("2.500", b"2.5", False),
    ("12:30.50", b"12:30.5", False), ("00.5", b"0.5", False),
    # other fractions are values
    ("1.1", b"1.10", True), ("5.0", b"5", True), ("5.0", b"5.000000", True),
    ("0.0", b"-0.0", True), ("0.333333333333", b"0.3333333333333333", True),
    ("0.333333333333", b"0.3333", False), ("0.500000000000", b"0.5", True),
    ("2.0000", b"2", True), ("0.00001", b"1e-05", True),
    ("1e-05", b"0.00001", True), ("1e+16", b"10000000000000000.0", True),
    ("3 0.333333333333", b"3 0.3333333333333333", True),
    ("x 0.333333333333", b"x 0.3333333333333333", True),
    ("x 0.333333333333", b"x  0.3333333333333333", True),
    ("0.333333333333\n0.5", b"0.3333333333333333\n0.5", True),
    ("-0.333333333333", b"0.3333333333333333", False), ("0.5", b"0.500001", True),
    ("0.5", b"0.5000011", False), ("9" * 400 + ".5", b"5.5", False),
    ("1.5e+999", b"2.5e+999", False), ("1.5e+999", b"1.5000001e+999", True),
    ("0.5", b"5" * 999, False),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "printed", "wanted"), TEXTS)
def test_texts(expected: str, printed: bytes, wanted: bool) -> None:
    assert same_tokens(printed, expected.encode(), 1e-6) is wanted


def test_texts_are_compared_by_the_rule_of_the_tests() -> None:
    words = CodeTests(kind="stdin", inputs=("",), outputs=("1\n2",))
    assert is_expected(words, 0, "1\n2", b"1 2")
    assert not is_expected(words, 0, "0.5", b"0.5000001")  # no tolerance unless given
    exact = replace(words, rule="exact")
    assert is_expected(exact, 0, "1 2", b"1\n2")
    assert not is_expected(exact, 0, "5", b"5.0")
    assert not is_expected(replace(exact, atol=1e-6), 0, "0.5", b"0.50")


def test_a_number_of_ten_million_digits_is_text() -> None:
    digits = b"1" * 10**7
    assert same_tokens(digits, digits, 1e-6)
    assert not same_tokens(digits, digits + b"1", 1e-6)
    assert not same_tokens(digits, b"1.5", 1e-6)


# Properties ---------------------------------------------------------------------------------------

NUMBERS = st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.integers(-2, 2)
SCALARS = st.none() | NUMBERS | st.text(max_size=5) | st.binary(max_size=5)
KEYS = st.recursive(
    st.integers(-2, 2) | st.floats() | st.text(max_size=2) | st.none() | st.binary(max_size=2),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
PLAIN = st.recursive(
    SCALARS | st.sets(KEYS, max_size=4) | st.binary(max_size=5).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=8,
)
ALIKE = st.recursive(
    st.sampled_from([None, True, 1, 1.0, 1 + 0j, 2, 2.5, NAN, "1", b"1", 2**53, 2.0**53]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
"""Few enough that two of them are often equal."""
CASES = [
    *(
        called(rule, 3, 4, is_wrapped=is_wrapped)
        for rule in get_args(Rule)
        if rule not in {"tokens", "exact", "root"}
        for is_wrapped in (False, True)
    ),
    called("root", [1.0, 2.0], atol=1e-4),
]


def copied(value: Any) -> Any:
    """The same value in other objects, as after a journey through text."""
    if isinstance(value, list | tuple):
        return type(value)(copied(each) for each in value)
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return float(repr(value)) if isinstance(value, float) else value


@given(left=PLAIN, right=PLAIN, tests=st.sampled_from(CASES))
@settings(deadline=None)
def test_any_two_values_are_compared(left: Any, right: Any, tests: CodeTests) -> None:
    assert is_expected(tests, 0, left, right) in {True, False}
    assert is_expected(tests, 0, left, left) in {True, False}


@given(left=ALIKE | PLAIN, right=ALIKE | PLAIN, tuples_are_lists=st.booleans())
@settings(deadline=None)
def test_values_equal_as_in_the_twin(left: Any, right: Any, tuples_are_lists: bool) -> None:
    for a, b in ((left, right), (left, copied(left))):
        found = equal_values(a, b, tuples_are_lists=tuples_are_lists)
        assert found == code_twin.close(a, b, 1e-6, tuples_are_lists=tuples_are_lists)


@given(left=st.lists(ALIKE) | PLAIN, right=st.lists(ALIKE) | PLAIN)
@settings(deadline=None)
def test_sets_equal_as_in_the_twin(left: Any, right: Any) -> None:
    for a, b in ((left, right), (left, copied(left))):
        assert is_expected(called("set"), 0, b, a) == code_twin.same_set(a, b)


@given(words=st.lists(st.from_regex(rb"[!-~]{1,12}", fullmatch=True)), breaks=st.data())
@settings(deadline=None)
def test_white_space_between_words_does_not_count(words: list[bytes], breaks: Any) -> None:
    gaps = [breaks.draw(st.sampled_from([b" ", b"\n", b"\t ", b"\r\n"])) for _ in words]
    printed = b"".join(word + gap for word, gap in zip(words, gaps, strict=True))
    assert same_tokens(printed, b" ".join(words), 0.0)


DIGITS = st.from_regex(
    r"[+-]?(0|00|[0-9]{1,3})?(\.[0-9]{0,4}(0000|33333333)?)?(e[+-]?[0-9]{1,2})?", fullmatch=True
).filter(str.strip)
ERRORS = st.sampled_from(["", "0", ".0", "000000", "0000009", "000001", "e0", "e+00", "1"])


@given(expected=DIGITS, printed=DIGITS, ending=ERRORS, error=st.sampled_from([0.0, 1e-6, 1e-2]))
@settings(deadline=None)
def test_numbers_equal_as_in_the_twin(
    expected: str, printed: str, ending: str, error: float
) -> None:
    for other in (printed, expected + ending):
        wanted = code_twin.same_number(other, expected, error)
        assert same_tokens(other.encode(), expected.encode(), error) == wanted


class Counted(int):
    """An integer that counts how often it is compared or hashed; all have the same hash."""

    uses = 0

    def __eq__(self, other: object) -> bool:
        Counted.uses += 1
        return int(self) == other

    def __hash__(self) -> int:
        Counted.uses += 1
        return 1


@pytest.mark.parametrize("rule", ["set", "json", "value"])
@pytest.mark.parametrize("wrap", [list, tuple, lambda numbers: [[each] for each in numbers]])
def test_comparisons_are_at_most_linear_where_hashes_collide(rule: Rule, wrap: Any) -> None:
    tests = called(rule)
    for size in (10, 100, 1000):
        Counted.uses = 0
        numbers = [Counted(i) for i in range(size)]
        is_expected(tests, 0, wrap(list(range(size))), wrap(numbers))
        assert Counted.uses <= 2 * size


def test_nesting_beyond_recursion_is_wrong() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert not is_expected(called("value"), 0, deep, [[]] * 3)
    assert not is_expected(called("value"), 0, deep, [deep])
    assert not is_expected(called("set"), 0, deep, [deep])


def test_the_example_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "code.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(program_of(page) or "", names)
    seventh = str(1 / 7).encode()
    found = [is_expected(names[name], 0, "0.1428571", seventh) for name in ("tests", "strict")]
    assert found == [True, False]
    assert is_expected(names["loose"], 0, "0.1428571", b"0.143")
    assert not is_expected(names["tests"], 0, "0.1428571", b"0.143")


def test_elements_may_repeat_and_collide() -> None:
    tests = called("set")
    assert is_expected(tests, 0, [1], [1] * 100_000)
    collide = [i * (2**61 - 1) for i in range(100_000)]
    assert not is_expected(tests, 0, list(range(300)), collide)
    assert is_expected(tests, 0, list(reversed(collide)), collide)


def test_texts_that_are_no_unicode_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be Unicode.*leave the problem out"):
        CodeTests(kind="stdin", inputs=("",), outputs=("\ud800",))


def test_a_rule_for_values_is_refused_for_texts() -> None:
    with pytest.raises(ConfigError, match=r"rule must be one of .*'exact'.* for stdin, got 'set'"):
        CodeTests(kind="stdin", inputs=("",), outputs=("",), rule="set")
