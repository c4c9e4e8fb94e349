"""The policy-gradient learner against a twin of plain loops in float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.reference import learner_twin as twin
from tests.reference import rl_twin
from tests.support.learning import (
    LONGEST,
    accumulate,
    assert_same,
    batch,
    gradient,
    moved,
    precise_policy,
    rollouts,
    snapshot,
)

from effopd.evaluation.routing import Teachers
from effopd.methods import PolicyGradient, Resources

RESPONSES = 4
ANSWERS = rollouts(3, RESPONSES, ("math", "code"))
SAMPLES = [answer.sample for answer in ANSWERS]
WRITTEN = [list(answer.completion.log_probs) for answer in ANSWERS]
REWARDS = (1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.25, 1.0, 0.0)
TEACHERS = {"math": precise_policy(1), "code": precise_policy(2, sharpness=3.0)}
REFERENCE = precise_policy(3)

GRPO = replace(PolicyGradient.grpo(), kl_coefficient=0.3)
DAPO = replace(PolicyGradient.dapo(), overlong_buffer=5)
PPO = replace(PolicyGradient.ppo(), critic_lr=1e-2, gae_gamma=0.9, value_clip=0.05)
SETTINGS: dict[str, PolicyGradient] = {
    "grpo": GRPO,
    "dapo": DAPO,
    "dr_grpo": PolicyGradient.dr_grpo(),
    "ppo": PPO,
    "grpo, distillation": replace(GRPO, distillation=0.4),
    "ppo, overlong, reference, distillation": replace(
        PPO, distillation=0.2, overlong_buffer=3, kl_coefficient=0.1
    ),
    "distillation, low cap": replace(PolicyGradient(), distillation=1.5, importance_cap=0.7),
}


def test_the_answers_differ_in_every_way_that_matters() -> None:
    lengths = [len(sample.completion_ids) for sample in SAMPLES]
    assert min(lengths) < LONGEST - 5 < LONGEST == max(lengths)
    assert {answer.problem.teacher for answer in ANSWERS} == {"math", "code"}


@dataclass
class Case:
    """A learner, and everything its twin needs to know."""

    objective: PolicyGradient
    reuses_rollouts: bool = True

    def __post_init__(self) -> None:
        self.student = precise_policy(0)
        resources = Resources(
            student=self.student,
            longest=LONGEST,
            updates=2 if self.reuses_rollouts else 1,
            teachers=Teachers(policies=TEACHERS),
            reference=REFERENCE,
        )
        self.learner = self.objective.learner(resources)
        self.critic = self.learner.critic
        if self.critic is not None:
            torch.nn.init.normal_(self.critic._head.double().weight, std=0.3)
        self.before = snapshot(self.student)
        self.critic_before = snapshot(self.critic)
        self.taught = self.learner.prepare(batch(ANSWERS, REWARDS, RESPONSES))
        self.old = twin.scores(self.before, SAMPLES)
        self.values, self.returns, self.advantages = self._advantages()

    def _advantages(self) -> tuple[twin.Scores, twin.Scores, twin.Scores]:
        objective, values, returns = self.objective, [], []
        rewards = twin.shaped_rewards(REWARDS, SAMPLES, LONGEST, objective.overlong_buffer)
        if self.critic is None:
            found = twin.group_advantages(rewards, SAMPLES, RESPONSES, objective.group_scale)
        else:
            values = critic_values(self.critic_before)
            discounts = objective.gae_gamma, objective.gae_lambda
            found, returns = twin.critic_advantages(rewards, values, *discounts)
        own = self.old if self.reuses_rollouts else WRITTEN
        return values, returns, twin.with_teacher(found, TAUGHT, own, objective.distillation)

    def loss(self, indices: Sequence[int]) -> torch.Tensor:
        """Of the student as it is now."""
        pick = [SAMPLES[i] for i in indices]

        def of(rows: twin.Scores) -> twin.Scores:
            return [rows[i] for i in indices]

        loss = twin.policy_loss(
            self.student.model,
            pick,
            self.objective,
            LONGEST,
            advantages=of(self.advantages),
            written=of(WRITTEN),
            old=of(self.old) if self.reuses_rollouts else None,
            reference=of(REFERRED) if self.objective.needs_reference else None,
        )
        if self.critic is not None:
            body, head = self.critic._body, self.critic._head
            values = [v for sample in pick for v in twin.critic_values(body, head, sample)]
            clip = self.objective.value_clip
            loss = loss + twin.value_loss(values, of(self.values), of(self.returns), clip)
        return loss

    def gradients(self) -> dict[str, torch.Tensor]:
        """Of student and critic, cleared."""
        found = {"student": gradient(self.student.model.parameters())}
        if self.critic is not None:
            found["critic"] = gradient(self.critic._parameters.values())
        return found

    def move(self) -> None:
        """What an optimizer might do to student and critic."""
        moved(self.student, 7, 0.02)
        if self.critic is not None:
            moved(self.critic._policy, 8, 0.02)


def critic_values(critic: Any) -> twin.Scores:
    with torch.no_grad():
        return [
            [v.item() for v in twin.critic_values(critic._body, critic._head, sample)]
            for sample in SAMPLES
        ]


def taught_scores() -> twin.Scores:
    return [twin.scores(TEACHERS[answer.problem.teacher], [answer.sample])[0] for answer in ANSWERS]


TAUGHT, REFERRED = taught_scores(), twin.scores(REFERENCE, SAMPLES)
EVERYTHING = list(range(len(ANSWERS)))
MINI_BATCHES = [[5, 0, 9, 2, 11, 4], [1, 3, 10, 6, 8, 7]]


Gradients = dict[str, torch.Tensor]


def assert_same_gradients(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        assert_same(found[name], expected[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_equal_the_twin_before_and_after_an_update(name: str) -> None:
    """Two mini-batches; the second one sees a policy that has moved away from the first."""
    case = Case(SETTINGS[name])
    clipped = []
    for indices in MINI_BATCHES:
        parts = accumulate(case.learner, ANSWERS, indices, cuts=(1, 4))
        found = case.gradients()
        expected = case.loss(indices)
        expected.backward()
        assert sum(part.loss.item() for part in parts) == pytest.approx(expected.item(), rel=1e-6)
        assert_same_gradients(found, case.gradients())
        clipped.append(sum(part.sums["clipped_share"] for part in parts))
        case.move()
    assert clipped[0] == 0.0
    assert clipped[1] > 0.0


@pytest.mark.parametrize("name", SETTINGS)
def test_a_single_update_has_the_gradient_at_ratio_one(name: str) -> None:
    """The log-probabilities before the update are the current ones: they are not computed twice."""
    case = Case(SETTINGS[name], reuses_rollouts=False)
    accumulate(case.learner, ANSWERS, EVERYTHING)
    found = case.gradients()
    case.loss(EVERYTHING).backward()
    assert_same_gradients(found, case.gradients())


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("cuts", [(6,), (1, 2, 3), tuple(range(1, 12))])
def test_micro_batches_add_up_to_the_mini_batch(name: str, cuts: tuple[int, ...]) -> None:
    case = Case(SETTINGS[name])
    case.move()
    whole = accumulate(case.learner, ANSWERS, EVERYTHING)
    expected = case.gradients()
    parts = accumulate(case.learner, ANSWERS, EVERYTHING, cuts)
    assert_same_gradients(case.gradients(), expected)
    for key, value in whole[0].sums.items():
        assert float(sum(p.sums[key] for p in parts)) == pytest.approx(float(value), rel=1e-6), key


def test_the_numbers_of_the_metrics() -> None:
    """Sums over tokens, so that the row holds means over tokens."""
    case = Case(SETTINGS["ppo, overlong, reference, distillation"])
    case.move()
    parts = accumulate(case.learner, ANSWERS, EVERYTHING, cuts=(5,))
    sums = {name: float(sum(part.sums[name] for part in parts)) for name in parts[0].sums}
    now, old = twin.scores(case.student, SAMPLES), case.old
    weights, k3s, clipped = [], [], 0
    for i, row in enumerate(now):
        for t, log_prob in enumerate(row):
            weights.append(min(math.exp(old[i][t] - WRITTEN[i][t]), 5.0))
            k3s.append(rl_twin.k3(log_prob, REFERRED[i][t])[0])
            clipped += rl_twin.clipped_surrogate(
                log_prob, old[i][t], case.advantages[i][t], 0.2, 0.2
            )[2]
    assert case.critic is not None
    values = critic_values(case.critic)
    losses = [
        rl_twin.clipped_value_loss(*numbers, 0.05)
        for rows in zip(values, case.values, case.returns, strict=True)
        for numbers in zip(*rows, strict=True)
    ]
    assert sums == pytest.approx(
        {
            "importance_mean": sum(weights),
            "importance_capped_share": sum(weight >= 5.0 for weight in weights),
            "clipped_share": clipped,
            "reference_kl": sum(k3s),
            "value_loss": sum(losses),
        },
        rel=1e-6,
    )
    flat = [twin.flat(rows) for rows in (case.returns, case.values)]
    assert case.learner.metrics() == {
        "explained_variance": pytest.approx(rl_twin.explained_variance(*flat), rel=1e-6)
    }
    assert case.taught == sum(map(len, TAUGHT))


def test_groups_of_equal_rewards_teach_nothing() -> None:
    case = Case(PolicyGradient())
    accumulate(case.learner, ANSWERS, [4, 5, 6, 7])
    assert not case.gradients()["student"].any()
    assert case.taught == 0


def test_the_critic_warms_up_alone() -> None:
    """Not even weight decay moves the student, and its optimizer does not count the steps."""
    case = Case(replace(PPO, critic_warmup_steps=2))
    optimizer = torch.optim.AdamW(case.student.model.parameters(), lr=0.1, weight_decay=0.5)
    before = snapshot(case.student.model.state_dict())
    for step in (2, 3):
        case.learner.prepare(batch(ANSWERS, REWARDS, RESPONSES, step=step))
        accumulate(case.learner, ANSWERS, EVERYTHING, cuts=(5,))
        assert case.critic is not None
        assert all(p.grad is not None for p in case.critic._parameters.values())
        optimizer.step()
        case.learner.after_update()
        now = case.student.model.state_dict()
        stays = all(torch.equal(before[name], now[name]) for name in before)
        assert stays == (step == 2)
        assert bool(optimizer.state) == (step == 3)


@pytest.mark.parametrize("name", ["ppo", "ppo, overlong, reference, distillation"])
def test_student_and_critic_do_not_learn_from_each_other(name: str) -> None:
    """The gradient of each is that of its own loss alone."""
    case = Case(SETTINGS[name])
    case.move()
    pick = [SAMPLES[i] for i in EVERYTHING]
    accumulate(case.learner, ANSWERS, EVERYTHING)
    found = case.gradients()
    assert case.critic is not None
    body, head = case.critic._body, case.critic._head
    values = [v for sample in pick for v in twin.critic_values(body, head, sample)]
    twin.value_loss(values, case.values, case.returns, 0.05).backward()
    alone = case.gradients()
    assert not alone["student"].any()
    assert_same(found["critic"], alone["critic"])
    shared = {p.data_ptr() for p in case.student.model.parameters()}
    assert not shared & {p.data_ptr() for p in case.critic._parameters.values()}
