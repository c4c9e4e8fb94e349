"""Benchmark statistics against closed forms, counting, and simulated coverage."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.errors import ConfigError
from effopd.evaluation.statistics import (
    EXACT_QUESTIONS,
    average,
    compare,
    majority,
    pass_at_k,
    sign_flip_p_value,
)

REWARDS = st.lists(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=5), min_size=2, max_size=8
)


@given(REWARDS)
def test_average_is_the_mean_of_means_with_the_spread_over_questions(
    rewards: list[list[float]],
) -> None:
    found = average(rewards)
    means = [statistics.fmean(each) for each in rewards]
    assert found.mean == pytest.approx(statistics.fmean(means))
    expected = statistics.stdev(means) / math.sqrt(len(means))
    assert found.standard_error == pytest.approx(expected, abs=1e-12)
    within = sum(statistics.variance(each) / len(each) for each in rewards)
    assert found.sampling_error == pytest.approx(math.sqrt(within) / len(rewards), abs=1e-12)


def test_one_question_or_one_sample_have_no_error() -> None:
    assert average([[1.0, 0.0]]).standard_error is None
    assert average([[1.0, 0.0]]).interval is None
    assert average([[1.0], [0.0]]).sampling_error is None


# Intervals ----------------------------------------------------------------------------------------


def wilson(mean: float, trials: float) -> tuple[float, float]:
    """Where `|mean - t| = 1.96 sqrt(t (1 - t) / trials)`, by bisection from the mean."""

    def end(inside: float, outside: float) -> float:
        for _ in range(100):
            middle = (inside + outside) / 2
            near = abs(mean - middle) <= 1.959963984540054 * math.sqrt(
                middle * (1 - middle) / trials
            )
            inside, outside = (middle, outside) if near else (inside, middle)
        return inside

    return end(mean, 0.0), end(mean, 1.0)


def difficulties(
    rng: np.random.Generator, mean: float, alike: float, shape: tuple[int, int]
) -> np.ndarray:
    """Chances of questions: never or always right (alike 0), of beta distributions, or equal."""
    if alike == 0:
        return (rng.random(shape) < mean).astype(float)
    if alike == math.inf:
        return np.full(shape, mean)
    return rng.beta(mean * alike, (1 - mean) * alike, shape)


def rows(right: np.ndarray, samples: int) -> list[list[float]]:
    return [[1.0] * k + [0.0] * (samples - k) for k in right.tolist()]


@pytest.mark.parametrize("mean", [0.02, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("alike", [0, 0.3, 10])
def test_intervals_cover_the_truth_on_few_and_hard_questions(mean: float, alike: float) -> None:
    """30 questions x 8 samples, 1,000 benchmarks; a share of 0.95 is seen to 0.007."""
    rng = np.random.default_rng([int(1000 * mean), int(10 * alike)])
    right = rng.binomial(8, difficulties(rng, mean, alike, (1000, 30)))
    found = [average(rows(each, 8)).interval for each in right]
    assert all(0 <= low < high <= 1 for low, high in found)
    covered = sum(low <= mean <= high for low, high in found) / 1000
    # All-or-nothing questions are 30 coins, whose coverage no interval can move smoothly.
    assert (0.915 if alike == 0 else 0.925) <= covered <= 0.987


@pytest.mark.parametrize(("questions", "samples"), [(30, 64), (30, 1), (100, 4)])
def test_intervals_cover_the_truth_at_other_sizes(questions: int, samples: int) -> None:
    mean = 0.05
    rng = np.random.default_rng(0)
    right = rng.binomial(samples, difficulties(rng, mean, 0.5, (800, questions)))
    found = [average(rows(each, samples)).interval for each in right]
    assert 0.925 <= sum(low <= mean <= high for low, high in found) / 800 <= 0.98


@pytest.mark.parametrize("kind", ["better", "some solved"])
@pytest.mark.parametrize("mean", [0.02, 0.95])
def test_paired_intervals_cover_the_truth_where_few_questions_differ(
    kind: str, mean: float
) -> None:
    rng = np.random.default_rng(int(1000 * mean))
    before = difficulties(rng, mean, 1, (400, 30))
    solved = rng.random(before.shape) < 0.1
    after = before + 0.05 * (1 - before) if kind == "better" else np.where(solved, 1.0, before)
    truth = (0.05 if kind == "better" else 0.1) * (1 - mean)
    first, second = rng.binomial(8, after), rng.binomial(8, before)
    found = [compare(rows(a, 8), rows(b, 8)).interval for a, b in zip(first, second, strict=True)]
    assert sum(low <= truth <= high for low, high in found) / 400 >= 0.9


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_an_interval_of_none_or_all_is_the_rule_of_three(right: float) -> None:
    interval = average([[right] * 8] * 30).interval
    low, high = interval if right == 0 else (1 - interval[1], 1 - interval[0])
    assert low == 0.0
    assert high == pytest.approx(1.959964**2 / (30 + 1.959964**2))
    assert 3 / 30 < high < 0.12


def test_an_interval_is_wilsons_of_the_questions_that_count() -> None:
    coins = [[1.0]] * 7 + [[0.0]] * 13
    assert average(coins).interval == pytest.approx(wilson(7 / 20, 20))
    sure = [[1.0] * 5] * 7 + [[0.0] * 5] * 13  # more samples of the same tell nothing new
    assert average(sure).interval == pytest.approx(wilson(7 / 20, 20))
    equal = [[1.0, 0.0]] * 400  # 800 independent samples, but for the doubt
    assert average(equal).interval == pytest.approx(wilson(0.5, 800), abs=2e-4)
    means = [0.5, 0.25, 0.0, 0.0]
    share = statistics.variance(means) / (0.1875 * 0.8125)
    spread = 0.75**2 / 0.3125 - 1
    trials = 4 * (spread + 0.5) / (spread * share + 0.5)
    rewards = [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4]
    assert average(rewards).interval == pytest.approx(wilson(0.1875, trials))


def test_passes_and_votes_have_such_intervals_too() -> None:
    hard = [[0.0] * 8] * 30
    for found in (pass_at_k(hard, 4), majority([["1"] * 8] * 30, hard)):
        assert found.interval == pytest.approx((0.0, 0.1135), abs=1e-4)
    some = [[1.0, 0.0, 0.0]] * 3 + [[0.0] * 3] * 9
    assert pass_at_k(some, 3).interval == pytest.approx(wilson(0.25, 12))
    answers = [["1", "2", "2"]] * 9 + [["1", "1", "2"]] * 3
    rewards = [[1.0, 0.0, 0.0]] * 9 + [[1.0, 1.0, 0.0]] * 3
    assert majority(answers, rewards).interval == pytest.approx(wilson(0.25, 12))


@given(REWARDS)
def test_intervals_hold_the_mean_and_are_mirrored(rewards: list[list[float]]) -> None:
    low, high = average(rewards).interval
    assert 0 <= low <= average(rewards).mean <= high <= 1
    assert high - low > 0.01
    mirrored = average([[1 - r for r in each] for each in rewards]).interval
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_models_that_answer_alike_may_differ_a_little() -> None:
    hard, easy = [[0.0] * 8] * 30, [[1.0] * 8] * 30
    for same in (hard, easy):
        found = compare(same, same)
        assert found.interval == pytest.approx((-0.1135, 0.1135), abs=1e-4)
        assert (found.difference, found.p_value) == (0.0, 1.0)
    low, high = compare(easy, hard).interval
    assert (low, high) == (pytest.approx(1 - 0.1135, abs=1e-4), 1.0)
    spread = [[float(i % 3 == 0)] for i in range(200)], [[float(i % 2)] for i in range(200)]
    found = compare(*spread)
    half = 1.959964 * found.standard_error
    assert found.interval == pytest.approx(
        (found.difference - half, found.difference + half), abs=1e-5
    )


# Statistics ---------------------------------------------------------------------------------------


def test_sampling_error_is_the_spread_of_repeated_answers() -> None:
    generator = random.Random(0)
    chances = [generator.random() for _ in range(30)]
    runs = [
        average([[float(generator.random() < c) for _ in range(8)] for c in chances])
        for _ in range(300)
    ]
    seen = statistics.stdev(run.mean for run in runs)
    said = statistics.fmean(run.sampling_error or 0.0 for run in runs)
    assert said == pytest.approx(seen, rel=0.15)


@given(st.integers(1, 8), st.data())
def test_the_chance_of_a_pass_is_that_of_all_subsets(samples: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    subsets = list(itertools.combinations(range(samples), k))
    expected = sum(any(i < right for i in subset) for subset in subsets) / len(subsets)
    rewards = [[1.0] * right + [0.0] * (samples - right)]
    assert pass_at_k(rewards, k).mean == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [0, 3])
def test_pass_at_k_needs_k_samples(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k of 1 to 2, the samples of a question, got {k}"):
        pass_at_k([[1.0, 0.0], [1.0, 0.0, 0.0]], k)


@pytest.mark.parametrize(
    ("answers", "rewards", "expected"),
    [
        (["7", "8", "7"], [1.0, 0.0, 1.0], 1.0),
        (["8", "7", "8"], [0.0, 1.0, 0.0], 0.0),
        (["8", "7"], [0.0, 1.0], 0.0),  # a tie goes to the first
        (["7", "8"], [1.0, 0.0], 1.0),
        ([None, None, "7"], [0.0, 0.0, 1.0], 1.0),  # no answer is no vote
        ([None, ""], [0.0, 0.0], 0.0),
        (["1, 2", "3", "1,2"], [1.0, 0.0, 1.0], 1.0),
        # Values, however they are written, right ones and wrong ones alike.
        ([r"\frac{1}{2}", "0.5", r"\dfrac{1}{2}", "3", "3"], [1.0, 1.0, 1.0, 0.0, 0.0], 1.0),
        (["073", "73", "73.0", "74", "74"], [1.0, 1.0, 1.0, 0.0, 0.0], 1.0),
        ([r"\frac{3}{4}", "0.75", r"\dfrac34", "1", "1"], [0.0, 0.0, 0.0, 1.0, 1.0], 0.0),
        (["x+1", "1+x", "x", "x"], [0.0, 0.0, 1.0, 1.0], 0.0),  # equally many: the first
        (["(B)", "A", "B", "A", "B"], [1.0, 0.0, 1.0, 0.0, 1.0], 1.0),
        # What the check cannot compare is a value of its own; what it found right is one value.
        (["9", "?(", "9", "?("], [0.0, 0.0, 0.0, 0.0], 0.0),
        (["2", "4", "4", "3 m", "3"], [0.0, 0.0, 0.0, 1.0, 1.0], 0.0),
        (["4", "3", "4", "three", "III"], [0.0, 1.0, 0.0, 1.0, 1.0], 1.0),
    ],
)
def test_the_majority_answers(
    answers: list[str | None], rewards: list[float], expected: float
) -> None:
    assert majority([answers], [rewards]).mean == expected


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=8))
def test_the_exact_p_value_counts_all_patterns_of_signs(differences: list[float]) -> None:
    patterns = itertools.product([-1, 1], repeat=len(differences))
    sums = [sum(s * d for s, d in zip(p, differences, strict=True)) for p in patterns]
    expected = statistics.fmean(abs(s) >= abs(sum(differences)) - 1e-9 for s in sums)
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_random_patterns_agree_with_the_binomial_distribution() -> None:
    """Twenty questions, fifteen won: a sign test, whose p-value is 0.0414."""
    differences = [1.0] * 15 + [-1.0] * 5
    assert len(differences) > EXACT_QUESTIONS
    exact = 2 * sum(math.comb(20, i) for i in range(15, 21)) / 2**20
    assert sign_flip_p_value(differences) == pytest.approx(exact, abs=0.006)
    assert sign_flip_p_value([1.0] * 200) == pytest.approx(1 / 20_001)


def test_a_comparison_is_paired() -> None:
    first = [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    second = [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    found = compare(first, second)
    assert (found.difference, found.wins, found.losses) == (0.125, 2, 1)
    differences = [0.5, 0.5, -0.5, 0.0]
    assert found.standard_error == pytest.approx(statistics.stdev(differences) / 2)
    assert found.p_value == sign_flip_p_value(differences) == 1.0
    low, high = found.interval or (0.0, 0.0)
    assert (low + high) / 2 == pytest.approx(0.125)
    mirrored = compare(second, first)
    assert (mirrored.difference, mirrored.p_value) == (-0.125, found.p_value)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ConfigError, match="the same questions, got 1 and 2"):
        compare([[1.0]], [[1.0], [0.0]])
    for rewards in ([], [[1.0], []]):
        with pytest.raises(ConfigError, match="at least one question"):
            average(rewards)
    with pytest.raises(ConfigError, match="not finite"):
        average([[math.nan]])
    for outside in (-0.5, 1.5):
        with pytest.raises(ConfigError, match=rf"a reward is {outside}; expected shares"):
            average([[0.0], [outside]])
