"""What every validator of the search must do: one table, the same tests."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.fakes import (
    WORLD,
    FakeEngine,
    bigram_table,
    policy_writer,
    tiny_policy,
    writer,
)
from torch import nn

from effopd.evaluation.importance_kl import ImportanceKLValidation, ImportanceWeightedKLValidator
from effopd.evaluation.rollout_sources import FreshRollouts
from effopd.evaluation.routing import Teachers
from effopd.evaluation.validators import (
    RolloutValidator,
    accuracy_measure,
    teacher_kl_measure,
)
from effopd.models.policy import Policy
from effopd.rollouts.rollout import Writer
from effopd.search.validation import Draw, Score, Validator

PROMPTS = 12
PROBLEMS = list(WORLD.load().train)


@dataclass(frozen=True)
class Subject:
    """A validator, the modules it scores with, and a way to damage the student."""

    validate: Validator
    modules: tuple[nn.Module, ...]
    damage_: Callable[[], None]


def fresh(student: Writer, resample: bool) -> FreshRollouts:
    return FreshRollouts(
        writer=student, problems=PROBLEMS, prompts=PROMPTS, resample=resample, seed=0
    )


def fake_accuracy(resample: bool) -> Subject:
    engine = FakeEngine(bigram_table())

    def damage_() -> None:
        for row in engine.table:
            row[3] = math.nan

    validate = RolloutValidator(
        source=fresh(writer(engine), resample),
        measure=accuracy_measure(WORLD.verifier),
        scores_with_teacher=False,
    )
    return Subject(validate, (), damage_)


def policy_subject(reduce: str | None, resample: bool) -> Subject:
    student, teacher = tiny_policy(0), tiny_policy(1)
    measure = (
        accuracy_measure(WORLD.verifier)
        if reduce is None
        else teacher_kl_measure(student, Teachers.single(teacher), reduce)
    )
    validate = RolloutValidator(
        source=fresh(policy_writer(student), resample),
        measure=measure,
        scores_with_teacher=reduce is not None,
    )
    return Subject(validate, (student.model, teacher.model), lambda: fill_nan_(student))


def cached_subject(settings: ImportanceKLValidation) -> Subject:
    student, teacher = tiny_policy(0), tiny_policy(1)
    validate = ImportanceWeightedKLValidator(
        fresh(policy_writer(student), settings.resample),
        student,
        Teachers.single(teacher),
        settings,
    )
    return Subject(validate, (student.model, teacher.model), lambda: fill_nan_(student))


def fill_nan_(policy: Policy) -> None:
    policy.model.lm_head.weight.data.fill_(torch.nan)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "accuracy-fake-fixed": lambda: fake_accuracy(resample=False),
    "accuracy-fake-resampled": lambda: fake_accuracy(resample=True),
    "accuracy-hf": lambda: policy_subject(None, resample=False),
    "teacher-kl-token": lambda: policy_subject("token", resample=True),
    "teacher-kl-sequence": lambda: policy_subject("sequence", resample=False),
    "cached-kl-token": lambda: cached_subject(ImportanceKLValidation()),
    "cached-kl-sequence": lambda: cached_subject(
        ImportanceKLValidation(reduce="sequence", resample=False)
    ),
}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]()


def score(subject: Subject, step: int = 4) -> Score:
    returned = subject.validate(Draw(step=step))
    assert isinstance(returned, Score)
    return returned


def test_one_draw_one_score_bit_for_bit(subject: Subject) -> None:
    first = score(subject)
    score(subject, step=8)
    random.seed(99)
    torch.manual_seed(99)
    assert score(subject) == first


def test_other_draws_other_samples(subject: Subject) -> None:
    samples = [score(subject, 4), score(subject, 8)]
    assert len({(s.per_prompt, s.tokens) for s in samples}) == 2


def test_value_is_the_mean_of_one_value_a_prompt(subject: Subject) -> None:
    found = score(subject)
    assert len(found.per_prompt) == PROMPTS
    assert found.value == pytest.approx(sum(found.per_prompt) / PROMPTS, abs=1e-12)
    assert found.is_finite


def test_costs_and_lengths_are_those_of_the_samples(subject: Subject) -> None:
    found = score(subject)
    assert found.mean_length == pytest.approx(found.tokens / PROMPTS)
    assert PROMPTS <= found.tokens <= 6 * PROMPTS
    assert found.teacher_tokens in {0, found.tokens}
    assert 0 <= found.truncated_share <= 1


def test_parameters_modes_and_generators_are_left_alone(subject: Subject) -> None:
    for module in subject.modules:
        module.train()
    weights = [p.detach().clone() for m in subject.modules for p in m.parameters()]
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    score(subject)
    assert all(
        torch.equal(before, after)
        for before, after in zip(
            weights, (p for m in subject.modules for p in m.parameters()), strict=True
        )
    )
    assert all(module.training for module in subject.modules)
    assert all(p.grad is None for m in subject.modules for p in m.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))


def test_the_mode_does_not_matter(subject: Subject) -> None:
    first = score(subject)
    for module in subject.modules:
        module.train()
    assert score(subject) == first


def test_a_broken_student_is_not_finite_and_raises_nothing(subject: Subject) -> None:
    assert score(subject).is_finite
    subject.damage_()
    assert not score(subject).is_finite
