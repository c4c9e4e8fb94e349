"""Answers with tokens that are not learned: the sum over learned tokens, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.support.learning import accumulate, assert_same, batch, gradient, precise_policy

from effopd.data.problem import Problem
from effopd.evaluation.logprobs import completion_log_probs, completion_reverse_kl
from effopd.evaluation.routing import Teachers
from effopd.evaluation.validators import teacher_kl_measure
from effopd.methods import ExOPD, FullVocabularyKL, Objective, PolicyGradient, Resources
from effopd.methods.opd import SampledTokenOPD
from effopd.models.policy import Sample
from effopd.rollouts.engine import Completion
from effopd.rollouts.rollout import Rollout, mean_length, total_tokens

STUDENT, TEACHER, REFERENCE = precise_policy(0), precise_policy(1), precise_policy(3)
PROBLEM = Problem(id="p", prompt="3 + 4 =")


def rollout(prompt: Sequence[int], tokens: Sequence[int], mask: str | None = None) -> Rollout:
    """An answer whose tokens "_" in the mask are an environment's."""
    learned = None if mask is None else tuple(mark != "_" for mark in mask)
    count = len(tokens) if learned is None else sum(learned)
    log_probs = tuple(-1.0 - (token % 5) / 4 for token in tokens)
    kept = log_probs if learned is None else [
        value for value, is_learned in zip(log_probs, learned, strict=True) if is_learned
    ]  # fmt: skip
    assert len(kept) == count
    return Rollout(
        problem=PROBLEM,
        prompt_ids=tuple(prompt),
        completion=Completion(
            token_ids=tuple(tokens),
            log_probs=tuple(kept),
            finish_reason="stop",
            text="",
            learned=learned,
        ),
    )


PROMPT = (1, 6, 10, 7, 13)
TOKENS = [(6, 10, 7, 2, 4, 5, 14, 3, 15, 5, 2), (9, 2, 3, 3, 8, 15, 7, 2), (15, 4, 2)]
MASKS = ["ssss__ss_ss", "ss__ssss", "sss"]
WHOLE = [rollout(PROMPT, t, m if "_" in m else None) for t, m in zip(TOKENS, MASKS, strict=True)]
PIECES = [
    [(0, 4), (6, 8), (9, 11)],
    [(0, 2), (4, 8)],
    [(0, 3)],
]
SPLIT = [
    [rollout((*PROMPT, *tokens[:start]), tokens[start:end]) for start, end in spans]
    for tokens, spans in zip(TOKENS, PIECES, strict=True)
]
"""The same as answers of one turn each, whose prompts hold all that came before."""
FLAT = [piece for pieces in SPLIT for piece in pieces]
DISTILLING: list[Objective] = [
    SampledTokenOPD(importance_cap=1.2),
    ExOPD(reward_scale=1.25),
    FullVocabularyKL(),
    FullVocabularyKL(divergence="jsd", reward_scale=1.2),
]


def learned_from(
    objective: Objective, answers: Sequence[Rollout], rewards: Sequence[float] = (), size: int = 1
) -> tuple[float, torch.Tensor, dict[str, float], int]:
    """Loss, gradient, sums of the metrics and scored tokens of a batch."""
    resources = Resources(
        student=STUDENT, teachers=Teachers.single(TEACHER), reference=REFERENCE, longest=12
    )
    learner = objective.learner(resources)
    scored = learner.prepare(batch(answers, rewards, size))
    parts = accumulate(learner, answers, range(len(answers)), (1,))
    sums = {name: sum(float(part.sums[name]) for part in parts) for name in parts[0].sums}
    loss = sum(part.loss.item() for part in parts)
    return loss, gradient(STUDENT.model.parameters()), sums, scored


@pytest.mark.parametrize("objective", DISTILLING, ids=lambda each: f"{each.type}")
def test_a_masked_answer_is_the_sum_over_its_turns(objective: Objective) -> None:
    loss, found, sums, scored = learned_from(objective, WHOLE)
    expected_loss, expected, expected_sums, expected_scored = learned_from(objective, FLAT)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same(found, expected)
    assert sums == pytest.approx(expected_sums, rel=1e-6)
    assert scored == expected_scored == total_tokens(WHOLE) == total_tokens(FLAT) == 17


def test_rewards_teach_the_turns_of_an_answer_alike() -> None:
    twice = [WHOLE[1], replace(WHOLE[1], completion=WHOLE[1].completion), WHOLE[0], WHOLE[0]]
    rewards = (1.0, 0.0, 0.0, 0.5)
    objective = PolicyGradient.grpo()
    pieces = [*SPLIT[1], *SPLIT[0]]
    flat = [piece for piece in pieces for _ in range(2)]
    each = (1.0, 0.0) * len(SPLIT[1]) + (0.0, 0.5) * len(SPLIT[0])
    token = replace(objective, aggregation="token", kl_coefficient=0.2)
    loss, found, *_ = learned_from(token, twice, rewards, 2)
    expected_loss, expected, *_ = learned_from(token, flat, each, 2)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same(found, expected)


@pytest.mark.parametrize(
    "objective",
    [*DISTILLING, PolicyGradient.ppo(), PolicyGradient.dapo(longest=12)],
    ids=lambda each: f"{each.type}",
)
def test_all_learned_is_the_same_as_no_mask_bit_for_bit(objective: Objective) -> None:
    plain = [rollout(PROMPT, tokens) for tokens in TOKENS[:2]]
    marked = [rollout(PROMPT, tokens, "s" * len(tokens)) for tokens in TOKENS[:2]]
    rewards = (1.0, 0.0) if objective.needs_rewards else ()
    responses = 2 if rewards else 1
    one, two = (learned_from(objective, each, rewards, responses) for each in (plain, marked))
    assert one[0] == two[0]
    assert torch.equal(one[1], two[1])
    assert one[2:] == two[2:]


def test_values_are_those_of_learned_tokens() -> None:
    whole, flat = ([r.sample for r in each] for each in (WHOLE, FLAT))
    for values in (
        completion_log_probs,
        lambda policy, samples: completion_reverse_kl(policy, TEACHER, samples),
    ):
        found, pieces = values(STUDENT, whole), iter(values(STUDENT, flat))
        for own, spans in zip(found, PIECES, strict=True):
            expected = [value for _ in spans for value in next(pieces)]
            assert own == pytest.approx(expected, abs=1e-6)
    measure = teacher_kl_measure(STUDENT, Teachers.single(TEACHER), "sequence")
    sums = [sum(measure(pieces)) for pieces in SPLIT]
    assert measure(WHOLE) == pytest.approx(sums, abs=1e-6)


def test_the_critic_values_learned_tokens_alone() -> None:
    """A change of what the environment wrote last, behind all learned tokens, changes nothing."""
    objective = PolicyGradient.ppo()
    ends = [rollout(PROMPT, (*TOKENS[0], last), "ssss__ss_ss_") for last in (3, 8)]
    found = [learned_from(objective, [each, WHOLE[2]], (1.0, 0.0), 1) for each in ends]
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_lengths_and_spans() -> None:
    assert mean_length(WHOLE) == 17 / 3
    assert [each.completion.masked for each in WHOLE] == [[[4, 6], [8, 9]], [[2, 4]], []]
    spread = WHOLE[1].completion.per_token([1, 2, 3, 4, 5, 6])
    assert spread == [1, 2, None, None, 3, 4, 5, 6]
    assert WHOLE[2].completion.per_token([1, 2, 3]) == [1, 2, 3]
    assert Sample(prompt_ids=(1,), completion_ids=(2, 3), learned=(False, True)).learned_ids == (3,)
