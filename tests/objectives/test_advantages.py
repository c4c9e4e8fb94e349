"""Advantages against plain loops and closed forms."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import rl_twin as twin
from tests.reference.objectives_models import DOUBLE, close
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.objectives import (
    explained_variance,
    gae,
    group_advantages,
    informative_groups,
    overlong_penalties,
    whiten,
)

numbers = st.floats(-5.0, 5.0).map(lambda x: round(x, 3))
shares = st.floats(0.0, 1.0)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


# Groups -------------------------------------------------------------------------------------------


@given(
    rows=st.integers(2, 6).flatmap(
        lambda size: st.lists(
            st.lists(numbers, min_size=size, max_size=size), min_size=1, max_size=4
        )
    ),
    scale=st.sampled_from(["std", "none"]),
)
def test_group_advantages_equal_the_loops(rows: list[list[float]], scale: Any) -> None:
    expected = [twin.group_advantages(row, scale) for row in rows]
    assert close(group_advantages(double(rows), scale), double(expected))
    differ = [len(set(row)) > 1 for row in rows]
    assert informative_groups(double(rows)).tolist() == differ


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_equal_rewards_give_exactly_zero(reward: float, scale: Any) -> None:
    """Also where the rounded mean differs from them, as it does for 0.1 in fp32."""
    rewards = torch.full((2, 7), reward)
    rewards[1, 0] = 0.0
    found = group_advantages(rewards, scale)
    assert found[0].tolist() == [0.0] * 7
    assert found[1].abs().min() > 0
    assert informative_groups(rewards).tolist() == [False, True]


def test_half_precision_rewards_are_compared_in_single() -> None:
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.bfloat16), "none")
    assert found.dtype == torch.float32
    assert close(found.double(), double([[2 / 3, -1 / 3, -1 / 3]]), 1e-6)


@pytest.mark.parametrize("call", [informative_groups, lambda x: group_advantages(x, "std")])
def test_bad_rewards(call: Any) -> None:
    for shape in [(4,), (3, 1), (2, 2, 2)]:
        with pytest.raises(ParameterMismatchError, match="two or more responses"):
            call(torch.zeros(shape))
    for bad in (math.nan, math.inf):
        rewards = torch.zeros(3, 4)
        rewards[1, 2] = bad
        with pytest.raises(NonFiniteError, match=r"reward of response 2 of group 1 is (nan|inf)"):
            call(rewards)


def test_unknown_scale() -> None:
    with pytest.raises(ConfigError, match="scale is 'batch'; expected 'std' or 'none'"):
        group_advantages(torch.zeros(1, 2), "batch")  # type: ignore[arg-type]


# Length -------------------------------------------------------------------------------------------


def test_penalty_is_zero_then_linear_then_minus_one() -> None:
    found = overlong_penalties([0, 12, 16, 17, 18, 20, 21, 40], longest=20, buffer=4)
    assert found.tolist() == [0.0, 0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    assert overlong_penalties([1, 20, 99], longest=20, buffer=0).tolist() == [0.0, 0.0, 0.0]
    assert overlong_penalties([0, 5, 20], longest=20, buffer=20).tolist() == [0.0, -0.25, -1.0]


@given(
    lengths=st.lists(st.integers(0, 60), max_size=6),
    longest=st.integers(1, 50),
    share=shares,
)
def test_penalty_equals_the_printed_pieces(lengths: list[int], longest: int, share: float) -> None:
    buffer = int(share * longest)
    found = overlong_penalties(lengths, longest, buffer)
    assert close(found, double([twin.overlong_penalty(n, longest, buffer) for n in lengths]))


@pytest.mark.parametrize("buffer", [-1, 21])
def test_buffer_fits_into_the_longest_response(buffer: int) -> None:
    with pytest.raises(ConfigError, match=f"buffer is {buffer} tokens.*longest response"):
        overlong_penalties([3], longest=20, buffer=buffer)


def test_negative_lengths_are_refused() -> None:
    with pytest.raises(ParameterMismatchError, match="0 or more"):
        overlong_penalties([3, -1], longest=20, buffer=4)


# Critic -------------------------------------------------------------------------------------------

LENGTHS = [[5], [1, 1, 1], [3, 0, 17, 1, 32], [0], [], [64, 65, 63]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.0, 0.5)])
def test_gae_equals_the_loop(lengths: list[int], gamma: float, lam: float) -> None:
    rewards, values = normal(sum(lengths), 1), normal(sum(lengths), 2)
    advantages, returns = gae(rewards, values, lengths, gamma, lam)
    expected = twin.gae(rewards.tolist(), values.tolist(), lengths, gamma, lam)
    assert close(advantages, double(expected[0]))
    assert close(returns, double(expected[1]))


def test_sequences_do_not_touch_each_other() -> None:
    rewards, values = normal(12, 1), normal(12, 2)
    whole = gae(rewards, values, [7, 5], 1.0, 0.95)
    first = gae(rewards[:7], values[:7], [7], 1.0, 0.95)
    rewards[7:], values[7:] = 1e6, -1e6
    assert torch.equal(whole.advantages_N[:7], first.advantages_N)
    assert torch.equal(gae(rewards, values, [7, 5], 1.0, 0.95).returns_N[:7], first.returns_N)


def test_bad_critic_inputs() -> None:
    x = torch.zeros(5)
    with pytest.raises(ParameterMismatchError, match=r"2 sequences have 6 tokens together.* 5 val"):
        gae(x, x, [3, 3], 1.0, 0.95)
    with pytest.raises(ParameterMismatchError, match="0 or more"):
        gae(x, x, [6, -1], 1.0, 0.95)
    with pytest.raises(ParameterMismatchError, match="one number per token"):
        gae(x, torch.zeros(4), [5], 1.0, 0.95)
    with pytest.raises(NonFiniteError, match="values: token 3 is nan"):
        gae(x, double([0, 0, 0, math.nan, 0]), [5], 1.0, 0.95)
    for name, settings in {"gamma": (1.1, 0.5), "lam": (0.5, math.nan)}.items():
        with pytest.raises(ConfigError, match=f"{name} is .*from 0.0 to 1.0"):
            gae(x, x, [5], *settings)


# Whitening and the critic's quality ---------------------------------------------------------------


@given(st.lists(numbers, min_size=2, max_size=9).filter(lambda x: len(set(x)) > 1))
def test_whitened_has_mean_zero_and_variance_one(values: list[float]) -> None:
    found = whiten(double(values))
    assert close(found, double(twin.whiten(values)))
    assert abs(found.mean()) < 1e-9
    assert abs((found**2).mean() - 1) < 1e-4


@pytest.mark.parametrize("values", [[0.1] * 7, [3.0], []])
def test_equal_advantages_whiten_to_exactly_zero(values: list[float]) -> None:
    assert whiten(torch.tensor(values)).tolist() == [0.0] * len(values)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9))
def test_explained_variance_equals_the_loop(pairs: list[tuple[float, float]]) -> None:
    returns, values = ([pair[i] for pair in pairs] for i in (0, 1))
    found = explained_variance(double(returns), double(values))
    if len(set(returns)) == 1:
        assert found is None
    else:
        assert found is not None
        unexplained = 1 - twin.explained_variance(returns, values)  # near 1 the rest cancels
        assert math.isclose(1 - found, unexplained, rel_tol=1e-9, abs_tol=1e-12)


def test_everything_is_detached() -> None:
    x, y = normal(6, 1).requires_grad_(), normal(6, 2).requires_grad_()
    found = [*gae(x, y, [2, 4], 1.0, 0.95), whiten(x), group_advantages(x.view(2, 3), "std")]
    assert not any(tensor.requires_grad for tensor in found)


@pytest.mark.parametrize("call", [lambda a, b: whiten(b), explained_variance])
def test_non_finite_tokens(call: Any) -> None:
    broken = torch.tensor([0.0, math.inf])
    with pytest.raises(NonFiniteError, match="token 1 is inf"):
        call(torch.tensor([0.0, 1.0]), broken)
