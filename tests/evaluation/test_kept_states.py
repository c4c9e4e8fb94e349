"""Hidden states of answers: kept while they are at hand, as they were made, within their room."""

import pytest
import torch
from tests.fakes import policy_writer, tiny_policy

from effopd.data.problem import Problem
from effopd.evaluation.kept_states import KeptStates
from effopd.models.policy import Policy
from effopd.rollouts.rollout import Rollout, total_tokens
from effopd.training.teachers import StudentAverage

POLICY, OTHER = tiny_policy(0), tiny_policy(1)
PROBLEMS = [Problem(id=f"p-{i}", prompt=f"{i} + 4 =") for i in range(6)]
ROLLOUTS = policy_writer(POLICY).answer(PROBLEMS, range(6))
SAMPLES = [rollout.sample for rollout in ROLLOUTS]
TOKENS = total_tokens(ROLLOUTS)
BYTES = TOKENS * 32 * 4


def states(kept: KeptStates, policy: Policy = POLICY, key: str = "one") -> torch.Tensor:
    return kept.head(key, policy, ROLLOUTS, SAMPLES).hidden_ND


def alone(policy: Policy, rollouts: list[Rollout] = ROLLOUTS) -> torch.Tensor:
    """Every answer in a pass of its own."""
    with torch.no_grad():
        return torch.cat([policy.states([rollout.sample]).hidden_ND for rollout in rollouts])


@pytest.mark.parametrize("batch_tokens", [1000, 12])
def test_kept_states_are_those_of_every_answer_alone(batch_tokens: int) -> None:
    kept = KeptStates()
    kept.hold(ROLLOUTS)
    kept.fill("one", POLICY, ROLLOUTS, SAMPLES, batch_tokens=batch_tokens)
    kept.fill("other", OTHER, ROLLOUTS, SAMPLES, batch_tokens=batch_tokens)
    assert kept.bytes == 2 * BYTES
    for key, policy in (("one", POLICY), ("other", OTHER)):
        torch.testing.assert_close(states(kept, policy, key), alone(policy), rtol=1e-5, atol=1e-6)
        assert kept.tokens_read[key] == TOKENS
        assert states(kept, policy, key).requires_grad is False
    order = [3, 0, 5]
    found = kept.head("one", POLICY, [ROLLOUTS[i] for i in order], [SAMPLES[i] for i in order])
    expected = alone(POLICY, [ROLLOUTS[i] for i in order])
    torch.testing.assert_close(found.hidden_ND, expected, rtol=1e-5, atol=1e-6)


def test_only_answers_at_hand_are_kept() -> None:
    kept = KeptStates()
    kept.fill("one", POLICY, ROLLOUTS, SAMPLES)
    assert (kept.bytes, kept.tokens_read["one"]) == (0, 0)
    kept.hold(ROLLOUTS[:4])
    kept.fill("one", POLICY, ROLLOUTS, SAMPLES)
    assert kept.missing("one", ROLLOUTS) == [4, 5]
    kept.hold(ROLLOUTS[2:])
    assert kept.missing("one", ROLLOUTS) == [0, 1, 4, 5]
    kept.fill("one", POLICY, ROLLOUTS, SAMPLES)
    assert kept.missing("one", ROLLOUTS) == [0, 1]
    assert kept.tokens_read["one"] == TOKENS - total_tokens(ROLLOUTS[:0])
    kept.release()
    assert kept.bytes == 0
    assert kept.missing("one", ROLLOUTS) == list(range(6))


def test_equal_answers_that_are_others_are_read_on_their_own() -> None:
    kept = KeptStates()
    kept.hold(ROLLOUTS)
    kept.fill("one", POLICY, ROLLOUTS, SAMPLES)
    again = policy_writer(POLICY).answer(PROBLEMS, range(6))
    assert again == ROLLOUTS
    assert kept.missing("one", again) == list(range(6))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_what_finds_no_room_is_read_again_and_reported_once(share: float) -> None:
    said: list[str] = []
    kept = KeptStates(share * BYTES / 1e9, report=said.append)
    kept.hold(ROLLOUTS)
    for _ in range(2):
        kept.fill("one", POLICY, ROLLOUTS, SAMPLES)
    assert kept.bytes <= share * BYTES
    left = kept.missing("one", ROLLOUTS)
    assert left == list(range(6))[-len(left) :]
    assert len(said) == 1
    assert (
        f"holds the hidden states of {6 - len(left)} of 6 answers under one: the others" in said[0]
    )
    before = kept.tokens_read["one"]
    assert before == TOKENS - sum(len(SAMPLES[i].completion_ids) for i in left)
    torch.testing.assert_close(states(kept), alone(POLICY), rtol=1e-5, atol=1e-6)
    assert kept.tokens_read["one"] == TOKENS


def test_a_model_that_moves_stays_as_it_was_when_it_was_scored() -> None:
    policy, kept = tiny_policy(0), KeptStates(0.0, moving={"one"})
    kept.hold(ROLLOUTS)
    kept.fill("one", policy, ROLLOUTS, SAMPLES)
    before = kept.head("one", policy, ROLLOUTS, SAMPLES)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.5)
    after = kept.head("one", policy, ROLLOUTS, SAMPLES)
    assert torch.equal(after.hidden_ND, before.hidden_ND)
    assert torch.equal(after.weight_VD, POLICY.head_weight_VD)
    kept.hold(ROLLOUTS)  # scored anew, by the weights of now
    kept.fill("one", policy, ROLLOUTS, SAMPLES)
    now = kept.head("one", policy, ROLLOUTS, SAMPLES)
    assert torch.equal(now.weight_VD, policy.head_weight_VD)
    torch.testing.assert_close(now.hidden_ND, alone(policy), rtol=1e-5, atol=1e-6)


def test_an_average_that_moves_drops_what_it_was_scored_by() -> None:
    teacher, kept = tiny_policy(1), KeptStates()
    average = StudentAverage(teacher, tiny_policy(0), 0.5, kept.release)
    kept.hold(ROLLOUTS)
    kept.fill("one", teacher, ROLLOUTS, SAMPLES)
    average.update_()
    assert kept.missing("one", ROLLOUTS) == list(range(6))
    torch.testing.assert_close(states(kept, teacher), alone(teacher), rtol=1e-5, atol=1e-6)


def test_dropout_is_off_while_states_are_made() -> None:
    policy, kept = tiny_policy(0), KeptStates()
    policy.model.train()
    modes: list[bool] = []
    policy.model.model.register_forward_hook(lambda module, i, out: modes.append(module.training))
    kept.hold(ROLLOUTS)
    kept.fill("one", policy, ROLLOUTS, SAMPLES)
    assert modes == [False]
    assert policy.model.training
