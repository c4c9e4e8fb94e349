"""Prompts of a draw, and the score of answers."""

import math
from pathlib import Path

import pytest

from effopd import Draw, LengthGuard
from effopd.errors import ValidatorError
from effopd.integrations.verl.log import SearchLog
from effopd.integrations.verl.scoring import ServedAnswer, drawn_prompts, score_of
from effopd.integrations.verl.settings import RewardValidation, ServedKLValidation
from effopd.records import read_jsonl
from effopd.search.line_search import SearchResult
from effopd.search.scales import Trial
from effopd.search.validation import Score


def answer(*ratios: float, reward: float = 0.0, cut: bool = False) -> ServedAnswer:
    return ServedAnswer(tokens=len(ratios), is_truncated=cut, reward=reward, log_ratios=ratios)


def test_the_fixed_set_is_the_same_at_every_step() -> None:
    fixed = RewardValidation(prompts=5)
    first = drawn_prompts(40, fixed, 3, Draw(step=1))
    assert first == drawn_prompts(40, fixed, 3, Draw(step=64, candidate=True))
    assert len(set(first)) == 5
    assert first != drawn_prompts(40, fixed, 4, Draw(step=1))
    assert first != drawn_prompts(40, fixed, 3, Draw(step=1, fresh=True))


def test_resampled_sets_differ_from_search_to_search_alone() -> None:
    each = RewardValidation(prompts=5, resample=True)
    first = drawn_prompts(40, each, 3, Draw(step=1))
    assert first == drawn_prompts(40, each, 3, Draw(step=1, candidate=True))
    assert first != drawn_prompts(40, each, 3, Draw(step=2))


def test_a_small_training_set_is_taken_whole() -> None:
    assert sorted(drawn_prompts(3, RewardValidation(), 0, Draw(step=1))) == [0, 1, 2]


ANSWERS = [answer(0.5, -0.25, reward=1.0), answer(1.0, reward=0.0, cut=True)]


def test_rewards_are_averaged() -> None:
    score = score_of(ANSWERS, RewardValidation())
    assert (score.value, score.per_prompt) == (0.5, (1.0, 0.0))
    assert (score.tokens, score.teacher_tokens) == (3, 0)
    assert (score.mean_length, score.truncated_share) == (1.5, 0.5)


def test_the_divergence_is_a_mean_a_token_or_a_sum_an_answer() -> None:
    token = score_of(ANSWERS, ServedKLValidation())
    assert token.per_prompt == (-0.125, -1.0)
    assert token.value == -0.5625
    assert token.teacher_tokens == 3
    sequence = score_of(ANSWERS, ServedKLValidation(reduce="sequence"))
    assert sequence.per_prompt == (-0.25, -1.0)


def test_the_guard_sees_lengths_and_truncation() -> None:
    tip = score_of([answer(0.1), answer(0.1)], ServedKLValidation())
    assert LengthGuard().objection(score_of(ANSWERS, ServedKLValidation()), tip) is not None
    assert LengthGuard().objection(tip, tip) is None


def test_answers_without_tokens_or_scores_are_no_score() -> None:
    with pytest.raises(ValidatorError, match="empty answer"):
        score_of([answer()], RewardValidation())
    unscored = ServedAnswer(tokens=2, is_truncated=False, reward=0.0, log_ratios=(0.1,))
    with pytest.raises(ValidatorError, match="scored 1 of 2"):
        score_of([unscored], ServedKLValidation())
    infinite = score_of([answer(math.inf)], ServedKLValidation())
    assert not infinite.is_finite


def result(step: int) -> SearchResult:
    trials = tuple(
        Trial(kind=kind, scale=scale, score=Score(value=-scale, tokens=7), accepted=accepted)  # type: ignore[arg-type]
        for kind, scale, accepted in (("incumbent", 1.0, None), ("candidate", 2.0, False))
    )
    return SearchResult(step=step, accepted_scale=1.0, trials=trials)


def test_a_resumed_log_has_no_row_twice(tmp_path: Path) -> None:
    log = SearchLog(tmp_path, 0)
    for step in (1, 2, 4):
        log.write(result(step))
    SearchLog(tmp_path, 2).write(result(4))
    rows = read_jsonl(tmp_path / "search.jsonl")
    assert [(row["step"], row["trial"]) for row in rows] == [
        (step, trial) for step in (1, 2, 4) for trial in (0, 1)
    ]
    assert rows[1] == {
        "schema": 1, "step": 1, "trial": 1, "kind": "candidate", "scale": 2.0, "score": -2.0,
        "score_se": None, "accepted": False, "reason": "", "truncation": 0.0, "tokens": 7,
        "seconds": 0.0,
    }  # fmt: skip


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    SearchLog(tmp_path, 0).write(result(1))
    SearchLog(tmp_path, 0)
    assert read_jsonl(tmp_path / "search.jsonl") == []
