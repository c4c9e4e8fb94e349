"""Prompts of a draw, and the score of answers."""

import math

import pytest
import torch

from effopd import Draw, LengthGuard
from effopd.errors import ValidatorError
from effopd.integrations.verl.scoring import (
    ServedAnswer,
    drawn_prompts,
    log_ratios,
    score_answers,
)
from effopd.integrations.verl.settings import RewardValidation, ServedKLValidation


def answer(*ratios: float, reward: float = 0.0, cut: bool = False) -> ServedAnswer:
    return ServedAnswer(tokens=len(ratios), is_truncated=cut, reward=reward, log_ratios=ratios)


def test_the_fixed_set_is_the_same_at_every_step() -> None:
    fixed = RewardValidation(prompts=5)
    first = drawn_prompts(40, fixed, 3, Draw(step=1))
    assert first == drawn_prompts(40, fixed, 3, Draw(step=64, scale=2.0))
    assert len(set(first)) == 5
    assert first != drawn_prompts(40, fixed, 4, Draw(step=1))


def test_resampled_sets_differ_from_search_to_search_alone() -> None:
    each = RewardValidation(prompts=5, resample=True)
    first = drawn_prompts(40, each, 3, Draw(step=1))
    assert first == drawn_prompts(40, each, 3, Draw(step=1, scale=2.0))
    assert first != drawn_prompts(40, each, 3, Draw(step=2))


def test_a_small_training_set_is_taken_whole() -> None:
    assert sorted(drawn_prompts(3, RewardValidation(), 0, Draw(step=1))) == [0, 1, 2]


ANSWERS = [answer(0.5, -0.25, reward=1.0), answer(1.0, reward=0.0, cut=True)]


def test_rewards_are_averaged() -> None:
    score = score_answers(ANSWERS, RewardValidation())
    assert (score.value, score.per_prompt) == (0.5, (1.0, 0.0))
    assert (score.tokens, score.teacher_tokens) == (3, 0)
    assert (score.mean_length, score.truncated_share) == (1.5, 0.5)


def test_the_divergence_is_a_mean_a_token_or_a_sum_an_answer() -> None:
    token = score_answers(ANSWERS, ServedKLValidation())
    assert token.per_prompt == (-0.125, -1.0)
    assert token.value == -0.5625
    assert token.teacher_tokens == 3
    sequence = score_answers(ANSWERS, ServedKLValidation(reduce="sequence"))
    assert sequence.per_prompt == (-0.25, -1.0)


def test_the_guard_sees_lengths_and_truncation() -> None:
    tip = score_answers([answer(0.1), answer(0.1)], ServedKLValidation())
    assert LengthGuard().objection(score_answers(ANSWERS, ServedKLValidation()), tip) is not None
    assert LengthGuard().objection(tip, tip) is None


def test_answers_without_tokens_or_scores_are_no_score() -> None:
    with pytest.raises(ValidatorError, match="empty answer"):
        score_answers([answer()], RewardValidation())
    unscored = ServedAnswer(tokens=2, is_truncated=False, reward=0.0, log_ratios=(0.1,))
    with pytest.raises(ValidatorError, match="scored 1 of 2"):
        score_answers([unscored], ServedKLValidation())
    infinite = score_answers([answer(math.inf)], ServedKLValidation())
    assert not infinite.is_finite


def test_tokens_of_tools_are_not_scored() -> None:
    """verl's response_mask is 0 where a tool wrote: a prompt of 3 tokens, a response of 6."""
    student = torch.tensor([-1.0, -2.0, -9.0, -9.0, -3.0, -0.5])
    teacher = torch.tensor([[float(-i)] for i in range(9)]) / 4  # row i is of token i + 1
    mask = torch.tensor([1, 1, 0, 0, 1, 1]).bool()
    found = log_ratios(3, mask, student, teacher)
    assert found == (-1.0 + 0.5, -2.0 + 0.75, -3.0 + 1.5, -0.5 + 1.75)
    score = score_answers(
        [ServedAnswer(tokens=int(mask.sum()), is_truncated=False, reward=0.0, log_ratios=found)],
        ServedKLValidation(prompts=1),
    )
    assert score.value == pytest.approx(-sum(found) / 4)
    assert (score.tokens, score.teacher_tokens) == (4, 4)
