"""When a result is what a test expects."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.rewards.code_comparison import equal_values, is_expected, same_lines, same_tokens
from effopd.tasks.code_tests import CodeTests, Rule

NAN, INF = math.nan, math.inf


def called(rule: Rule, *arguments: Any, atol: float = 0.0, is_wrapped: bool = False) -> CodeTests:
    """Tests of a function with one input."""
    return CodeTests(
        kind="call", inputs=(list(arguments),), outputs=(None,), entry_point="f", rule=rule,
        atol=atol, is_wrapped=is_wrapped,
    )  # fmt: skip


# Expected, given, whether they agree as values of EvalPlus, and as JSON ---------------------------

VALUES = [
    (2, 2.0, True, True),
    (2.0, 2, True, True),
    (1, True, True, True),
    (0, None, False, False),
    (0, "", False, False),
    (0, False, True, True),
    ("2", 2, False, False),
    (b"a", "a", False, False),
    ([1, 2], [1, 2], True, True),
    ([1, 2], (1, 2), False, True),
    ((1, 2), [1, 2], False, True),
    ([(1, 2)], [[1, 2]], False, True),
    ([1, 2], [2, 1], False, False),
    ([1, 2], [1, 2, 3], False, False),
    ([1, 2, 3], [1, 2], False, False),
    ([], None, False, False),
    ([], 0, False, False),
    ([[]], [], False, False),
    ({1, 2}, {2, 1}, True, True),
    ({1, 2}, [1, 2], False, False),
    ({1, 2}, frozenset({1, 2}), True, True),
    ({"a": 1}, {"a": 1.0}, True, True),
    ({"a": 1}, {"a": 1, "b": 2}, False, False),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True, True),
    ({"a": 1}, {"b": 1}, False, False),
    ({1: "x"}, {"1": "x"}, False, False),
    ({"a": (1,)}, {"a": [1]}, False, True),
    (0.3, 0.1 + 0.2, True, True),
    (1.0, 1.0 + 9e-7, True, True),
    (1.0, 1.0 + 3e-6, False, False),
    (1e9, 1e9 + 50, True, True),
    (1e9, 1e9 + 200, False, False),
    (10**18, 10**18 + 1, False, False),
    (1.0000001, 1, False, False),
    (1, 1.0000001, False, False),
    ([1.0, [2.0]], [1.0, [2.0 + 1e-7]], True, True),
    ({"a": 1.0}, {"a": 1.0 + 1e-7}, True, True),
    (NAN, NAN, True, True),
    (NAN, 0.0, False, False),
    (0.0, NAN, False, False),
    ([NAN], [float("nan")], True, True),
    (INF, INF, True, True),
    (INF, 1.0, False, False),
    (1.0, INF, False, False),
    (INF, -INF, False, False),
    (1 + 2j, 1 + 2j, True, True),
    (1 + 2j, 1 + 3j, False, False),
    (1, 1 + 0j, True, True),
    (None, None, True, True),
]


@pytest.mark.parametrize(("expected", "given_value", "as_value", "as_json"), VALUES)
def test_values(expected: Any, given_value: Any, as_value: bool, as_json: bool) -> None:
    assert is_expected(called("value"), 0, expected, given_value) is as_value
    assert is_expected(called("json"), 0, expected, given_value) is as_json


def test_integers_too_long_to_print() -> None:
    assert is_expected(called("value"), 0, 10**5000, 10**5000)
    assert not is_expected(called("value"), 0, 10**5000, 10**5000 + 1)
    assert not is_expected(called("value"), 0, 10**5000, 1.0)


def test_tolerance_of_a_problem_counts_where_it_is_larger() -> None:
    assert is_expected(called("value", atol=1e-2), 0, 1.0, 1.009)
    assert not is_expected(called("value", atol=1e-2), 0, 1.0, 1.011)
    assert is_expected(called("value", atol=1e-9), 0, 1.0, 1.0 + 9e-7)


@pytest.mark.parametrize(
    ("expected", "value", "is_right"),
    [([5], 5, True), ([5], [5], True), ([[1, 2]], [1, 2], True), ([[1, 2]], (1, 2), True),
     ([5], 6, False), ([5], [[5]], False)],
)  # fmt: skip
def test_wrapped_outputs(expected: list[Any], value: Any, is_right: bool) -> None:
    assert is_expected(called("json", is_wrapped=True), 0, expected, value) is is_right


def test_the_first_element_of_a_list_is_not_the_list() -> None:
    """What verl accepts where outputs are not wrapped."""
    assert not is_expected(called("json"), 0, [1, 2, 3], 1)
    assert not is_expected(called("json"), 0, [1], 1)


# Problems with more than one right answer ---------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "value", "is_right"),
    [
        ((4, 5), (5, 4), True),
        ((4, 5), [4, 5, 5], True),
        ((4, 5), {4, 5}, True),
        ((4, 5), (4,), False),
        ((4, 5), (4, 5, 6), False),
        ((4, 5), [[4], [5]], False),
        ((4, 5), 4, False),
        ((4, 5), None, False),
        (("a", "b"), "ab", False),
        ((), [], True),
    ],
)
def test_sets(expected: Any, value: Any, is_right: bool) -> None:
    assert is_expected(called("set"), 0, expected, value) is is_right


@pytest.mark.parametrize(
    ("expected", "value", "is_right"),
    [(True, True, True), (True, "match", True), (True, None, False), (True, False, False),
     (None, None, True), (None, False, True), (None, True, False), (None, 0, False)],
)  # fmt: skip
def test_presence(expected: Any, value: Any, is_right: bool) -> None:
    assert is_expected(called("presence"), 0, expected, value) is is_right


@pytest.mark.parametrize(
    ("coefficients", "value", "is_right"),
    [
        ([1, 2], -0.5, True),
        ([1, 2], -0.50004, True),
        ([1, 2], -0.5001, False),
        ([-6, 11, -6, 1], 1, True),
        ([-6, 11, -6, 1], 3.0, True),
        ([-6, 11, -6, 1], 2.5, False),
        ([1, 2], NAN, False),
        ([1, 2], INF, False),
        ([1, 2], 10**400, False),
        ([1, 2, 3, 4], 1e200, False),
        ([1, 2], "-0.5", False),
        ([1, 2], None, False),
        ([-1, 1], True, False),
    ],
)
def test_roots(coefficients: list[float], value: Any, is_right: bool) -> None:
    assert is_expected(called("root", coefficients, atol=1e-4), 0, 99.0, value) is is_right


def test_rules_of_single_problems() -> None:
    assert is_expected(called("anything"), 0, True, None)
    assert [is_expected(called("zero_too"), 0, 7, value) for value in (7, 0, 1, None, [])] == [
        True, True, False, False, False,
    ]  # fmt: skip
    # 3, 4: a slant height of 4 gives 9 + 2 * 3 * 4; a height of 4 gives a slant of sqrt(18.25)
    pyramid = called("pyramid", 3, 4)
    assert [is_expected(pyramid, 0, 33, value) for value in (33, 35, 34, "33")] == [
        True, True, False, False,
    ]  # fmt: skip
    # |123 - 256| = 133, digits 7; digit by digit 1 + 3 + 3 = 7
    # |1 - 10| = 9; digit by digit 1 + 1 = 2
    digits = called("digit_distance", 1, 10)
    assert [is_expected(digits, 0, 9, value) for value in (9, 2, 3, None)] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not is_expected(called("digit_distance", -1, 10), 0, 9, 2)


# Expected, given, as words, as lines --------------------------------------------------------------

TEXTS = [
    ("5\n", b"5", True, True),
    ("5", b"5\n\n", True, True),
    ("1 2\n3\n", b"1 2\r\n3\r\n", True, True),
    ("1 2\n3\n", b"  1 2  \n3", True, True),
    ("1 2 3", b"1\n2\n3", True, False),
    ("a b", b"a  b", True, False),
    ("1 2", b"1  2", True, True),
    ("1\n\n2", b"1\n2", True, False),
    ("YES", b"Yes", False, False),
    ("ab", b"a b", False, False),
    ("1 2", b"2 1", False, False),
    ("1 2", b"1 2 3", False, False),
    ("1 2", b"1", False, False),
    ("", b"", True, True),
    ("", b"\n", True, True),
    ("", b"0", False, False),
    ("0", b"", False, False),
    ("5", b"5.0", True, True),
    ("7", b"007", True, True),
    ("5", b"5.0000001", False, False),
    ("0.5", b"0.5000001", True, False),
    ("0.5", b"0.50001", False, False),
    ("0.5", b".5", True, True),
    ("0.5", b"5e-1", True, True),
    ("1000000.5", b"1000001", True, False),
    ("1e3", b"1000", True, True),
    ("0.5", b"nan", False, False),
    ("nan", b"nan", True, True),
    ("0.5", b"1e999", False, False),
    ("0.5", b"1e999999999", False, False),
    ("0.5", b"inf", False, False),
    ("5", b"0x5", False, False),
    ("5", b"5_0", False, False),
    ("50", b"5_0", False, False),
    ("5", "٥".encode(), False, False),
    ("123456789012345678901", b"123456789012345678902", False, False),
    ("é", "é".encode(), True, True),
    ("é", "é".encode("latin-1"), False, False),
    ("a", b"a\0", False, False),
    ("a", b"\x1b[2Ka", False, False),
    ("a", b"\xff\xfe", False, False),
    ("a b", "a\N{NO-BREAK SPACE}b".encode(), False, False),
]


@pytest.mark.parametrize(("expected", "printed", "as_words", "as_lines"), TEXTS)
def test_texts(expected: str, printed: bytes, as_words: bool, as_lines: bool) -> None:
    assert same_tokens(printed, expected.encode(), 1e-6) is as_words
    assert same_lines(printed, expected.encode()) is as_lines


def test_texts_are_compared_by_the_rule_of_the_tests() -> None:
    words = CodeTests(kind="stdin", inputs=("",), outputs=("1\n2",))
    lines = CodeTests(kind="stdin", inputs=("",), outputs=("1\n2",), rule="lines")
    assert is_expected(words, 0, "1\n2", b"1 2")
    assert not is_expected(lines, 0, "1\n2", b"1 2")
    assert not is_expected(words, 0, "0.5", b"0.5000001")  # no tolerance unless given


def test_a_number_of_ten_million_digits_is_text() -> None:
    digits = b"1" * 10**7
    assert same_tokens(digits, digits, 1e-6)
    assert not same_tokens(digits, digits + b"1", 1e-6)
    assert not same_tokens(digits, b"1.5", 1e-6)


# Properties ---------------------------------------------------------------------------------------

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False)
)  # fmt: skip
KEYS = st.integers() | st.text(max_size=5) | st.tuples(st.integers(), st.booleans())
PLAIN = st.recursive(
    SCALARS | st.sets(KEYS),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)
CASES = [
    *(called(rule, 3, 4) for rule in ("json", "value", "set", "presence", "zero_too", "pyramid")),
    called("json", 3, 4, is_wrapped=True),
    called("digit_distance", 3, 4),
    called("root", [1.0, 2.0], atol=1e-4),
]


def copied(value: Any) -> Any:
    """The same value in other objects, as after a journey through text."""
    if isinstance(value, list | tuple):
        return type(value)(copied(each) for each in value)
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return float(repr(value)) if isinstance(value, float) else value


@given(value=PLAIN)
@settings(deadline=None)
def test_a_value_equals_its_copy(value: Any) -> None:
    assert equal_values(copied(value), value, tuples_are_lists=False)
    assert equal_values(copied(value), value, tuples_are_lists=True)


@given(left=PLAIN, right=PLAIN, tests=st.sampled_from(CASES))
@settings(deadline=None)
def test_any_two_values_are_compared(left: Any, right: Any, tests: CodeTests) -> None:
    if tests.is_wrapped:
        left = [left]
    assert is_expected(tests, 0, left, right) in {True, False}


@given(left=PLAIN, right=PLAIN)
@settings(deadline=None)
def test_strict_equality_implies_lenient_equality(left: Any, right: Any) -> None:
    if equal_values(left, right, tuples_are_lists=False):
        assert equal_values(left, right, tuples_are_lists=True)


@given(words=st.lists(st.from_regex(rb"[!-~]{1,12}", fullmatch=True)), breaks=st.data())
@settings(deadline=None)
def test_white_space_between_words_does_not_count(words: list[bytes], breaks: Any) -> None:
    gaps = [breaks.draw(st.sampled_from([b" ", b"\n", b"\t ", b"\r\n"])) for _ in words]
    printed = b"".join(word + gap for word, gap in zip(words, gaps, strict=True))
    assert same_tokens(printed, b" ".join(words), 0.0)


@given(left=st.binary(), right=st.binary(), error=st.sampled_from([0.0, 1e-6]))
@settings(deadline=None)
def test_any_two_texts_are_compared(left: bytes, right: bytes, error: float) -> None:
    assert same_tokens(left, left, error)
    assert same_lines(left, left)
    assert same_tokens(left, right, error) in {True, False}
    assert same_lines(left, right) in {True, False}


def test_nesting_beyond_recursion_is_wrong() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert not is_expected(called("value"), 0, deep, [[]] * 3)
    assert not is_expected(called("value"), 0, deep, [deep])


def test_a_set_is_not_given_in_endless_repeats() -> None:
    tests = CodeTests(kind="call", inputs=([1],), outputs=([1],), entry_point="f", rule="set")
    assert is_expected(tests, 0, [1], [1] * 200)
    collide = [i * (2**61 - 1) for i in range(100_000)]
    assert not is_expected(tests, 0, [1], collide)
