"""float32 masters: exact for a float32 student, and what a bfloat16 student needs them for."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model, tiny_policy
from tests.support.learning import batch, rollouts
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError
from effopd.evaluation.routing import Teachers
from effopd.methods import FullVocabularyKL, Resources
from effopd.models.policy import Policy
from effopd.search.extrapolator import Search
from effopd.search.scales import LadderScales
from effopd.search.schedule import EveryN
from effopd.search.validation import Draw
from effopd.training.settings import (
    LoopSettings,
    MemorySettings,
    OptimizerSettings,
    TrainSettings,
)
from effopd.training.update import Masters, Updater, extrapolator_of

ANSWERS = rollouts(6, 1)
TEACHERS = Teachers.single(tiny_policy(1))
MASTERS = MemorySettings(master_weights=True)
ON_CPU = MemorySettings(master_weights=True, offload_optimizer=True)


def settings_of(memory: MemorySettings, lr: float = 1e-2) -> LoopSettings:
    return LoopSettings(
        seed=5,
        train=TrainSettings(prompts_per_step=6, updates_per_step=2, micro_batch_tokens=30),
        optimizer=OptimizerSettings(lr=lr, clip_norm=0.05, weight_decay=0.1),
        memory=memory,
    )


def trained(
    policy: Policy, memory: MemorySettings, steps: int = 3, lr: float = 1e-2
) -> tuple[Updater, list[dict[str, Any]]]:
    """The updater after some steps, and their rows."""
    learner = FullVocabularyKL().learner(Resources(student=policy, teachers=TEACHERS))
    learner.prepare(batch(ANSWERS))
    updater = Updater(policy, learner, settings_of(memory, lr))
    rows = []
    for step in range(1, steps + 1):
        updater.set_lr_(step)
        rows.append(updater.update_(ANSWERS, step))
    return updater, rows


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def low(seed: int = 0) -> Policy:
    return Policy(tiny_model(seed).bfloat16(), TOKENIZER)


@pytest.mark.parametrize("memory", [MASTERS, ON_CPU], ids=["beside", "on the CPU"])
def test_a_float32_student_trains_as_without_them_bit_for_bit(memory: MemorySettings) -> None:
    """Gradients, clipping, moments and weights: several micro-batches an update."""
    plain, apart = tiny_policy(0), tiny_policy(0)
    one, rows = trained(plain, MemorySettings())
    two, same = trained(apart, memory)
    assert rows == same
    assert all(torch.equal(a, weights(apart)[n]) for n, a in weights(plain).items())
    for name, parameter in one.moved.items():
        first, second = one.optimizer.state[parameter], two.optimizer.state[two.moved[name]]
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_live_weights_are_the_rounded_masters() -> None:
    policy = low()
    updater, _ = trained(policy, MASTERS)
    assert updater.masters is not None
    differs = False
    for name, parameter in policy.model.named_parameters():
        master = updater.masters.tensors[name]
        assert (parameter.dtype, master.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(parameter.detach(), master.detach().bfloat16())
        differs |= not torch.equal(parameter.detach().float(), master.detach())
        assert parameter.grad is None, "gradients are with the masters alone"
    assert differs


def test_small_updates_add_up_with_masters_and_are_lost_without() -> None:
    """At a rate far below bfloat16's spacing every single update rounds away."""
    with_masters, without, start = low(), low(), weights(low())
    large = {name for name, w in start.items() if w.abs().min() > 0.5}
    assert large, "norm weights of one"
    updater, _ = trained(with_masters, MASTERS, steps=4, lr=1e-5)
    trained(without, MemorySettings(), steps=4, lr=1e-5)
    assert updater.masters is not None
    for name in large:
        assert torch.equal(weights(without)[name], start[name])
        moved = updater.masters.tensors[name].detach() - start[name].float()
        assert 1e-6 < moved.abs().max() < 1e-3


def test_gradients_are_summed_in_float32() -> None:
    live = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    masters = Masters({"w": live})
    for value in (256.0, 1.0, 1.0):  # bfloat16 would stay at 256
        (live * torch.tensor([value], dtype=torch.bfloat16)).sum().backward()
    grad = masters.tensors["w"].grad
    assert grad is not None
    assert (grad.dtype, grad.item(), live.grad) == (torch.float32, 258.0, None)


def test_a_discarded_update_leaves_no_gradient() -> None:
    policy = low()
    updater, _ = trained(policy, MASTERS, steps=1)
    assert updater.masters is not None
    before = copy.deepcopy(updater.masters.state())
    sum(p.float().sum() for p in policy.model.parameters()).backward()
    updater.discard()
    assert all(master.grad is None for master in updater.masters.tensors.values())
    assert all(torch.equal(before[n], t) for n, t in updater.masters.state().items())


def test_masters_come_back_with_the_live_weights() -> None:
    old, new = (trained(low(seed), MASTERS)[0] for seed in (0, 2))
    assert old.masters is not None
    assert new.masters is not None
    new.masters.load_state(old.masters.state())
    for name, parameter in new.live.items():
        assert torch.equal(parameter, old.live[name])
        assert torch.equal(new.masters.tensors[name], old.masters.tensors[name])
    with pytest.raises(
        CheckpointError, match="the saved float32 master copy does not fit this model"
    ):
        new.masters.load_state({"w": torch.zeros(1)})


@pytest.mark.parametrize("anchor", ["cpu", "student"])
def test_a_search_computes_points_from_the_masters(anchor: Any) -> None:
    """In float32 from float32 ends, and rounded once to the live weights."""
    policy = low()
    start = {name: tensor.float() for name, tensor in weights(policy).items()}
    learner = FullVocabularyKL().learner(Resources(student=policy, teachers=TEACHERS))
    learner.prepare(batch(ANSWERS))
    settings = settings_of(replace(MASTERS, anchor_device=anchor))
    updater = Updater(policy, learner, settings)
    scores = iter([0.0, 1.0])

    def validate(draw: Draw) -> float:
        return next(scores)

    scales = LadderScales(scales=(3.0,))
    search = Search(schedule=EveryN(n=1), scales=scales, parameters="all", guard=None)
    extrapolator = extrapolator_of(
        policy, updater, settings, search=search, validate=validate, on_trial=lambda i, t: None
    )
    assert extrapolator is not None
    updater.set_lr_(1)
    updater.update_(ANSWERS, 1)
    assert updater.masters is not None
    tip = {name: master.detach().clone() for name, master in updater.masters.tensors.items()}
    result = extrapolator.step(1)
    assert result is not None
    assert result.accepted_scale == 3.0
    for name, parameter in policy.model.named_parameters():
        point = torch.lerp(start[name], tip[name], 3.0)
        assert torch.equal(updater.masters.tensors[name].detach(), point)
        assert torch.equal(parameter.detach(), point.bfloat16())


def test_an_offloaded_optimizer_needs_masters() -> None:
    with pytest.raises(ConfigError, match=r"keeps the masters on the CPU: set memory\.master"):
        MemorySettings(offload_optimizer=True)
    with pytest.raises(ConfigError, match="memory needs scoring_tokens >= 1"):
        MemorySettings(scoring_tokens=0)
