"""The distillation learners against twins of plain loops in float64, with several teachers."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.reference import learner_twin as twin
from tests.reference import objectives_twin
from tests.support.learning import (
    accumulate,
    assert_same,
    batch,
    gradient,
    moved,
    precise_policy,
    rollouts,
)

from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.kept_states import KeptStates
from effopd.evaluation.routing import Teachers
from effopd.methods import (
    ExOPD,
    FullVocabularyKL,
    Learner,
    Resources,
    SampledTokenOPD,
    full_kl,
)
from effopd.models.policy import Policy, Sample
from effopd.rollouts.rollout import Rollout

MATH, CODE = precise_policy(1), precise_policy(2, sharpness=3.0)
STUDENT, REFERENCE, OTHER = precise_policy(0), precise_policy(3), precise_policy(4)
BOTH = Teachers(policies={"math": MATH, "code": CODE})
ANSWERS = rollouts(7, 1, ("math", "code", "code"))
SAMPLES = [answer.sample for answer in ANSWERS]
WRITTEN = [list(answer.completion.log_probs) for answer in ANSWERS]
EVERYTHING = list(range(len(ANSWERS)))
OF = {
    name: [i for i in EVERYTHING if ANSWERS[i].problem.teacher == name] for name in ("math", "code")
}
TOKENS = sum(len(sample.completion_ids) for sample in SAMPLES)

Objective = SampledTokenOPD | ExOPD | FullVocabularyKL


def learner_of(
    objective: Objective,
    teachers: Teachers = BOTH,
    reference: Policy | None = REFERENCE,
    gigabytes: float = 1.0,
) -> Learner:
    teachers = replace(teachers, kept=KeptStates(gigabytes))
    return objective.learner(Resources(student=STUDENT, teachers=teachers, reference=reference))


def gradient_of(learner: Learner, cuts: Sequence[int] = (2, 3)) -> torch.Tensor:
    """Of the whole batch."""
    learner.prepare(batch(ANSWERS))
    accumulate(learner, ANSWERS, EVERYTHING, cuts)
    return gradient(STUDENT.model.parameters())


def teacher_of(i: int) -> Policy:
    return BOTH.policies[ANSWERS[i].problem.teacher]


# Twins --------------------------------------------------------------------------------------------


def sampled_twin(
    scale: float = 1.0,
    temperature: float = 1.0,
    cap: float = 5.0,
    reference: Policy = REFERENCE,
) -> torch.Tensor:
    """Gradient of equation 9, with ExOPD's advantage."""
    advantages = []
    for i, sample in enumerate(SAMPLES):
        with torch.no_grad():
            p = twin.log_probs(STUDENT.model, sample)
            q = twin.log_probs(teacher_of(i).model, sample, temperature)
            r = twin.log_probs(reference.model, sample)
        rows = zip(p, q, r, strict=True)
        advantages.append(
            [torch.tensor(objectives_twin.exopd_advantage(*map(float, row), scale)) for row in rows]
        )
    twin.distillation_loss(STUDENT.model, SAMPLES, advantages, WRITTEN, cap).backward()
    return gradient(STUDENT.model.parameters())


def full_twin(
    objective: FullVocabularyKL, reference: Policy = REFERENCE
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the divergence to `softmax(lambda z / T + (1 - lambda) z_ref)`."""
    total = torch.zeros((), dtype=torch.float64)
    for i, sample in enumerate(SAMPLES):
        p = twin.distributions(STUDENT.model, sample)
        with torch.no_grad():
            z = twin.distributions(teacher_of(i).model, sample)  # logits up to a constant a row
            r = twin.distributions(reference.model, sample)
            scale = objective.reward_scale
            mixed = scale * z / objective.teacher_temperature + (1 - scale) * r
            q = torch.log_softmax(mixed, dim=-1)
        parts = objectives_twin.divergences(objective.divergence, p, q, objective.beta)
        total = total + parts.sum()
    loss = total / TOKENS
    loss.backward()
    return loss.item(), gradient(STUDENT.model.parameters())


# The sampled token --------------------------------------------------------------------------------

SAMPLED: dict[str, tuple[Objective, dict[str, float]]] = {
    "plain": (SampledTokenOPD(), {}),
    "temperature": (SampledTokenOPD(teacher_temperature=0.5), {"temperature": 0.5}),
    "low cap": (SampledTokenOPD(importance_cap=0.8), {"cap": 0.8}),
    "exopd": (ExOPD(reward_scale=1.25), {"scale": 1.25}),
    "exopd, temperature": (
        ExOPD(reward_scale=0.5, teacher_temperature=2.0),
        {"scale": 0.5, "temperature": 2.0},
    ),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_the_gradient_at_the_sampled_token_equals_the_twin(name: str) -> None:
    objective, settings = SAMPLED[name]
    assert_same(gradient_of(learner_of(objective)), sampled_twin(**settings))


class Silent:
    """A reading that loses the values of some answers' tokens, as a server may."""

    def __init__(self, missing: Collection[tuple[int, int]]) -> None:
        self.missing = missing

    def sample(self, rollout: Rollout, prompt_ids: tuple[int, ...] | None) -> Sample:
        return rollout.sample

    def tokens_read(self, rollout: Rollout) -> int:
        return len(rollout.completion.token_ids)

    def values(self, rollout: Rollout, teacher_values: Sequence[float]) -> tuple[float, ...]:
        i = ANSWERS.index(rollout)
        return tuple(
            float("nan") if (i, t) in self.missing else value
            for t, value in enumerate(teacher_values)
        )


MISSING = {(0, 0), (1, 1), *((2, t) for t in range(len(SAMPLES[2].completion_ids)))}


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_missing_values_of_a_teacher_have_no_weight_and_are_counted(scale: float) -> None:
    silent: Any = Silent(MISSING)
    teachers = replace(BOTH, readings={"math": silent, "code": silent})
    objective = SampledTokenOPD() if scale == 1.0 else ExOPD(reward_scale=scale)
    learner = learner_of(objective, teachers)
    assert learner.prepare(batch(ANSWERS)) == TOKENS
    parts = accumulate(learner, ANSWERS, EVERYTHING, (2, 3))
    found = gradient(STUDENT.model.parameters())
    # The twin: a loop over tokens, in which missing ones have the advantage 0.
    advantages, gap = [], 0.0
    for i, sample in enumerate(SAMPLES):
        models = (STUDENT.model, teacher_of(i).model, REFERENCE.model)
        with torch.no_grad():
            rows = [twin.log_probs(model, sample) for model in models]
        own = []
        for t, (p, q, r) in enumerate(zip(*rows, strict=True)):
            is_known = (i, t) not in MISSING
            known = objectives_twin.exopd_advantage(float(p), float(q), float(r), scale)
            own.append(torch.tensor(known if is_known else 0.0))
            gap += float(p - q) if is_known else 0.0
        advantages.append(own)
    twin.distillation_loss(STUDENT.model, SAMPLES, advantages, WRITTEN, 5.0).backward()
    assert_same(found, gradient(STUDENT.model.parameters()))
    assert learner.metrics() == {"teacher_missing": len(MISSING)}
    # The mean divergence is that of the tokens that are known.
    assert sum(int(part.known["reverse_kl"]) for part in parts) == TOKENS - len(MISSING)
    assert sum(float(part.sums["reverse_kl"]) for part in parts) == pytest.approx(gap, rel=1e-5)


def test_a_batch_without_any_value_is_no_step() -> None:
    silent: Any = Silent({(i, t) for i in EVERYTHING for t in range(100)})
    teachers = replace(BOTH, readings={"math": silent, "code": silent})
    with pytest.raises(NonFiniteError, match=f"no value for any of {TOKENS} tokens"):
        learner_of(SampledTokenOPD(), teachers).prepare(batch(ANSWERS))


def test_nothing_missing_is_no_metric() -> None:
    learner = learner_of(SampledTokenOPD())
    learner.prepare(batch(ANSWERS))
    assert learner.metrics() == {}


def test_exopd_at_scale_one_is_plain_distillation_bit_for_bit() -> None:
    plain = gradient_of(learner_of(SampledTokenOPD()))
    assert torch.equal(gradient_of(learner_of(ExOPD(reward_scale=1.0))), plain)
    assert not torch.equal(gradient_of(learner_of(ExOPD(reward_scale=1.25))), plain)


def test_a_reference_of_its_own_corrects_the_reward() -> None:
    """`(lambda - 1) (log q - log r)` changes by `(lambda - 1) (log r - log r')`."""
    own = gradient_of(learner_of(ExOPD(), reference=OTHER))
    assert_same(own, sampled_twin(1.25, reference=OTHER))
    change, advantages = own - gradient_of(learner_of(ExOPD())), []
    for sample in SAMPLES:
        rows = [twin.scores(policy, [sample])[0] for policy in (REFERENCE, OTHER)]
        advantages.append([torch.tensor(0.25 * (r - o)) for r, o in zip(*rows, strict=True)])
    twin.distillation_loss(STUDENT.model, SAMPLES, advantages, WRITTEN, 5.0).backward()
    assert_same(change, gradient(STUDENT.model.parameters()))


# The whole vocabulary -----------------------------------------------------------------------------

FULL: dict[str, FullVocabularyKL] = {
    "reverse": FullVocabularyKL(),
    "forward": FullVocabularyKL(divergence="forward"),
    "jsd, temperature": FullVocabularyKL(divergence="jsd", beta=0.3, teacher_temperature=0.5),
    "exopd": FullVocabularyKL(reward_scale=1.25),
    "exopd, forward": FullVocabularyKL(reward_scale=1.25, divergence="forward"),
    "exopd, temperature": FullVocabularyKL(reward_scale=1.25, teacher_temperature=0.5),
    "interpolated": FullVocabularyKL(reward_scale=0.4),
    "reference alone": FullVocabularyKL(reward_scale=0.0),
}


@pytest.mark.parametrize("name", FULL)
def test_loss_and_gradient_over_the_vocabulary_equal_the_twin(name: str) -> None:
    learner = learner_of(FULL[name])
    assert learner.prepare(batch(ANSWERS)) == TOKENS
    parts = accumulate(learner, ANSWERS, EVERYTHING, cuts=(2, 3))
    found = gradient(STUDENT.model.parameters())
    loss, expected = full_twin(FULL[name])
    assert_same(found, expected)
    assert sum(part.loss.item() for part in parts) == pytest.approx(loss, rel=1e-6)
    measured = [part.sums.get("reverse_kl") for part in parts]
    if name == "reverse":
        assert sum(part.sums["reverse_kl"] for part in parts) / TOKENS == pytest.approx(loss)
    else:
        assert measured == [None] * 3


@pytest.mark.parametrize("gigabytes", [0.0, 4e-6])
def test_without_room_the_teachers_read_again_and_the_gradient_is_the_same(
    gigabytes: float,
) -> None:
    objective = FullVocabularyKL(reward_scale=1.25)
    kept = gradient_of(learner_of(objective))
    assert_same(gradient_of(learner_of(objective, gigabytes=gigabytes)), kept)
    assert learner_of(objective, gigabytes=gigabytes).prepare(batch(ANSWERS)) == TOKENS


def test_reward_scale_one_is_plain_distillation_bit_for_bit() -> None:
    """With or without a reference: it is not asked."""
    plain = gradient_of(learner_of(FullVocabularyKL(), reference=None))
    scaled = learner_of(FullVocabularyKL(reward_scale=1.0))
    assert torch.equal(gradient_of(scaled), plain)


def test_exopd_over_the_vocabulary_has_a_reference_of_its_own_too() -> None:
    found = gradient_of(learner_of(FullVocabularyKL(reward_scale=1.25), reference=OTHER))
    _, expected = full_twin(FullVocabularyKL(reward_scale=1.25), reference=OTHER)
    assert_same(found, expected)


def test_exopd_minimises_the_negative_of_its_objective() -> None:
    """`KL(p || target)` falls as `lambda E log(q / r) - KL(p || r)` rises, token by token."""
    learner = learner_of(FullVocabularyKL(reward_scale=1.25))
    found = gradient_of(learner)
    total = torch.zeros((), dtype=torch.float64)
    for i, sample in enumerate(SAMPLES):
        p = twin.distributions(STUDENT.model, sample)
        with torch.no_grad():
            q = twin.distributions(teacher_of(i).model, sample)
            r = twin.distributions(REFERENCE.model, sample)
        gain = (p.exp() * 1.25 * (q - r)).sum() - objectives_twin.kl(p, r).sum()
        total = total - gain / TOKENS
    total.backward()
    assert_same(found, gradient(STUDENT.model.parameters()))


# Several teachers ---------------------------------------------------------------------------------

OBJECTIVES: list[Objective] = [
    SampledTokenOPD(),
    ExOPD(),
    FullVocabularyKL(),
    FullVocabularyKL(reward_scale=1.25, divergence="forward"),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_answer_learns_from_its_own_teacher(objective: Objective) -> None:
    """The gradient of the batch is that of the two halves with their one teacher each."""
    together = gradient_of(learner_of(objective), cuts=(1, 4))
    apart = torch.zeros_like(together)
    for name, policy in (("math", MATH), ("code", CODE)):
        learner = learner_of(objective, Teachers(policies={name: policy}))
        own = [ANSWERS[i] for i in OF[name]]
        learner.prepare(batch(own))
        parts = accumulate(learner, own, range(len(own)))
        share = sum(len(SAMPLES[i].completion_ids) for i in OF[name]) / TOKENS
        apart += share * gradient(STUDENT.model.parameters())
        assert len(parts) == 1
    assert_same(together, apart)
    swapped = Teachers(policies={"math": CODE, "code": MATH})
    assert not torch.allclose(gradient_of(learner_of(objective, swapped)), together, rtol=1e-2)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 3, 4, 5, 6)])
def test_micro_batches_add_up_to_the_batch(objective: Objective, cuts: tuple[int, ...]) -> None:
    learner = learner_of(objective)
    assert_same(gradient_of(learner, cuts), gradient_of(learner, (2,)))


def test_a_second_update_compares_with_the_student_as_it_is() -> None:
    """The advantage is of the current policy, the weight against the one that wrote."""
    learner = learner_of(SampledTokenOPD())
    learner.prepare(batch(ANSWERS))
    kept = {name: value.clone() for name, value in STUDENT.model.state_dict().items()}
    try:
        moved(STUDENT, 5, 0.05)
        accumulate(learner, ANSWERS, EVERYTHING)
        assert_same(gradient(STUDENT.model.parameters()), sampled_twin())
    finally:
        STUDENT.model.load_state_dict(kept)


# Refusals -----------------------------------------------------------------------------------------


def test_an_unknown_teacher_is_named() -> None:
    stranger = replace(ANSWERS[0], problem=replace(ANSWERS[0].problem, teacher="law"))
    with pytest.raises(ConfigError, match="names the teacher 'law'; known are 'math', 'code'"):
        learner_of(SampledTokenOPD()).prepare(batch([stranger]))


# Health -------------------------------------------------------------------------------------------


def test_health_is_that_of_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_kl, "LOOKED_AT", TOKENS)  # every token
    learner = learner_of(FullVocabularyKL())
    learner.prepare(batch(ANSWERS))
    assert learner.metrics() == {}
    accumulate(learner, ANSWERS, EVERYTHING, (2, 3))
    first = learner.metrics()
    learner.after_update()
    accumulate(learner, ANSWERS, EVERYTHING, (2, 3))
    assert learner.metrics() == first
    gaps, overlaps = list[float](), list[float]()
    for i, sample in enumerate(SAMPLES):
        with torch.no_grad():
            p, q = (twin.distributions(m.model, sample) for m in (STUDENT, teacher_of(i)))
        gaps += ((q.exp() * q).sum(-1) - (p.exp() * p).sum(-1)).tolist()
        for ours, theirs in zip(p, q, strict=True):
            sets = [set(each.topk(4).indices.tolist()) for each in (ours, theirs)]  # of 16 tokens
            overlaps.append(len(sets[0] & sets[1]) / 4)
    assert first["entropy_gap"] == pytest.approx(sum(gaps) / TOKENS, rel=1e-4)
    assert first["overlap"] == pytest.approx(sum(overlaps) / TOKENS)
    assert first["overlap_advantage"] < 0
    learner.prepare(batch(ANSWERS))
    assert learner.metrics() == {}


def test_health_looks_at_every_nth_token_across_micro_batches() -> None:
    """Sixteen of an update, however it is cut."""
    learner = learner_of(FullVocabularyKL())
    for cuts in ((2, 3), (1, 2, 3, 4)):
        learner.prepare(batch(ANSWERS))
        accumulate(learner, ANSWERS, EVERYTHING, cuts)
        assert isinstance(learner, full_kl.FullVocabularyLearner)
        assert learner._health_B5 is not None
        assert learner._health_B5[:, 0].sum() == TOKENS / 2
    assert TOKENS // 16 == 2


def test_sampled_tokens_have_no_health() -> None:
    learner = learner_of(SampledTokenOPD())
    gradient_of(learner)
    assert learner.metrics() == {}
