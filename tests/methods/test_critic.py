"""The critic: zero at first, learns on its own, and comes back bit for bit."""

from collections.abc import Sequence

import pytest
import torch
from tests.fakes import tiny_policy
from tests.support.learning import rollouts

from effopd.errors import CheckpointError
from effopd.methods.policy_gradient import Critic
from effopd.models.policy import Policy
from effopd.objectives import clipped_value_loss, explained_variance

SAMPLES = [answer.sample for answer in rollouts(6, 2)]
LENGTHS = [len(sample.completion_ids) for sample in SAMPLES]
TOKENS = sum(LENGTHS)
TARGETS = torch.cat([torch.full((n,), float(i % 3)) for i, n in enumerate(LENGTHS)])


def taught(critic: Critic, updates: int) -> Critic:
    """The critic after updates towards fixed targets."""
    for _ in range(updates):
        values_N = critic.values(SAMPLES)
        loss_N = clipped_value_loss(values_N, values_N, TARGETS, 1e9)
        (loss_N.sum() / TOKENS).backward()
        critic.update_()
    return critic


def weights(policy: Policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.model.parameters()]


def test_the_first_values_are_zero_whatever_the_answer() -> None:
    critic = Critic(tiny_policy(), lr=1e-3)
    assert torch.equal(critic.values(SAMPLES), torch.zeros(TOKENS))
    assert torch.equal(critic.all_values(SAMPLES), torch.zeros(TOKENS))


def test_updates_move_the_critic_towards_its_targets_and_nothing_else() -> None:
    student = tiny_policy()
    before = weights(student)
    critic = Critic(student, lr=3e-3)
    explained = []
    for _ in range(4):
        explained.append(explained_variance(TARGETS, critic.all_values(SAMPLES)))
        taught(critic, 15)
    assert explained[0] == 0.0
    assert explained == sorted(explained)
    assert explained[-1] is not None
    assert explained[-1] > 0.8
    assert all(torch.equal(a, b) for a, b in zip(before, weights(student), strict=True))
    assert all(parameter.grad is None for parameter in student.model.parameters())


def test_a_value_depends_on_the_tokens_before_it_alone() -> None:
    critic = taught(Critic(tiny_policy(), lr=1e-2), 3)
    sample = next(s for s in SAMPLES if len(s.completion_ids) > 3)
    changed = type(sample)(
        prompt_ids=sample.prompt_ids,
        completion_ids=(*sample.completion_ids[:2], 3, *sample.completion_ids[3:]),
    )
    assert changed != sample
    ours, theirs = critic.values([sample]), critic.values([changed])
    assert torch.equal(ours[:3], theirs[:3])
    assert not torch.isclose(ours[3:], theirs[3:]).any()


def test_values_of_many_answers_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = taught(Critic(tiny_policy(), lr=1e-2), 3)
    alone = torch.cat([critic.values([sample]) for sample in SAMPLES]).detach()
    assert alone.std() > 0.01
    torch.testing.assert_close(critic.all_values(SAMPLES), alone, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("effopd.methods.policy_gradient.BATCH_SEQUENCES", 2)
    torch.testing.assert_close(critic.all_values(SAMPLES), alone, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_and_gone_after_an_update() -> None:
    """The first step of AdamW has the size of its rate; what is clipped is the gradient."""
    big, small = (Critic(tiny_policy(), lr=1e-3, clip_norm=norm) for norm in (1e9, 1e-12))
    moved = []
    for critic in (big, small):
        (critic.values(SAMPLES) - 1e6).square().sum().backward()
        critic.update_()
        assert all(p.grad is None for p in critic._parameters.values())
        state = critic.optimizer.state[critic._head.weight]
        moved.append(state["exp_avg"].norm().item())
    assert moved[0] > 1e3
    assert moved[1] <= 1e-12


def test_a_discarded_gradient_leaves_no_trace() -> None:
    critic = taught(Critic(tiny_policy(), lr=1e-2), 2)
    before = {name: tensor.clone() for name, tensor in critic.state().items()}
    critic.values(SAMPLES).sum().backward()
    critic.discard()
    assert all(parameter.grad is None for parameter in critic._parameters.values())
    now = critic.state()
    assert before.keys() == now.keys()
    assert all(torch.equal(before[name], now[name]) for name in before)


# Saving -------------------------------------------------------------------------------------------


def same(first: Critic, second: Critic) -> bool:
    ours, theirs = first.state(), second.state()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("updates", [0, 3])
def test_a_restored_critic_goes_on_bit_for_bit(updates: int) -> None:
    old = taught(Critic(tiny_policy(), lr=1e-2), updates)
    new = taught(Critic(tiny_policy(5), lr=1e-2), 2)
    assert not same(old, new)
    new.load_state({name: tensor.clone() for name, tensor in old.state().items()})
    assert same(old, new)
    assert same(taught(old, 2), taught(new, 2))


@pytest.mark.parametrize("lost", ["critic/head.bias", "critic/body.embed_tokens.weight"])
def test_a_state_of_another_model_is_refused_by_name(lost: str) -> None:
    critic = Critic(tiny_policy(), lr=1e-2)
    state = critic.state()
    wrong: Sequence[dict[str, torch.Tensor]] = [
        {name: tensor for name, tensor in state.items() if name != lost},
        state | {lost: torch.zeros(3, 1)},
    ]
    for tensors in wrong:
        with pytest.raises(CheckpointError, match=lost.removeprefix("critic/")):
            critic.load_state(tensors)
