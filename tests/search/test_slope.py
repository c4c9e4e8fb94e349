"""The rate that follows slopes: against displacements that are measured, and on known parabolas."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.slope_twin import followed
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.search import slope as module
from effopd.search.slope import SlopeRate, SlopeSettings, minimum, slopes

BETAS = (0.9, 0.95)


def adamw(*tensors: Tensor, lr: float = 1e-3) -> torch.optim.AdamW:
    return torch.optim.AdamW(tensors, lr=lr, betas=BETAS, weight_decay=0.0)


def random_gradients(steps: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    drift = torch.randn(size, generator=generator)
    return [drift + torch.randn(size, generator=generator) for _ in range(steps)]


def test_rates_and_weights_are_those_of_measured_displacements() -> None:
    parts = [torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.zeros(11)]
    gradients = random_gradients(12, 31)
    lrs = [1e-3 * (1 - i / 24) for i in range(12)]
    rates, last = followed(torch.cat([p.flatten() for p in parts]), gradients, lrs, BETAS)
    live = [part.clone().requires_grad_() for part in parts]
    optimizer = adamw(*live)
    rate, found = SlopeRate(optimizer), []
    for gradient, lr in zip(gradients, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        live[0].grad, live[1].grad = gradient[:20].view(4, 5), gradient[20:].clone()
        found.append(rate.before_step_())
        assert optimizer.param_groups[0]["lr"] == found[-1]
        optimizer.step()
        rate.after_step_()
        assert optimizer.param_groups[0]["lr"] == lr
    assert found == pytest.approx(rates, rel=1e-4)
    assert torch.cat([p.detach().flatten() for p in live]).double() == pytest.approx(last, abs=1e-6)


def test_no_gradient_has_no_slope() -> None:
    assert slopes(adamw(torch.zeros(3, requires_grad=True))) == (0.0, 0.0)


def test_what_clipping_took_from_the_gradient_is_given_back_to_its_slope() -> None:
    def rates(clip: Callable[[int], float]) -> list[float]:
        weights = torch.zeros(6, requires_grad=True)
        # One moment only, and no square: the steps are the same, whatever multiplies a gradient.
        optimizer = torch.optim.AdamW([weights], lr=1e-2, betas=(0.0, 0.0), weight_decay=0.0)
        follower, found = SlopeRate(optimizer), []
        for i, gradient in enumerate(random_gradients(8, 6)):
            weights.grad = gradient * clip(i)
            found.append(follower.before_step_(clipped=clip(i)))
            optimizer.step()
            follower.after_step_()
        return found

    assert rates(lambda i: 2.0**-i) == pytest.approx(rates(lambda _: 1.0), rel=1e-5)


@given(st.floats(0.01, 100), st.floats(-5, 5), st.floats(0.01, 10))
def test_the_minimum_of_a_parabola_is_found_exactly(k: float, at: float, step: float) -> None:
    # f(w) = k/2 w^2 from w = at, along -sign(at) * step
    if abs(at) < 1e-3:
        return
    d = -math.copysign(step, at)
    start, tip = k * at * d, k * (at + d) * d
    assert minimum(start, tip) * d == pytest.approx(-at, rel=1e-6)


def test_without_a_minimum_ahead() -> None:
    assert minimum(-1.0, -1.0) == math.inf  # no curvature
    assert minimum(-1.0, -2.0) == math.inf  # falls ever faster
    assert minimum(0.5, 1.0) == 0.0  # uphill from the start
    assert minimum(-1.0, 3.0) == 0.25


def test_before_the_first_step_only_the_coming_step_has_a_slope() -> None:
    weights = torch.tensor([3.0, -4.0], requires_grad=True)
    weights.grad = torch.tensor([2.0, -0.5])
    tip, start = slopes(adamw(weights))
    assert tip == 0.0
    assert start == pytest.approx(-2.5)  # Adam's first step is minus the sign


def test_a_large_model_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    large, small = torch.zeros(400, 512, requires_grad=True), torch.zeros(100, requires_grad=True)
    optimizer = adamw(large, small)
    for _ in range(2):
        large.grad = 1 + torch.randn(400, 512, generator=generator)
        small.grad = 1 + torch.randn(100, generator=generator)
        optimizer.step()
    whole = slopes(optimizer)
    monkeypatch.setattr(module, "_READ", 2**14)  # a twelfth
    assert slopes(optimizer) == pytest.approx(whole, rel=0.02)
    assert slopes(optimizer) != whole


@pytest.mark.parametrize("shape", [(8, 4), (32,)])
def test_weights_of_any_precision_and_layout_are_moved(shape: tuple[int, ...]) -> None:
    """Without masters the moments are bfloat16 too; a transposed weight is no vector in place."""
    weights = torch.ones(shape, dtype=torch.bfloat16)
    weights = (weights.mT if weights.ndim > 1 else weights).requires_grad_()
    optimizer = adamw(weights, lr=1.0)
    rate = SlopeRate(optimizer)
    weights.grad = torch.full_like(weights, 1.0)
    rate.before_step_(1.0)
    optimizer.step()
    rate.after_step_()
    weights.grad = torch.full_like(weights, -1.0)  # the minimum is half of the way
    rate.try_again_(0.5)
    assert rate.factor == pytest.approx(0.25, rel=1e-2)
    assert weights.detach().float() == pytest.approx(torch.full(weights.shape, 0.75), abs=0.01)
    rate.before_step_()


def quadratic(
    lr: float, noise: float, trials: int, rest: float = 0.05, size: int = 50
) -> tuple[float, list[float]]:
    """Loss after 300 noisy steps on a badly scaled quadratic as a share of the first; the rates."""
    generator = torch.Generator().manual_seed(0)
    curvature = torch.logspace(-1, 1, size)
    goal = torch.randn(size, generator=generator)
    weights = torch.zeros(size, requires_grad=True)
    optimizer = adamw(weights, lr=lr)
    rate = SlopeRate(optimizer, SlopeSettings(trials=trials, rest=rest))

    def loss() -> float:
        return float((curvature * (weights.detach() - goal) ** 2).sum() / 2)

    first, rates = loss(), []
    for _ in range(300):
        drawn = noise * torch.randn(size, generator=generator)
        weights.grad = curvature * (weights.detach() - goal) + drawn
        rates.append(rate.before_step_(loss()))
        optimizer.step()
        rate.after_step_()
        while rate.tries:
            weights.grad = curvature * (weights.detach() - goal) + drawn
            rate.try_again_(loss())
        rates[-1] = lr * rate.factor
    return loss() / first, rates


@pytest.mark.parametrize("lr", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("trials", [0, 10])
def test_from_any_rate_a_noisy_quadratic_is_solved(lr: float, trials: int) -> None:
    assert quadratic(lr, 0.3, trials)[0] < 0.05


@pytest.mark.parametrize("noise", [3.0, 10.0, 30.0])
def test_short_of_the_minimum_there_is_far_less_noise(noise: float) -> None:
    rested, greedy = (quadratic(1e-2, noise, 10, rest, 1000)[0] for rest in (0.05, 0.0))
    assert rested < 0.6 * greedy


def test_the_first_update_finds_one_rate_wherever_it_starts() -> None:
    firsts = [quadratic(lr, 0.0, 10)[1][0] for lr in (1e-5, 1e-3, 1e-1, 10.0)]
    assert max(firsts) < 4 * min(firsts)


def test_a_first_update_that_was_tried_is_one_of_its_last_rate() -> None:
    """Weights, moments and what is remembered are as if it had been taken at that rate."""

    def first(lr: float, trials: int) -> tuple[Tensor, torch.optim.AdamW, float]:
        weights = torch.tensor([3.0, -2.0, 0.5], requires_grad=True)
        optimizer = torch.optim.AdamW([weights], lr=lr, betas=BETAS, weight_decay=0.1)
        rate = SlopeRate(optimizer, SlopeSettings(trials=trials))
        weights.grad = weights.detach().clone()  # of half its square
        rate.before_step_(float(weights.detach().square().sum() / 2))
        optimizer.step()
        rate.after_step_()
        while rate.tries:
            weights.grad = weights.detach().clone()
            rate.try_again_(float(weights.detach().square().sum() / 2))
        return weights.detach(), optimizer, rate.factor

    tried, optimizer, factor = first(20.0, 10)
    assert factor < 0.5
    plain, other, _ = first(20.0 * factor, 0)
    assert tried == pytest.approx(plain, abs=1e-4)
    group, same = optimizer.param_groups[0], other.param_groups[0]
    assert group["slope_rate"] == pytest.approx(same["slope_rate"])
    assert group["slope_last"] == same["slope_last"]
    assert group["lr"] == 20.0


def test_where_the_loss_rose_the_first_update_is_shortened_whatever_its_slope() -> None:
    weights = torch.zeros(3, requires_grad=True)
    optimizer = adamw(weights, lr=1.0)
    rate = SlopeRate(optimizer)
    weights.grad = torch.ones(3)
    rate.before_step_(1.0)
    optimizer.step()
    rate.after_step_()
    rate.try_again_(2.0)  # downhill at the tip as well
    assert rate.factor == 0.25
    assert weights.detach() == pytest.approx(torch.full((3,), -0.25))
    rate.try_again_(0.5)
    assert rate.factor == 1.0
    assert rate.tries


def test_without_a_value_nothing_is_tried() -> None:
    weights = torch.zeros(3, requires_grad=True)
    rate = SlopeRate(adamw(weights))
    weights.grad = torch.ones(3)
    rate.before_step_()
    assert not rate.tries


def test_an_optimizer_that_is_saved_and_restored_goes_on_alike() -> None:
    gradients = random_gradients(10, 6)

    def go_on(optimizer: torch.optim.Optimizer, weights: Tensor, some: list[Tensor]) -> None:
        rate = SlopeRate(optimizer)
        for gradient in some:
            weights.grad = gradient.clone()
            rate.before_step_()
            optimizer.step()
            rate.after_step_()

    whole = torch.zeros(6, requires_grad=True)
    go_on(adamw(whole), whole, gradients)
    first = torch.zeros(6, requires_grad=True)
    optimizer = adamw(first)
    go_on(optimizer, first, gradients[:4])
    second = first.detach().clone().requires_grad_()
    restored = adamw(second)
    restored.load_state_dict(optimizer.state_dict())
    go_on(restored, second, gradients[4:])
    assert torch.equal(second, whole)


def test_a_slope_that_is_not_finite_changes_nothing() -> None:
    weights = torch.zeros(2, requires_grad=True)
    weights.grad = torch.tensor([math.nan, 1.0])
    optimizer = adamw(weights)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(NonFiniteError, match="slopes"):
        SlopeRate(optimizer).before_step_()
    assert optimizer.param_groups[0] == before


def test_other_optimizers_are_refused() -> None:
    weights = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(ConfigError, match="got SGD"):
        SlopeRate(torch.optim.SGD(weights, lr=0.1))
    with pytest.raises(ConfigError, match="amsgrad"):
        SlopeRate(torch.optim.AdamW(weights, amsgrad=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memory": 1.0}, "memory"),
        ({"power": 0.0}, "power"),
        ({"rest": 1.0}, "rest"),
        ({"trials": -1}, "trials"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SlopeSettings(**settings)
