"""JSON from strangers."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.growth import grows_linearly

from effopd.servers.failures import PassingError
from effopd.servers.json_text import DEEPEST, depth, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


def nesting(value: Any) -> int:
    """The slow and obvious depth."""
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(nesting, inner), default=0)


@given(VALUES)
def test_depth_is_that_of_the_value(value: Any) -> None:
    text = json.dumps(value).encode()
    assert depth(text) == nesting(value)
    if nesting(value) <= DEEPEST:
        assert parse(text) == value


@given(st.binary(max_size=80))
def test_any_bytes_are_a_value_or_a_passing_failure(text: bytes) -> None:
    try:
        parse(text)
    except PassingError:
        return


def test_nested_too_deep_is_refused_before_it_is_parsed() -> None:
    assert parse(b"[" * DEEPEST + b"]" * DEEPEST) is not None
    for text in (b"[" * 10**6, b'{"a":' * 33 + b"1" + b"}" * 33):
        with pytest.raises(PassingError, match="nested deeper than 32"):
            parse(text)


def test_brackets_in_strings_do_not_count() -> None:
    assert parse(json.dumps(["[" * 100, '"' + "{" * 100, "\\"]).encode())[0] == "[" * 100


@pytest.mark.parametrize(
    "text",
    [
        lambda size: b'"' + b"\\" * size,
        lambda size: b'\\"' * size,
        lambda size: b'["' + b"a" * size,
    ],
    ids=["backslashes", "quotes", "letters"],
)
def test_hostile_quotes_take_linear_time(text: Callable[[int], bytes]) -> None:
    def refuse(size: int) -> None:
        with pytest.raises(PassingError):
            parse(text(size))

    assert grows_linearly(refuse, 2**15)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"a" 1}', b"1" * 5000, b"<html>"])
def test_what_is_no_json_may_pass(text: bytes) -> None:
    with pytest.raises(PassingError, match="that is no JSON"):
        parse(text)


def test_nan_stays_nan_for_those_who_read_numbers() -> None:
    assert math.isnan(parse(b'{"a": NaN}')["a"])
