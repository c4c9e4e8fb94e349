"""Answers of the training batch as answers of the tip."""

from dataclasses import replace

import pytest
from tests.fakes import WORLD, policy_writer, tiny_policy

from effopd.errors import ConfigError, ValidatorError
from effopd.evaluation.cached_kl import CachedKLValidation, CachedKLValidator
from effopd.evaluation.lent_answers import LentAnswers
from effopd.evaluation.routing import Teachers
from effopd.rollouts.engine import Sampling
from effopd.rollouts.rollout import Rollout, mean_length, total_tokens
from effopd.search.validation import Draw

STUDENT = tiny_policy(0)


def batch() -> list[Rollout]:
    """Ten rollouts, of the levels 0 to 9."""
    problems = [replace(p, level=i) for i, p in enumerate(WORLD.load().train[:10])]
    return policy_writer(STUDENT).answer(problems, range(10))


BATCH = batch()
SEARCH, RE_TEST = Draw(step=3), Draw(step=3, fresh=True)


def lent(prompts: int, levels: tuple[int, int] | None = None, *, cut: bool = False) -> LentAnswers:
    answers = LentAnswers(sampling=Sampling(max_new_tokens=6), prompts=prompts, levels=levels)
    answers.lend(BATCH, are_cut=cut)
    return answers


def test_a_search_gets_the_first_answers_and_a_re_test_the_next() -> None:
    answers = lent(4)
    assert answers.write(SEARCH) == BATCH[:4]
    assert answers.write(RE_TEST) == BATCH[4:8]
    assert lent(100).write(SEARCH) == BATCH


def test_the_next_batch_replaces_the_last() -> None:
    answers = lent(4)
    answers.lend(BATCH[5:], are_cut=False)
    assert answers.write(SEARCH) == BATCH[5:9]


def test_levels_are_selected() -> None:
    assert lent(4, (3, 5)).write(SEARCH) == BATCH[3:6]
    with pytest.raises(ConfigError, match="level from 20 to 30"):
        lent(4, (20, 30))


def test_too_few_answers_are_an_error() -> None:
    nothing = LentAnswers(sampling=Sampling(), prompts=4)
    with pytest.raises(ValidatorError, match="0 answers were lent"):
        nothing.write(SEARCH)
    with pytest.raises(ValidatorError, match="a re-test after 10"):
        lent(10).write(RE_TEST)


def test_answers_cut_on_purpose_are_not_truncated() -> None:
    cut = [r.completion.finish_reason == "length" for r in BATCH]
    assert 0 < sum(cut) < 10
    assert lent(10).truncated_share(BATCH) == sum(cut) / 10
    weights = [2.0 if is_cut else 0.0 for is_cut in cut]
    assert lent(10).truncated_share(BATCH, weights) == pytest.approx(2 * sum(cut) / 10)
    assert lent(10, cut=True).truncated_share(BATCH) == 0.0


def test_a_search_on_the_batch_costs_no_tokens() -> None:
    settings = CachedKLValidation(source="batch")
    validate = CachedKLValidator(lent(10), STUDENT, Teachers.single(tiny_policy(1)), settings)
    score = validate(SEARCH)
    assert (score.tokens, score.teacher_tokens) == (0, total_tokens(BATCH))
    assert score.mean_length == pytest.approx(mean_length(BATCH))
