"""The updates of a step against a plain loop over their mini-batches."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.fakes import tiny_policy
from tests.support.learning import accumulate, batch, rollouts

from effopd.errors import NonFiniteError
from effopd.evaluation.routing import Teachers
from effopd.methods import Batch, Contribution, FullVocabularyKL, Learner, Portion, Resources
from effopd.models.policy import Policy
from effopd.training.settings import LoopSettings, OptimizerSettings, TrainSettings
from effopd.training.update import Updater, mini_batches

ANSWERS = rollouts(7, 1)
TEACHERS = Teachers.single(tiny_policy(1))
CLIP_NORM, DECAY, STEP = 0.05, 0.1, 4


def settings_of(updates: int, epochs: int, micro_batch_tokens: int) -> LoopSettings:
    return LoopSettings(
        seed=5,
        train=TrainSettings(
            steps=9,
            prompts_per_step=7,
            updates_per_step=updates,
            epochs=epochs,
            micro_batch_tokens=micro_batch_tokens,
        ),
        optimizer=OptimizerSettings(
            lr=1e-2, warmup_steps=8, clip_norm=CLIP_NORM, weight_decay=DECAY
        ),
    )


class Portions(Learner):
    """Notes how many answers each micro-batch has."""

    def __init__(self, student: Policy) -> None:
        self._learner = FullVocabularyKL().learner(Resources(student=student, teachers=TEACHERS))
        self.sizes: list[int] = []

    def prepare(self, batch: Batch) -> int:
        return self._learner.prepare(batch)

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        self.sizes.append(len(indices))
        return self._learner.contribution(indices, portion)


def test_micro_batches_have_as_many_answers_as_is_set() -> None:
    student = tiny_policy(0)
    learner = Portions(student)
    learner.prepare(batch(ANSWERS))
    settings = settings_of(1, 1, 999)
    train = replace(settings.train, micro_batch_sequences=3)
    Updater(student, learner, replace(settings, train=train)).update_(ANSWERS, 1)
    assert sum(learner.sizes) == len(ANSWERS)
    assert max(learner.sizes) == 3


class Counted(Learner):
    """Passes everything on and counts updates; may spoil the loss."""

    def __init__(self, student: Policy, factor: float) -> None:
        self._learner = FullVocabularyKL().learner(Resources(student=student, teachers=TEACHERS))
        self._factor = factor
        self.finished = self.discarded = 0

    def prepare(self, batch: Batch) -> int:
        return self._learner.prepare(batch)

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        part = self._learner.contribution(indices, portion)
        return replace(part, loss=part.loss * self._factor)

    def after_update(self) -> None:
        self.finished += 1

    def discard(self) -> None:
        self.discarded += 1


def learner_of(student: Policy, factor: float = 1.0) -> Counted:
    learner = Counted(student, factor)
    learner.prepare(batch(ANSWERS))
    return learner


def weights(policy: Policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.model.parameters()]


def plain_loop(student: Policy, updates: int, epochs: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms; every mini-batch in one backward pass."""
    learner, parameters = learner_of(student), list(student.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, betas=(0.9, 0.95), weight_decay=DECAY)
    losses, norms = [], []
    for epoch in range(epochs):
        for indices in mini_batches(7, updates, 5, STEP, epoch):
            losses.append(accumulate(learner, ANSWERS, indices)[0].loss.item())
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            for g in gradients:
                g.mul_(min(1.0, CLIP_NORM / (norm.item() + 1e-6)))
            optimizer.step()
            optimizer.zero_grad()
            norms.append(norm.item())
    return losses, norms


@pytest.mark.parametrize("micro_batch_tokens", [1, 30, 9999])
@pytest.mark.parametrize(("updates", "epochs"), [(1, 1), (3, 1), (1, 3), (2, 2), (7, 1)])
def test_updates_equal_a_plain_loop(updates: int, epochs: int, micro_batch_tokens: int) -> None:
    """Half the rate at step 4 of 8 steps of warm-up; the clip is always at work."""
    ours, theirs = tiny_policy(0), tiny_policy(0)
    learner = learner_of(ours)
    updater = Updater(ours, learner, settings_of(updates, epochs, micro_batch_tokens))
    assert updater.set_lr_(STEP) == 5e-3
    row = updater.update_(ANSWERS, STEP)
    losses, norms = plain_loop(theirs, updates, epochs)
    assert min(norms) > CLIP_NORM
    assert len(losses) == updates * epochs
    assert row["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert row["grad_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    assert row["reverse_kl"] == pytest.approx(row["loss"], rel=1e-5)
    assert row["importance_mean"] == 1.0
    before = weights(tiny_policy(0))
    for found, expected, start in zip(weights(ours), weights(theirs), before, strict=True):
        assert (found - expected).norm() < 0.02 * (expected - start).norm()
    assert (learner.finished, learner.discarded) == (updates * epochs, 0)
    assert not ours.model.training


def test_an_update_that_is_not_finite_can_be_discarded() -> None:
    """No moment has seen it and no gradient stays behind."""
    student = tiny_policy(0)
    learner = learner_of(student, float("nan"))
    updater = Updater(student, learner, settings_of(1, 1, 30))
    before = weights(student)
    with pytest.raises(NonFiniteError, match="loss nan and gradient norm nan must be finite"):
        updater.update_(ANSWERS, STEP)
    updater.discard()
    assert all(torch.equal(a, b) for a, b in zip(weights(student), before, strict=True))
    assert all(p.grad is None for p in student.model.parameters())
    assert not updater.optimizer.state
    assert not student.model.training
    assert (learner.finished, learner.discarded) == (0, 1)


def test_parameters_that_are_frozen_stay() -> None:
    student = tiny_policy(0)
    embedding = student.model.get_input_embeddings().weight.requires_grad_(False)
    before = embedding.clone()
    Updater(student, learner_of(student), settings_of(2, 1, 99)).update_(ANSWERS, 1)
    assert torch.equal(embedding, before)


class Partly(Counted):
    """Knows a divergence of 2 of one token in each answer, and nothing of the others."""

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        found = super().contribution(indices, portion)
        sums = {"reverse_kl": 2.0 * len(indices), "others": float(portion.tokens)}
        known = {"reverse_kl": torch.tensor(len(indices))}
        return replace(found, sums=sums, known=known)


def test_a_mean_is_over_the_tokens_that_are_known() -> None:
    student = tiny_policy(0)
    learner = Partly(student, 1.0)
    learner.prepare(batch(ANSWERS))
    row = Updater(student, learner, settings_of(1, 1, 64)).update_(ANSWERS, STEP)
    assert row["reverse_kl"] == 2.0
    # Of every micro-batch, over all tokens.
    assert row["others"] > 1.0
    assert row["others"] == int(row["others"])
