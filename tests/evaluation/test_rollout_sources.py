"""Answers of the training batch as answers of the tip."""

import pytest
from tests.fakes import WORLD, policy_writer, tiny_policy

from effopd.errors import ValidatorError
from effopd.evaluation.importance_kl import ImportanceKLValidation, ImportanceWeightedKLValidator
from effopd.evaluation.rollout_sources import TrainingBatchRollouts
from effopd.evaluation.routing import Teachers
from effopd.rollouts.engine import Sampling
from effopd.rollouts.rollout import mean_length, total_tokens
from effopd.search.validation import Draw

STUDENT = tiny_policy(0)
BATCH = policy_writer(STUDENT).answer(WORLD.load().train[:10], range(10))
SEARCH = Draw(step=3)


def reusing(prompts: int, *, cut: bool = False) -> TrainingBatchRollouts:
    source = TrainingBatchRollouts(sampling=Sampling(max_new_tokens=6), prompts=prompts)
    source.reuse(BATCH, are_cut=cut)
    return source


def test_a_search_gets_the_first_answers_of_the_newest_batch() -> None:
    source = reusing(4)
    assert source.rollouts(SEARCH) == BATCH[:4]
    assert reusing(100).rollouts(SEARCH) == BATCH
    source.reuse(BATCH[5:], are_cut=False)
    assert source.rollouts(SEARCH) == BATCH[5:9]


def test_no_batch_is_an_error() -> None:
    nothing = TrainingBatchRollouts(sampling=Sampling(), prompts=4)
    with pytest.raises(ValidatorError, match="there is no batch"):
        nothing.rollouts(SEARCH)


def test_answers_cut_on_purpose_are_not_truncated() -> None:
    cut = [float(r.completion.finish_reason == "length") for r in BATCH]
    assert 0 < sum(cut) < 10
    assert reusing(10).truncated(BATCH) == cut
    assert reusing(10, cut=True).truncated(BATCH) == [0.0] * 10


def test_a_search_on_the_batch_costs_no_tokens() -> None:
    settings = ImportanceKLValidation(source="batch")
    validate = ImportanceWeightedKLValidator(
        reusing(10), STUDENT, Teachers.single(tiny_policy(1)), settings
    )
    score = validate(SEARCH)
    assert (score.tokens, score.teacher_tokens) == (0, total_tokens(BATCH))
    assert score.mean_length == pytest.approx(mean_length(BATCH))
