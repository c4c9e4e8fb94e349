"""Benchmark statistics against closed forms, counting, and simulated coverage."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.errors import ConfigError
from effopd.evaluation.statistics import (
    EXACT_QUESTIONS,
    average,
    chance_of_pass,
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


def test_intervals_cover_the_truth_of_other_questions() -> None:
    """Questions of random difficulty, four samples each: the true accuracy is 1/2."""
    generator = random.Random(0)
    covered = 0
    for _ in range(400):
        chances = [generator.random() for _ in range(40)]
        rewards = [[float(generator.random() < c) for _ in range(4)] for c in chances]
        low, high = average(rewards).interval or (1.0, 0.0)
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / 400 <= 0.98


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
    assert chance_of_pass(samples, right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_1_is_the_average_and_grows_with_k() -> None:
    rewards = [[1.0, 0.0, 0.0, 0.0], [0.0] * 4, [1.0, 1.0, 0.0, 1.0]]
    assert pass_at_k(rewards, 1).mean == pytest.approx(average(rewards).mean)
    values = [pass_at_k(rewards, k).mean for k in (1, 2, 4)]
    assert values == pytest.approx([1 / 3, 0.5, 2 / 3])


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


def test_equal_models_are_told_apart_as_often_as_the_p_value_says() -> None:
    generator = random.Random(0)
    values = [sign_flip_p_value([generator.gauss(0, 1) for _ in range(12)]) for _ in range(400)]
    assert sum(p <= 0.05 for p in values) / 400 == pytest.approx(0.05, abs=0.03)
    assert sum(p <= 0.5 for p in values) / 400 == pytest.approx(0.5, abs=0.08)


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
