"""The fused divergences against full logits: values, and every element of every gradient."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.reference import objectives_twin as twin
from tests.reference.objectives_models import DOUBLE, Models, close, models
from torch import Tensor

from effopd.errors import ConfigError
from effopd.objectives import fused_divergence, token_divergences

KINDS: list[tuple[str, float]] = [
    ("reverse", 0.5),
    ("forward", 0.5),
    ("jsd", 0.5),
    ("jsd", 0.1),
    ("jsd", 0.9),
]


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize(("tokens", "chunk"), [(7, 3), (7, 7), (7, 100), (7, None), (1, 1), (8, 4)])
def test_equals_full_logits_element_by_element(
    kind: str, beta: float, tokens: int, chunk: int | None
) -> None:
    m = models(tokens)
    result = m.fused(divergence=kind, beta=beta, chunk_tokens=chunk, temperature=1.7, normalizer=3)
    expected = m.naive(kind, beta, temperature=1.7)
    assert close(result.per_token_N, expected)
    assert close(result.loss, expected.sum() / 3)
    for found, wanted in zip(
        m.gradients(result.loss * 0.3), m.gradients(expected.sum() * 0.1), strict=True
    ):
        assert close(found, wanted)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("temperatures", [(1.0, 0.5), (1.7, 0.3), (0.6, 2.5)])
def test_teacher_temperature_divides_the_teachers_logits_alone(
    kind: str, beta: float, temperatures: tuple[float, float]
) -> None:
    m = models()
    both, teachers = temperatures
    settings = {"temperature": both, "teacher_temperature": teachers}
    result = m.fused(divergence=kind, beta=beta, chunk_tokens=3, **settings)
    expected = m.naive(kind, beta, **settings)
    assert close(result.per_token_N, expected)
    for found, wanted in zip(m.gradients(result.loss), m.gradients(expected.mean()), strict=True):
        assert close(found, wanted)
    assert not close(expected, m.naive(kind, beta, temperature=both), 1e-3)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("caps", [(2.0, None), (None, 0.7), (1.5, 3.0)])
def test_each_model_has_its_own_soft_cap(
    kind: str, beta: float, caps: tuple[float | None, float | None]
) -> None:
    m = models()
    settings: dict[str, Any] = {"student_cap": caps[0], "teacher_cap": caps[1]}
    settings |= {"temperature": 1.7, "teacher_temperature": 0.6}
    result = m.fused(divergence=kind, beta=beta, chunk_tokens=3, **settings)
    expected = m.naive(kind, beta, **settings)
    assert close(result.per_token_N, expected)
    for found, wanted in zip(m.gradients(result.loss), m.gradients(expected.mean()), strict=True):
        assert close(found, wanted)
    assert not close(expected, m.naive(kind, beta, temperature=1.7, teacher_temperature=0.6), 1e-3)


def test_a_cap_far_above_the_logits_is_none() -> None:
    m = models()
    capped = m.fused(student_cap=1e7, teacher_cap=1e7)
    plain = m.fused()
    assert close(capped.per_token_N, plain.per_token_N)
    for found, wanted in zip(m.gradients(capped.loss), m.gradients(plain.loss), strict=True):
        assert close(found, wanted)


def test_cold_teacher_is_the_cross_entropy_of_its_favourite_token() -> None:
    m = models()
    favourites = (m.teacher_hidden @ m.teacher_weight.T + m.teacher_bias).argmax(-1)
    result = m.fused(divergence="forward", teacher_temperature=1e-6)
    student = twin.log_distributions(*m.trained)
    expected = -student.gather(1, favourites[:, None])[:, 0]
    assert close(result.per_token_N, expected)


class Fresh(torch.autograd.Function):
    """Evaluates a loss anew for every backward pass, of which gradcheck takes several."""

    @staticmethod
    def forward(ctx: Any, loss: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.loss = loss
        ctx.save_for_backward(*inputs)
        return loss(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return None, *torch.autograd.grad(ctx.loss(*inputs), inputs, grad)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_gradcheck(kind: str, beta: float) -> None:
    m = models(tokens=5, vocabulary=6)
    fixed = m.teacher_hidden, m.teacher_weight, m.teacher_bias
    heat = {"temperature": 0.8, "teacher_temperature": 0.7}

    def loss(*trained: Tensor) -> Tensor:
        changed = Models(*trained, *fixed)
        return changed.fused(divergence=kind, beta=beta, chunk_tokens=2, **heat).loss

    assert torch.autograd.gradcheck(lambda *trained: Fresh.apply(loss, *trained), m.trained)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_single_precision(kind: str, beta: float) -> None:
    exact, single = models(40, 97), models(40, 97, torch.float32)
    result = single.fused(divergence=kind, beta=beta, chunk_tokens=16)
    expected = exact.naive(kind, beta)
    assert result.per_token_N.dtype == torch.float32
    assert close(result.per_token_N.double(), expected, 2e-6)
    for found, wanted in zip(
        single.gradients(result.loss), exact.gradients(expected.mean()), strict=True
    ):
        assert found.dtype == torch.float32
        assert close(found.double(), wanted, 1e-6)


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_bfloat16_inputs_lose_nothing_but_the_last_rounding(kind: str) -> None:
    half = models(40, 97, torch.bfloat16)
    exact = Models(*(t.detach().double().requires_grad_() for t in vars(half).values()))
    result = half.fused(divergence=kind, chunk_tokens=8)
    expected = exact.naive(kind)
    assert close(result.per_token_N.double(), expected.detach(), 2e-6)
    for found, wanted in zip(
        half.gradients(result.loss), exact.gradients(expected.mean()), strict=True
    ):
        assert found.dtype == torch.bfloat16
        # At most one unit in the last place: the fp32 sum may fall on the other side of a tie.
        assert (found.double() - wanted).abs().max() <= 2**-8 * wanted.abs().max()
        assert (found == wanted.bfloat16()).float().mean() > 0.99


def test_bfloat16_head_larger_than_one_block_of_rows() -> None:
    half = models(3, 9000, torch.bfloat16)
    exact = Models(*(t.detach().double().requires_grad_() for t in vars(half).values()))
    result, expected = half.fused(), exact.naive("reverse")
    assert close(result.per_token_N.double(), expected.detach(), 1e-5)
    hidden, wanted = half.gradients(result.loss)[0], exact.gradients(expected.mean())[0]
    assert (hidden.double() - wanted).abs().max() <= 2**-8 * wanted.abs().max()


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
def test_only_what_requires_a_gradient_gets_one(wanted: tuple[int, int, int]) -> None:
    m, full = models(), models()
    expected = full.gradients(full.naive("reverse").mean())
    for tensor, want in zip(m.trained, wanted, strict=True):
        tensor.requires_grad_(bool(want))
    m.fused(chunk_tokens=3).loss.backward()
    for tensor, want, gradient in zip(m.trained, wanted, expected, strict=True):
        assert (tensor.grad is not None) == bool(want)
        assert tensor.grad is None or close(tensor.grad, gradient)


def test_teacher_gets_no_gradient() -> None:
    m = models()
    teacher = [m.teacher_hidden, m.teacher_weight, m.teacher_bias]
    for tensor in teacher:
        tensor.requires_grad_()
    m.fused().loss.backward()
    assert all(tensor.grad is None for tensor in teacher)


def test_tied_weights_and_shared_inputs() -> None:
    """The head is also the embedding, and a model distilled from itself stands still."""
    m, n = models(), models()
    tokens = torch.tensor([0, 3, 3, 10])
    teacher = m.teacher_hidden[:4], m.teacher_weight
    for each in (m, n):
        hidden = each.student_weight[tokens].tanh()
        if each is m:
            fused_divergence(hidden, each.student_weight, *teacher, chunk_tokens=3).loss.backward()
        else:
            log_p = twin.log_distributions(hidden, each.student_weight)
            twin.kl(log_p, twin.log_distributions(*teacher)).mean().backward()
    assert close(m.student_weight.grad, n.student_weight.grad)
    itself = fused_divergence(
        m.student_hidden, m.student_weight, m.student_hidden, m.student_weight
    )
    assert itself.per_token_N.abs().max() < 1e-14
    assert max(g.abs().max() for g in torch.autograd.grad(itself.loss, m.trained[:2])) < 1e-14


def test_gradients_accumulate_over_micro_batches() -> None:
    full, parts = models(), models()
    full.fused(normalizer=7).loss.backward()
    for part in twin.micro_batches(7, (2, 3)):
        fused_divergence(
            parts.student_hidden[part],
            parts.student_weight,
            parts.teacher_hidden[part],
            parts.teacher_weight,
            student_bias=parts.student_bias,
            teacher_bias=parts.teacher_bias,
            normalizer=7,
        ).loss.backward()
    for found, wanted in zip(parts.trained, full.trained, strict=True):
        assert close(found.grad, wanted.grad)


def test_no_tokens() -> None:
    m = models(tokens=0)
    result = m.fused()
    assert result.per_token_N.shape == (0,)
    assert result.loss.item() == 0.0
    assert all(g.abs().sum() == 0 for g in m.gradients(result.loss))


def test_without_gradients_the_same_values() -> None:
    m = models()
    expected = m.naive("forward", temperature=2.0, teacher_temperature=0.7).detach()
    biases = {"student_bias": m.student_bias, "teacher_bias": m.teacher_bias}
    found = token_divergences(
        m.student_hidden, m.student_weight, m.teacher_hidden, m.teacher_weight,
        divergence="forward", temperature=2.0, teacher_temperature=0.7, chunk_tokens=2, **biases,
    )  # fmt: skip
    assert close(found, expected)
    assert not found.requires_grad
    assert m.fused(divergence="forward", temperature=2.0).per_token_N.requires_grad is False
    with torch.no_grad():
        assert not m.fused().loss.requires_grad


def test_autocast_does_not_round() -> None:
    m = models(dtype=torch.float32)
    expected = m.fused()
    wanted = m.gradients(expected.loss)
    with torch.autocast("cpu", torch.bfloat16):
        result = m.fused()
    assert torch.equal(result.per_token_N, expected.per_token_N)
    assert all(map(torch.equal, m.gradients(result.loss), wanted))


def test_large_logits_stay_finite() -> None:
    m = models()
    m.student_hidden.data.mul_(300)  # probabilities underflow on both sides
    m.teacher_hidden.mul_(-300)
    for kind in ("reverse", "forward"):
        result = m.fused(divergence=kind)
        assert result.per_token_N.max() > 1000
        assert close(result.per_token_N, m.naive(kind))
        assert all(g.isfinite().all() for g in m.gradients(result.loss))
    mixture = m.fused(divergence="jsd")
    assert close(mixture.per_token_N.max(), torch.tensor(math.log(2), dtype=DOUBLE))
    assert all(g.isfinite().all() for g in m.gradients(mixture.loss))


def test_second_backward_is_refused() -> None:
    loss = models().fused().loss
    loss.backward(retain_graph=True)
    with pytest.raises(ConfigError, match="second time"):
        loss.backward()
