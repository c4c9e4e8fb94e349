"""Divergences per token summed up, against a twin in plain Python and closed forms."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import behavior_twin as twin

from effopd.analysis.behavior import (
    CARRIED,
    divergence_summary,
    position_rows,
)
from effopd.errors import ConfigError, NonFiniteError

Answers = list[list[float]]


def answers(seed: int, count: int = 7) -> Answers:
    rng = random.Random(seed)
    return [[rng.expovariate(1.0) ** 3 for _ in range(rng.randint(1, 40))] for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_summary_equals_the_twin(seed: int) -> None:
    kl_nats = answers(seed)
    tokens = sorted(value for answer in kl_nats for value in answer)
    found = divergence_summary(kl_nats)
    assert (found["answers"], found["tokens"]) == (7, len(tokens))
    assert found["mean_nats"] == pytest.approx(twin.mean(tokens), rel=1e-12)
    assert found["se_nats"] == pytest.approx(twin.clustered_error(kl_nats), rel=1e-12)
    assert found["answer_nats"] == pytest.approx(math.fsum(tokens) / 7, rel=1e-12)
    assert found["max_nats"] == tokens[-1]
    for name, share in CARRIED.items():
        assert found[name] == twin.carriers(kl_nats, share)


def test_quantiles_of_known_values() -> None:
    found = divergence_summary([[4.0, 0.0], [3.0, 1.0, 2.0]])
    assert found["median_nats"] == 2.0
    assert found["p95_nats"] == pytest.approx(3.8, rel=1e-12)
    assert divergence_summary([[5.0]])["p95_nats"] == 5.0


def test_a_single_answer_has_no_error() -> None:
    assert divergence_summary([[1.0, 2.0]])["se_nats"] is None


@pytest.mark.parametrize(
    ("kl_nats", "share", "expected"),
    [
        ([[1.0, 1.0, 1.0, 1.0]], 0.5, 0.5),
        ([[0.0, 0.0], [8.0, 0.0]], 0.95, 0.25),
        ([[6.0, 3.0], [1.0, 0.0]], 0.6, 0.25),
        ([[6.0, 3.0], [1.0, 0.0]], 0.61, 0.5),
        ([[6.0, 3.0], [1.0, 0.0]], 1.0, 0.75),
        ([[2.0, -1e-9]], 1.0, 0.5),
        ([[0.0, 0.0]], 0.5, None),
        ([[-1e-9]], 0.5, None),
    ],
)
def test_carrying_share_of_known_values(
    monkeypatch: pytest.MonkeyPatch, kl_nats: Answers, share: float, expected: float | None
) -> None:
    monkeypatch.setitem(CARRIED, "carriers", share)
    assert divergence_summary(kl_nats)["carriers"] == expected


@given(
    st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=70), min_size=1, max_size=5),
)
def test_positions_partition_the_tokens_and_the_divergence(kl_nats: Answers) -> None:
    rows = position_rows(kl_nats)
    whole = divergence_summary(kl_nats)
    assert sum(row["tokens"] for row in rows) == whole["tokens"]
    assert rows[0]["first"] == 1
    assert rows[-1]["last"] == max(map(len, kl_nats))
    assert all(one["last"] + 1 == other["first"] for one, other in itertools.pairwise(rows))
    if whole["mean_nats"] > 0:
        assert sum(row["share"] for row in rows) == pytest.approx(1.0, rel=1e-9)
    sums = sum(row["mean_nats"] * row["tokens"] for row in rows)
    assert sums == pytest.approx(whole["mean_nats"] * whole["tokens"], rel=1e-9, abs=1e-300)


def test_position_rows_of_known_answers() -> None:
    first, second, third = position_rows([[1.0, 2.0, 4.0, 6.0], [3.0], [2.0, 0.0, 2.0]])
    assert [(r["first"], r["last"]) for r in (first, second, third)] == [(1, 1), (2, 2), (3, 4)]
    assert [(r["answers"], r["tokens"]) for r in (first, second, third)] == [(3, 3), (2, 2), (2, 3)]
    assert (first["mean_nats"], second["mean_nats"], third["mean_nats"]) == (2.0, 1.0, 4.0)
    assert [r["share"] for r in (first, second, third)] == [0.3, 0.1, 0.6]
    assert first["se_nats"] == pytest.approx(math.sqrt(1 / 3), rel=1e-12)
    assert third["se_nats"] == pytest.approx(twin.clustered_error([[4.0, 6.0], [2.0]]), rel=1e-12)


def test_no_divergence_has_no_shares() -> None:
    assert [row["share"] for row in position_rows([[0.0, 0.0, 0.0]])] == [None, None, None]


@pytest.mark.parametrize("function", [divergence_summary, position_rows])
def test_what_cannot_be_summed_up_is_refused(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="0 answers of 0 tokens"):
        function([])
    with pytest.raises(ConfigError, match="2 answers of 1 tokens"):
        function([[1.0], []])
    for value in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="token 1 has a divergence of"):
            function([[1.0, value]])
