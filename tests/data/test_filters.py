"""Filters with their counts, against a naive twin."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.data.filters import Filters, plain, select
from effopd.data.mapping import MappedRow, RejectedRow
from effopd.data.problem import Counts, Problem
from effopd.errors import ConfigError


def candidate(
    question: str, level: float | None = None, *, number: int = 0, **more: Any
) -> MappedRow:
    problem = Problem(id=f"p-{number}", prompt=f"{question}\nBox it.", **more)
    return MappedRow(problem=problem, question=question, level=level)


def run(
    filters: Filters, *rows: MappedRow | RejectedRow, test: frozenset[str] = frozenset()
) -> Any:
    """Questions that pass, and what was dropped."""
    kept, counts = select("source", rows, filters.checks(test))
    assert counts.kept == len(kept)
    assert counts.read == len(rows) == counts.kept + sum(counts.dropped.values())
    return [each.question for each in kept], dict(counts.dropped)


def test_nothing_is_left_out_but_what_is_repeated() -> None:
    rows = [candidate("b"), candidate("a"), candidate(" b ", 3), candidate("B")]
    assert run(Filters(), *rows) == (["b", "a", "B"], {"the prompt of an earlier row": 1})
    assert run(Filters(repeated="keep"), *rows) == (["b", "a", " b ", "B"], {})


def test_another_system_message_is_another_prompt() -> None:
    rows = [candidate("a", system="s"), candidate("a", system="t"), candidate("a", system="s")]
    assert run(Filters(), *rows)[0] == ["a", "a"]


def test_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"problem": "how many ducks are there in the pond"}\n')
    (tmp_path / "two.jsonl").write_text('{"question": "what is one and one and one"}\n')
    filters = Filters(
        benchmarks=(f"{tmp_path}/one.jsonl", f"{tmp_path}/two.jsonl"), benchmark_words=5
    )
    rows = [
        candidate("How many ducks are there?"),
        candidate("How many ducks are in it?"),
        candidate("Say: is one and one and two"),
    ]
    assert run(filters, *rows) == (
        ["How many ducks are in it?"],
        {"5 words in a row of one.jsonl": 1, "5 words in a row of two.jsonl": 1},
    )


def test_counts_in_one_line() -> None:
    dropped = {"level below 6": 3, "no readable question": 1}
    counts = Counts(name="x.jsonl", read=10, kept=6, dropped=dropped)
    assert str(counts) == "x.jsonl: 6 of 10 rows kept; 3: level below 6; 1: no readable question"
    assert str(Counts(name="x", read=2, kept=2, dropped={})) == "x: 2 of 2 rows kept"


def test_nothing_left() -> None:
    rows = [
        RejectedRow(reason="ability is not 'code'"),
        RejectedRow(reason="no readable question", message="x.jsonl line 2: no field 'q'"),
        RejectedRow(reason="no readable question", message="x.jsonl line 3: no field 'q'"),
    ]
    with pytest.raises(ConfigError) as error:
        select("x.jsonl", rows, [])
    assert str(error.value) == (
        "no problems are left. x.jsonl: 0 of 3 rows kept; 2: no readable question; "
        "1: ability is not 'code'\nThe first that cannot be read: x.jsonl line 2: no field 'q'"
    )
    with pytest.raises(ConfigError) as error:
        select("x.jsonl", [], [])
    assert str(error.value) == "no problems are left. x.jsonl: 0 of 0 rows kept"


# The twin -----------------------------------------------------------------------------------------


def reason_of(
    row: MappedRow | RejectedRow, before: list[MappedRow | RejectedRow], limits: Any, test: set[str]
) -> str:
    """Why a row is left out, from the definition; "" if it is not."""
    if isinstance(row, RejectedRow):
        return row.reason
    low, high, longest = limits
    if row.level is None and (low is not None or high is not None):
        return "no readable level"
    if low is not None and row.level < low:  # type: ignore[operator]
        return f"level below {low:g}"
    if high is not None and row.level > high:  # type: ignore[operator]
        return f"level above {high:g}"
    if longest is not None and len(row.question) > longest:
        return f"more than {longest} characters"
    earlier = [
        each
        for i, each in enumerate(before)
        if isinstance(each, MappedRow)
        and reason_of(each, before[:i], limits, set()) in {"", "the prompt of an earlier row"}
    ]
    if any(each.problem.prompt.split() == row.problem.prompt.split() for each in earlier):
        return "the prompt of an earlier row"
    return "the prompt of a test problem" if " ".join(row.problem.prompt.split()) in test else ""


QUESTIONS = st.text("ab ", min_size=1, max_size=4)
LEVEL = st.none() | st.sampled_from([1.0, 2.0, 2.5, 3.0])
CANDIDATES = st.builds(candidate, QUESTIONS, LEVEL)
ROWS = st.lists(CANDIDATES | st.just(RejectedRow(reason="no readable question")), max_size=8)


@given(ROWS, LEVEL, LEVEL, st.none() | st.integers(1, 4), st.lists(CANDIDATES, max_size=2))
def test_equal_to_the_twin(
    rows: list[MappedRow | RejectedRow],
    low: float | None,
    high: float | None,
    longest: int | None,
    test: list[MappedRow],
) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    limits, held_out = (low, high, longest), {plain(each.problem) for each in test}
    reasons = [reason_of(row, rows[:i], limits, held_out) for i, row in enumerate(rows)]
    filters = Filters(min_level=low, max_level=high, max_characters=longest)
    if "" not in reasons:
        with pytest.raises(ConfigError, match="no problems are left"):
            select("source", rows, filters.checks(held_out))
        return
    kept, counts = select("source", rows, filters.checks(held_out))
    assert kept == [row for row, reason in zip(rows, reasons, strict=True) if not reason]
    assert counts.dropped == Counter(reason for reason in reasons if reason)
