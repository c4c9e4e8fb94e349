"""No objective asks the device for a number: the loop looks once, at the loss."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from effopd.objectives import (
    check_finite,
    clipped_surrogate,
    clipped_value_loss,
    exopd_advantages,
    fused_divergence,
    importance_weights,
    k3_divergence,
    sampled_token_loss,
)
from effopd.objectives.token_logprobs import _TokenLogProbsFunction


class Waits(TorchDispatchMode):
    """Counts operations whose result the host waits for."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.count += func.__name__.split(".")[0] in self.NAMES
        return func(*args, **(kwargs or {}))


def sampled_token(a: Tensor, b: Tensor) -> Tensor:
    weights = importance_weights(a.detach(), b, 5.0)
    return sampled_token_loss(a, exopd_advantages(a, b, b, 1.25), weights, 8)


def whole_vocabulary(a: Tensor, b: Tensor) -> Tensor:
    hidden, weight = a[:, None].expand(8, 3), b[:, None].expand(8, 3)
    return fused_divergence(hidden, weight, hidden, weight).loss


def capped(a: Tensor, b: Tensor) -> Tensor:
    hidden, weight = a[:, None].expand(8, 3), b[:, None].expand(8, 3)
    return fused_divergence(hidden, weight, hidden, weight, student_cap=3.0, teacher_cap=2.0).loss


def log_probs(a: Tensor, b: Tensor) -> Tensor:
    hidden, weight = a[:, None].expand(8, 3), b[:, None].expand(8, 3)
    targets = torch.arange(8)
    found, _ = _TokenLogProbsFunction.apply(hidden, weight, None, None, targets, 1.0, 2, None)
    return found.sum()


@pytest.mark.parametrize(
    "loss",
    [
        sampled_token,
        whole_vocabulary,
        capped,
        log_probs,
        lambda a, b: clipped_surrogate(a, b, b, 0.2, 0.28).loss_N.sum(),
        lambda a, b: k3_divergence(a, b).sum(),
        lambda a, b: clipped_value_loss(a, b, b, 0.2).sum(),
    ],
)
def test_a_loss_and_its_gradient_wait_for_nothing(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = (-torch.rand(8)).requires_grad_(), -torch.rand(8)
    with Waits() as seen:
        value = loss(a, b)
        value.backward()
    assert seen.count == 0
    with Waits() as seen:
        check_finite(value, policy=a)
    assert seen.count == 1
