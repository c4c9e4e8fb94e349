"""The statistics of bench/accept.py: rates with known values, and what is a fair bootstrap."""

import math
import random

import pytest
from bench.accept import (
    PAPER,
    PROMPTS,
    RULES,
    SCALES,
    Cached,
    Stored,
    acceptance_rates,
    rows,
    search_scores,
)

from effopd.evaluation.importance_kl import ImportanceKLValidation, weighted_kl
from effopd.search.validation import PairedMargin, Strict

POOL = 120
MODELS = 1 + len(SCALES)
DENSE = RULES["dense"]


def noise(seed: int) -> list[list[float]]:
    """Independent normal scores of tip and candidates."""
    rng = random.Random(seed)
    return [[rng.gauss(0, 1) for _ in range(POOL)] for _ in range(MODELS)]


def shifted(first: float, seed: int = 0) -> list[list[float]]:
    """The tip's scores, and candidates ever further above by `first` with a little noise."""
    rng = random.Random(seed)
    tip = [rng.gauss(0, 1) for _ in range(POOL)]
    return [[value + first * k + rng.gauss(0, 0.1) for value in tip] for k in range(MODELS)]


def test_candidates_that_are_better_everywhere_are_always_accepted_and_worse_ones_never() -> None:
    for sign, rate in ((1, 1.0), (-1, 0.0)):
        found = acceptance_rates([Stored(shifted(sign))], DENSE, trials=20)
        assert set(found.values()) == {rate}
        assert len(found) == len(DENSE)


def test_pure_noise_is_accepted_as_often_as_a_normal_number_exceeds_z() -> None:
    found = acceptance_rates([Stored(noise(0), exchangeable=True)], DENSE, trials=2000)
    for z in (1.0, 1.28, 1.65, 2.0):
        tail = 0.5 * math.erfc(z / math.sqrt(2))
        assert found[f"dense z={z:g}"] == pytest.approx(tail, abs=0.03)
    assert found["dense >"] == pytest.approx(0.5, abs=0.04)


def test_without_the_shuffle_one_lucky_set_of_answers_would_decide() -> None:
    values = noise(0)
    values[1] = [value + 0.5 for value in values[1]]
    lucky = acceptance_rates([Stored(values)], DENSE, trials=300)
    shuffled = acceptance_rates([Stored(values, exchangeable=True)], DENSE, trials=300)
    assert lucky["dense >"] > 0.95
    assert shuffled["dense >"] < 0.65


def test_all_models_see_the_same_prompts() -> None:
    numbered = Stored([[float(i) for i in range(POOL)]] * MODELS)
    score_at = search_scores(numbered, random.Random(3))
    assert len({*score_at(0).per_prompt}) == PROMPTS
    assert score_at(4).per_prompt == score_at(0).per_prompt


def test_shuffled_answers_are_each_used_once() -> None:
    """Six models share the six answers of a prompt out among themselves."""
    values = [[10.0 * i + m for i in range(POOL)] for m in range(MODELS)]
    score_at = search_scores(Stored(values, exchangeable=True), random.Random(5))
    columns = zip(*(score_at(m).per_prompt for m in range(MODELS)), strict=True)
    owners = [sorted(value % 10 for value in column) for column in columns]
    assert owners == [[float(m) for m in range(MODELS)]] * PROMPTS
    assert len({score_at(0).per_prompt[i] % 10 for i in range(PROMPTS)}) == MODELS


def cached(k: float, settings: ImportanceKLValidation) -> Cached:
    """A candidate whose tokens are `k` nats more likely than the tip's, at half the divergence."""
    tip = [(-1.0, -2.0)] * POOL
    ours = [(-1.0 + k, -2.0)] * POOL
    return Cached([tip, *[ours] * 5], [[(0.2, 0.4)] * POOL, *[[(0.1, 0.2)] * POOL] * 5], settings)


def test_cached_scores_are_those_of_the_validator_and_beyond_trust_there_are_none() -> None:
    trusting = cached(0.1, ImportanceKLValidation())
    score = trusting.score_at(1, range(50), random.Random(0))
    expected = weighted_kl([(-0.9, -2.0)] * 50, [(-1.0, -2.0)] * 50, [(0.1, 0.2)] * 50, "token")
    assert score.per_prompt == tuple(-value for value in expected.per_answer_nats)
    assert score.value == pytest.approx(-0.15)
    rules = {"cached >": Strict(), "cached z=2": PairedMargin(z=2.0)}
    assert set(acceptance_rates([trusting], rules, trials=3).values()) == {1.0}
    distrusted = cached(0.1, ImportanceKLValidation(trust_nats=1e-4))
    assert set(acceptance_rates([distrusted], rules, trials=3).values()) == {0.0}


def test_rows_say_how_many_times_better_than_the_paper() -> None:
    found = {PAPER: 0.5, "dense >": 0.0}
    assert [row["ratio"] for row in rows("noise", 0.5, found, trials=100)] == [1.0, 50.0]
    found = {PAPER: 0.5, "dense >": 1.0}
    gain = list(rows("gain 2.0%", 0.5, found, trials=100))
    assert [row["ratio"] for row in gain] == [1.0, 2.0]
    assert gain[1]["setting"] == "point 0.5, dense >"
    assert (gain[1]["ours"], gain[1]["peer"]) == (1.0, 0.5)
