"""Advantages, weights and the sampled-token loss; what they mean in expectation."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import objectives_twin as twin
from tests.reference.objectives_models import DOUBLE, close
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.objectives import (
    check_finite,
    exopd_advantages,
    fused_divergence,
    importance_weights,
    opd_advantages,
    sampled_token_loss,
    token_log_probs,
)

nats = st.floats(-30.0, 0.0)


def log_probs(*seeds: int, tokens: int = 9) -> list[Tensor]:
    return [
        -torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) * 5
        for seed in seeds
    ]


# Advantages ---------------------------------------------------------------------------------------


@given(student=nats, teacher=nats, reference=nats, scale=st.floats(0.0, 3.0))
def test_exopd_is_the_printed_formula(
    student: float, teacher: float, reference: float, scale: float
) -> None:
    columns = [torch.tensor([x], dtype=DOUBLE) for x in (student, teacher, reference)]
    found = exopd_advantages(*columns, scale).item()
    assert math.isclose(
        found, twin.exopd_advantage(student, teacher, reference, scale), abs_tol=1e-12
    )


def test_exopd_at_scale_one_is_opd_bit_for_bit() -> None:
    student, teacher, reference = (x.float() for x in log_probs(1, 2, 3))
    found = exopd_advantages(student, teacher, reference, 1.0)
    assert torch.equal(found, opd_advantages(student, teacher))


def test_advantages_are_detached() -> None:
    student, teacher, reference = (x.requires_grad_() for x in log_probs(1, 2, 3))
    assert not opd_advantages(student, teacher).requires_grad
    assert not exopd_advantages(student, teacher, reference, 1.25).requires_grad
    assert not importance_weights(student, teacher, 5.0).requires_grad


# Importance weights -------------------------------------------------------------------------------


def test_weights_are_ratios_up_to_the_cap() -> None:
    ratios = torch.tensor([0.25, 1.0, 4.9, 5.1, 1e9], dtype=DOUBLE)
    rollout = torch.full((5,), -30.0, dtype=DOUBLE)
    found = importance_weights(rollout + ratios.log(), rollout, 5.0)
    assert close(found, torch.tensor([0.25, 1.0, 4.9, 5.0, 5.0], dtype=DOUBLE))


def test_weight_does_not_overflow() -> None:
    found = importance_weights(torch.tensor([0.0]), torch.tensor([-1e4]), 5.0)
    assert found.item() == 5.0


# The loss -----------------------------------------------------------------------------------------


def test_gradient_is_weight_times_advantage_and_nothing_else() -> None:
    student, advantages, weights = (x.requires_grad_() for x in log_probs(1, 2, 3))
    loss = sampled_token_loss(student, advantages, weights, 4)
    loss.backward()
    assert close(student.grad, -(weights * advantages).detach() / 4)
    assert close(loss.detach(), -(weights * advantages * student).detach().sum() / 4)
    assert advantages.grad is None
    assert weights.grad is None


@pytest.mark.parametrize("cuts", [(4,), (1, 2, 8), (0, 9), (3, 3)])
def test_micro_batches_add_up_to_the_batch(cuts: tuple[int, ...]) -> None:
    student, advantages, weights = log_probs(1, 2, 3)
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    sampled_token_loss(whole, advantages, weights, 9).backward()
    for part in twin.micro_batches(9, cuts):
        sampled_token_loss(parts[part], advantages[part], weights[part], 9).backward()
    assert torch.equal(parts.grad, whole.grad)


def test_expected_gradient_over_the_vocabulary_is_that_of_the_reverse_kl() -> None:
    """Equation (9) in expectation over the student's next token is the gradient of (24)."""
    rng = torch.Generator().manual_seed(4)
    tokens, vocabulary, width = 3, 13, 4
    shapes = [(tokens, width), (vocabulary, width)] * 2
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(*shape, generator=rng, dtype=DOUBLE) for shape in shapes
    )
    trained = hidden.requires_grad_(), weight.requires_grad_()
    everything = torch.arange(vocabulary).repeat(tokens)
    student = token_log_probs(hidden.repeat_interleave(vocabulary, 0), weight, everything)
    teacher = token_log_probs(
        teacher_hidden.repeat_interleave(vocabulary, 0), teacher_weight, everything
    )
    probabilities = student.log_probs_N.detach().exp()
    assert close(probabilities.sum(), torch.tensor(float(tokens), dtype=DOUBLE))
    advantages = opd_advantages(student.log_probs_N, teacher.log_probs_N)
    expected = sampled_token_loss(student.log_probs_N, advantages, probabilities, tokens)
    exact = fused_divergence(hidden, weight, teacher_hidden, teacher_weight)
    found = torch.autograd.grad(expected, trained)
    assert all(map(close, found, torch.autograd.grad(exact.loss, trained)))
    assert min(gradient.abs().max() for gradient in found) > 0.01
    # The same sum is the divergence itself, so a monitor may average minus the advantages.
    assert close(-(probabilities * advantages).sum(), exact.per_token_N.sum())


# Errors -------------------------------------------------------------------------------------------

CALLS = [
    lambda a, b: opd_advantages(a, b),
    lambda a, b: exopd_advantages(a, a, b, 1.25),
    lambda a, b: importance_weights(a, b, 5.0),
    lambda a, b: sampled_token_loss(a, b, a, 1),
    lambda a, b: sampled_token_loss(a, a, b, 1),
]


@pytest.mark.parametrize("who", ["student", "teacher", "reference", "engine"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_inputs_come_out_in_the_loss(who: str, bad: float) -> None:
    """Neither the cap of the weights nor a weight of 0 hides them."""
    given = {name: torch.full((5,), -1.0) for name in ("student", "teacher", "reference", "engine")}
    given[who][2] = bad
    student, engine = given["student"], given["engine"]
    advantages = exopd_advantages(student, given["teacher"], given["reference"], 1.25)
    loss = sampled_token_loss(student, advantages, importance_weights(student, engine, 5.0), 1)
    assert not loss.isfinite()
    with pytest.raises(NonFiniteError, match=f"{who}: token 2 is .*1 of 5 tokens.*top_p = 1"):
        check_finite(loss, **given)
    given[who][2] = -1.0
    check_finite(torch.zeros(()), **given)
    with pytest.raises(NonFiniteError, match="overflows although its inputs are finite"):
        check_finite(loss, **given)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(4,), (5, 1), (1, 5), ()])
def test_shapes_must_agree(call: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterMismatchError, match="one number per token"):
        call(torch.zeros(5), torch.zeros(shape))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_caps_and_normalizers_are_positive(bad: float) -> None:
    x = torch.zeros(2)
    with pytest.raises(ConfigError, match="cap is"):
        importance_weights(x, x, bad)
    with pytest.raises(ConfigError, match="normalizer is"):
        sampled_token_loss(x, x, x, bad)
