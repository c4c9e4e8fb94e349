"""The clipped surrogate and what goes with it, against plain loops and closed forms."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import objectives_twin
from tests.reference import rl_twin as twin
from tests.reference.objectives_models import DOUBLE, close
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.objectives import (
    ClippedSurrogate,
    check_finite,
    clipped_surrogate,
    clipped_value_loss,
    k3_divergence,
    token_weights,
)

nats = st.floats(-8.0, 0.0)
numbers = st.floats(-3.0, 3.0)
AGGREGATIONS: list[Any] = ["sequence", "token", "constant"]


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gradient(values_N: Tensor, inputs_N: Tensor) -> Tensor:
    return torch.autograd.grad(values_N.sum(), inputs_N)[0]


# Clipped surrogate --------------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(nats, nats, numbers), min_size=1, max_size=6),
    low=st.floats(0.05, 1.0),
    high=st.floats(0.05, 2.0),
)
def test_surrogate_equals_the_loop(
    rows: list[tuple[float, float, float]], low: float, high: float
) -> None:
    log_probs, old, advantages = (double(column) for column in zip(*rows, strict=True))
    log_probs.requires_grad_()
    found = clipped_surrogate(log_probs, old, advantages, low, high)
    expected = [twin.clipped_surrogate(*row, low, high) for row in rows]
    losses, slopes, clipped = (list(column) for column in zip(*expected, strict=True))
    assert close(found.loss_N.detach(), double(losses))
    assert close(gradient(found.loss_N, log_probs), double(slopes))
    assert found.clipped_N.tolist() == clipped


def test_clip_takes_the_gradient_only_of_what_went_too_far_already() -> None:
    ratios = double([0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.0])
    for advantage, moves in ((1.0, [1, 1, 1, 1, 1, 0, 0]), (-1.0, [0, 0, 1, 1, 1, 1, 1])):
        log_probs = ratios.log().requires_grad_()
        zeros = torch.zeros(7, dtype=DOUBLE)
        found = clipped_surrogate(log_probs, zeros, zeros + advantage, 0.2, 0.28)
        slopes = gradient(found.loss_N, log_probs)
        assert close(slopes, -advantage * ratios * double(moves))
        assert (~found.clipped_N).int().tolist() == moves


def test_surrogate_has_one_differentiable_input() -> None:
    inputs = [x.requires_grad_() for x in (normal(5, 1), normal(5, 2), normal(5, 3))]
    clipped_surrogate(*inputs, 0.2, 0.28).loss_N.sum().backward()
    assert [x.grad is not None for x in inputs] == [True, False, False]


def test_token_without_advantage_has_no_gradient_to_lose() -> None:
    far = torch.tensor([-3.0, 3.0])
    found = clipped_surrogate(far, torch.zeros(2), torch.zeros(2), 0.2, 0.28)
    assert found.clipped_N.tolist() == [False, False]
    assert found.loss_N.abs().tolist() == [0.0, 0.0]


def test_no_tokens() -> None:
    empty = torch.empty(0, requires_grad=True)
    found = clipped_surrogate(empty, empty, empty, 0.2, 0.28)
    assert found.clipped_N.shape == (0,)
    assert found.loss_N.sum().item() == 0.0


# k3 -----------------------------------------------------------------------------------------------


@given(rows=st.lists(st.tuples(nats, nats), min_size=1, max_size=6))
def test_k3_equals_the_loop_and_is_not_negative(rows: list[tuple[float, float]]) -> None:
    log_probs, reference = (double(column) for column in zip(*rows, strict=True))
    log_probs.requires_grad_()
    found = k3_divergence(log_probs, reference)
    values, slopes = (double(x) for x in zip(*(twin.k3(*row) for row in rows), strict=True))
    assert close(found.detach(), values)
    assert close(gradient(found, log_probs), slopes)
    assert (found >= 0).all()


def test_k3_of_the_reference_itself_is_exactly_zero() -> None:
    log_probs = (-normal(9).abs()).float().requires_grad_()
    found = k3_divergence(log_probs, log_probs.detach().clone())
    assert found.tolist() == [0.0] * 9
    assert gradient(found, log_probs).tolist() == [0.0] * 9


def test_k3_leaves_the_reference_alone() -> None:
    inputs = [normal(5, seed).requires_grad_() for seed in (1, 2)]
    k3_divergence(*inputs).sum().backward()
    assert [x.grad is not None for x in inputs] == [True, False]


def test_k3_keeps_its_digits_for_small_differences() -> None:
    """d^2 / 2 for small d, where exp(d) - d - 1 in fp32 is rounding noise."""
    found = k3_divergence(torch.tensor([-1e-5]), torch.tensor([0.0]))
    assert found.item() == pytest.approx(5e-11, rel=0.2)


def test_expected_k3_is_the_reverse_kl_and_its_gradient_that_of_the_forward_kl() -> None:
    logits, reference = normal(11, 1).requires_grad_(), normal(11, 2).log_softmax(0)
    log_probs = logits.log_softmax(0)
    expected = log_probs.detach().exp() * k3_divergence(log_probs, reference)
    assert close(expected.sum(), objectives_twin.kl(log_probs, reference))
    forward = objectives_twin.kl(reference, logits.log_softmax(0))
    assert close(gradient(expected, logits), gradient(forward, logits))


# Weights of tokens --------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any),
    spare=st.integers(0, 5),
    aggregation=st.sampled_from(AGGREGATIONS),
)
def test_weighted_sum_is_the_aggregate(lengths: list[int], spare: int, aggregation: Any) -> None:
    longest, tokens = max(lengths) + spare, sum(lengths)
    losses = normal(tokens)
    weights = token_weights(
        lengths, aggregation, longest=longest, sequences=len(lengths), tokens=tokens
    )
    responses = [part.tolist() for part in losses.split(lengths)]
    assert close((weights * losses).sum(), double(twin.aggregate(responses, aggregation, longest)))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_micro_batches_have_the_weights_of_the_whole(aggregation: Any, cut: int) -> None:
    lengths = [3, 1, 8, 2, 5]
    counts = {"longest": 10, "sequences": 5, "tokens": 19}
    whole = token_weights(lengths, aggregation, **counts)
    parts = [token_weights(part, aggregation, **counts) for part in (lengths[:cut], lengths[cut:])]
    assert torch.equal(torch.cat(parts), whole)


def test_weights_of_each_aggregation() -> None:
    counts = {"longest": 8, "sequences": 2, "tokens": 5}
    assert token_weights([1, 4], "token", **counts).tolist() == [0.2] * 5
    assert token_weights([1, 4], "sequence", **counts).tolist() == [0.5] + [0.125] * 4
    assert token_weights([1, 4], "constant", **counts).tolist() == [1 / 16] * 5
    assert token_weights([], "sequence", **counts).tolist() == []


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([4, 4, 1], "'sequences': 3"), ([8], "'tokens': 8"), ([7], "'longest': 7"), ([-1], "0 or mo")],
)
def test_parts_that_exceed_the_whole(lengths: list[int], message: str) -> None:
    with pytest.raises(ParameterMismatchError, match=message):
        token_weights(lengths, "token", longest=6, sequences=2, tokens=7)


def test_unknown_aggregation() -> None:
    with pytest.raises(ConfigError, match=r"aggregation is 'mean'; expected one of \('seq"):
        token_weights([1], "mean", longest=1, sequences=1, tokens=1)  # type: ignore[arg-type]


# Value loss ---------------------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6),
    clip=st.floats(0.01, 2.0),
)
def test_value_loss_equals_the_loop(rows: list[tuple[float, float, float]], clip: float) -> None:
    found = clipped_value_loss(*(double(column) for column in zip(*rows, strict=True)), clip)
    assert close(found, double([twin.clipped_value_loss(*row, clip) for row in rows]))


def test_value_loss_trains_the_values_alone() -> None:
    inputs = [normal(5, seed).requires_grad_() for seed in (1, 2, 3)]
    clipped_value_loss(*inputs, 0.2).sum().backward()
    assert [x.grad is not None for x in inputs] == [True, False, False]


# Errors -------------------------------------------------------------------------------------------

CALLS: list[Callable[[Tensor, Tensor], Any]] = [
    lambda a, b: clipped_surrogate(a, a, b, 0.2, 0.28),
    lambda a, b: clipped_surrogate(a, b, a, 0.2, 0.28),
    lambda a, b: k3_divergence(a, b),
    lambda a, b: clipped_value_loss(a, a, b, 0.2),
    lambda a, b: clipped_value_loss(a, b, a, 0.2),
]


@pytest.mark.parametrize("call", CALLS)
def test_bad_tensors(call: Callable[[Tensor, Tensor], Any]) -> None:
    good, broken = torch.zeros(5), torch.zeros(5)
    broken[2] = -math.inf
    for found in (call(good, broken), call(broken, good)):
        loss = found.loss_N if isinstance(found, ClippedSurrogate) else found
        assert loss.isfinite().tolist() == [True, True, False, True, True]
    for shape in [(4,), (5, 1), ()]:
        with pytest.raises(ParameterMismatchError, match="one number per token"):
            call(good, torch.zeros(shape))


def test_no_clip_hides_an_overflow() -> None:
    zeros, far, gain = torch.zeros(2), torch.tensor([0.0, -200.0]), torch.ones(2)
    surrogate = clipped_surrogate(zeros, far, gain, 0.2, 0.28).loss_N
    for loss in (surrogate, k3_divergence(far, zeros)):
        assert loss.isfinite().tolist() == [True, False]
        with pytest.raises(NonFiniteError, match=r"moved too far.*Lower the learning rate"):
            check_finite(loss, policy=zeros, old=far)


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan])
def test_clips_are_positive(bad: float) -> None:
    x = torch.zeros(2)
    with pytest.raises(ConfigError, match="clip_low is"):
        clipped_surrogate(x, x, x, bad, 0.2)
    with pytest.raises(ConfigError, match="clip_high is"):
        clipped_surrogate(x, x, x, 0.2, bad)
    with pytest.raises(ConfigError, match="clip is"):
        clipped_value_loss(x, x, x, bad)
