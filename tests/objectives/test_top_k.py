"""Divergences on the tokens a teacher names and the rest, against full logits."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.objectives.test_fused_kl import KINDS, Fresh
from tests.objectives.test_no_waits import Waits
from tests.reference import objectives_twin as twin
from tests.reference.objectives_models import DOUBLE, Models, close, models
from tests.reference.objectives_storages import Storages
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.objectives import TopK, TopKDivergence, top_k_divergence
from effopd.objectives import top_k as module


def teacher_of(m: Models) -> Tensor:
    return twin.log_distributions(m.teacher_hidden, m.teacher_weight, m.teacher_bias).detach()


def named(m: Models, k: int) -> TopK:
    """What a server would say of the teacher: its k likeliest tokens."""
    values, ids = teacher_of(m).topk(k)
    return TopK(ids, values)


def coarse(m: Models, target: TopK, **settings: Any) -> TopKDivergence:
    return top_k_divergence(
        m.student_hidden, m.student_weight, target, bias=m.student_bias, **settings
    )


def naive(m: Models, ids: Tensor, kind: str, beta: float = 0.5, **settings: Any) -> Tensor:
    student = twin.log_distributions(*m.trained, **settings)
    pair = twin.coarsened(student, ids), twin.coarsened(teacher_of(m), ids)
    return twin.divergences(kind, *pair, beta)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize(
    ("tokens", "k", "chunk"), [(7, 3, 3), (7, 1, None), (7, 10, 7), (7, 11, 2)]
)
def test_equals_the_coarsened_distributions_element_by_element(
    kind: str, beta: float, tokens: int, k: int, chunk: int | None
) -> None:
    m = models(tokens)
    target = named(m, k)
    result = coarse(m, target, divergence=kind, beta=beta, chunk_tokens=chunk, normalizer=3)
    expected = naive(m, target.ids_NK, kind, beta)
    assert close(result.per_token_N, expected)
    assert close(result.loss, expected.sum() / 3)
    assert close(result.covered_N, target.log_probs_NK.exp().sum(-1))
    for found, wanted in zip(
        m.gradients(result.loss * 0.3), m.gradients(expected.sum() * 0.1), strict=True
    ):
        assert close(found, wanted)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_gradcheck(kind: str, beta: float) -> None:
    m = models(tokens=5, vocabulary=6)
    fixed = m.teacher_hidden, m.teacher_weight, m.teacher_bias
    target = named(m, 3)
    settings = {"divergence": kind, "beta": beta, "chunk_tokens": 2, "temperature": 0.8}

    def loss(*trained: Tensor) -> Tensor:
        return coarse(Models(*trained, *fixed), target, cap=4.0, **settings).loss

    assert torch.autograd.gradcheck(lambda *trained: Fresh.apply(loss, *trained), m.trained)


def test_cap_and_temperature_are_the_students() -> None:
    m = models()
    target = named(m, 4)
    result = coarse(m, target, cap=1.5, temperature=1.7, chunk_tokens=3)
    expected = naive(m, target.ids_NK, "reverse", cap=1.5, temperature=1.7)
    assert close(result.per_token_N, expected)
    for found, wanted in zip(m.gradients(result.loss), m.gradients(expected.mean()), strict=True):
        assert close(found, wanted)


@given(
    seed=st.integers(0, 2**16),
    vocabulary=st.integers(2, 12),
    sharpness=st.sampled_from([0.1, 1.0, 3.0]),
    kind=st.sampled_from(["reverse", "forward", "jsd"]),
)
def test_a_lower_bound_that_grows_with_k_and_is_reached(
    seed: int, vocabulary: int, sharpness: float, kind: str
) -> None:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(4, vocabulary, generator=rng, dtype=DOUBLE) * sharpness for _ in range(2)
    )
    log_q = teacher.log_softmax(-1)
    order = torch.stack([torch.randperm(vocabulary, generator=rng) for _ in range(4)])
    values = [
        top_k_divergence(
            student, torch.eye(vocabulary, dtype=DOUBLE),
            TopK(order[:, :k], log_q.gather(1, order[:, :k])), divergence=kind,  # type: ignore[arg-type]
        ).per_token_N
        for k in range(1, vocabulary + 1)
    ]  # fmt: skip
    whole = twin.divergences(kind, student.log_softmax(-1), log_q)
    slack = 1e-6 * (1 + whole)  # what is left of 1 is known to a rounding unit
    for fewer, more in zip([torch.zeros(4), *values], values, strict=False):
        assert (fewer <= more + slack).all()
    assert torch.allclose(values[-1], whole, rtol=1e-6, atol=1e-6)


def test_the_loss_of_a_large_step_is_not_clamped() -> None:
    """A sum over the named tokens alone would be negative here, and its gradient wrong."""
    m = models()
    m.student_hidden.data.mul_(30)
    result = coarse(m, named(m, 2))
    full = m.naive("reverse")
    assert (result.per_token_N >= 0).all()
    assert (result.per_token_N <= full).all()
    assert all(g.isfinite().all() for g in m.gradients(result.loss))


def test_a_teacher_that_names_more_than_its_mass_by_rounding() -> None:
    m = models(vocabulary=50)
    values = torch.full((7, 2), math.log(0.5)) + torch.tensor([0.0, 3e-7])
    target = TopK(torch.tensor([[3, 40]]).expand(7, 2), values.float())
    assert (values.exp().sum(-1) > 1).all()
    result = coarse(m, target, divergence="reverse")
    unit = torch.finfo(torch.float32).eps
    mass = torch.tensor([[0.5, 0.5 * math.exp(3e-7), unit]], dtype=DOUBLE)
    student = twin.coarsened(twin.log_distributions(*m.trained), target.ids_NK)
    expected = twin.kl(student, (mass / mass.sum()).log().expand(7, 3))
    assert torch.allclose(result.per_token_N, expected, rtol=1e-6)
    for found, wanted in zip(m.gradients(result.loss), m.gradients(expected.mean()), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_a_missing_position_costs_itself_alone() -> None:
    m, rest = models(), models()
    target = named(m, 3)
    target.log_probs_NK[2, 1] = torch.nan
    target.log_probs_NK[5] = torch.nan
    kept = torch.tensor([0, 1, 3, 4, 6])
    result = coarse(m, target, chunk_tokens=2)
    fewer = Models(rest.student_hidden[kept], *list(vars(rest).values())[1:])
    expected = coarse(fewer, TopK(*(tensor[kept] for tensor in target)))
    assert result.known_N.tolist() == [True, True, False, True, True, False, True]
    assert close(result.loss, expected.loss)
    assert result.per_token_N[[2, 5]].tolist() == result.covered_N[[2, 5]].tolist() == [0, 0]
    found = m.gradients(result.loss)
    for one, wanted in zip(found, torch.autograd.grad(expected.loss, rest.trained), strict=True):
        assert close(one, wanted)
    assert found[0][[2, 5]].abs().max() == 0


def test_nothing_known_at_all() -> None:
    m = models()
    result = coarse(m, TopK(torch.zeros(7, 2).long(), torch.full((7, 2), torch.nan)))
    assert result.loss.item() == 0
    assert all(g.abs().max() == 0 for g in m.gradients(result.loss))


def test_ids_outside_the_vocabulary_belong_to_the_rest() -> None:
    m = models()
    target = named(m, 3)
    padded = TopK(
        torch.cat([torch.tensor([[-1, 11, -1]]).expand(7, 3), target.ids_NK], 1),
        torch.cat([torch.tensor([[-torch.inf, -3.0, 0.0]]).expand(7, 3), target.log_probs_NK], 1),
    )
    for kind in ("reverse", "forward", "jsd"):
        found, expected = (coarse(m, each, divergence=kind) for each in (padded, target))
        assert close(found.per_token_N, expected.per_token_N)
        for one, wanted in zip(m.gradients(found.loss), m.gradients(expected.loss), strict=True):
            assert close(one, wanted)


@pytest.mark.parametrize("precision", ["highest", "medium", None])
@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_bfloat16_inputs_and_float32_targets(kind: str, precision: Any) -> None:
    half = models(40, 97, torch.bfloat16)
    exact = Models(*(t.detach().double().requires_grad_() for t in vars(half).values()))
    target = named(exact, 8)
    given_target = TopK(target.ids_NK, target.log_probs_NK.float())
    result = coarse(half, given_target, divergence=kind, chunk_tokens=8, matmul_precision=precision)
    expected = naive(exact, target.ids_NK, kind)
    tolerance = 2e-5 if precision == "highest" else 2e-2  # "medium" may round the operands
    assert close(result.per_token_N.double(), expected.detach(), tolerance)
    for found, wanted in zip(
        half.gradients(result.loss), exact.gradients(expected.mean()), strict=True
    ):
        assert found.dtype == torch.bfloat16
        assert (found.double() - wanted).abs().max() <= 2**-7 * wanted.abs().max()


def test_without_gradients_the_same_values() -> None:
    m = models()
    target = named(m, 4)
    with torch.no_grad():
        found = coarse(m, target, divergence="forward", chunk_tokens=2)
    assert close(found.per_token_N, naive(m, target.ids_NK, "forward").detach())
    assert not found.loss.requires_grad


def test_one_tile_and_the_gradients() -> None:
    tokens, vocabulary, chunk = 256, 500, 8
    m = models(tokens, vocabulary, torch.float32)
    target = TopK(*(t.float() if t.is_floating_point() else t for t in named(m, 3)))
    with Storages() as seen:
        coarse(m, target, chunk_tokens=chunk).loss.backward()
    assert max(seen.sizes) == chunk * vocabulary
    assert seen.sizes.count(vocabulary * 5) == 1  # the gradient of the head


def test_it_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    m = models()
    target = named(m, 3)
    monkeypatch.setattr(module, "_check_target", lambda *_: None)  # waits for a CPU alone
    with Waits() as seen:
        coarse(m, target).loss.backward()
    assert seen.count == 0


@pytest.mark.parametrize(
    ("target", "settings", "error", "remedy"),
    [
        (TopK(torch.zeros(6, 2).long(), torch.zeros(6, 2)), {}, "mismatch", "7 hidden states"),
        (TopK(torch.zeros(7, 2), torch.zeros(7, 2)), {}, "mismatch", "expected int64"),
        (TopK(torch.zeros(7, 0).long(), torch.zeros(7, 0)), {}, "mismatch", r"\[tokens, k\]"),
        (TopK(torch.zeros(7, 2).long(), torch.zeros(7, 3)), {}, "mismatch", "of one shape"),
        (TopK(torch.full((7, 2), 4), torch.zeros(7, 2)), {}, "mismatch", "names one token twice"),
        (
            TopK(torch.zeros(7, 1, device="meta").long(), torch.zeros(7, 1)),
            {}, "mismatch", "move one",
        ),
        (None, {"normalizer": 0.0}, "config", "token count"),
        (None, {"divergence": "kl"}, "config", "reverse"),
        (None, {"cap": -1.0}, "config", "the soft cap"),
    ],
)  # fmt: skip
def test_refusals(target: TopK | None, settings: Any, error: str, remedy: str) -> None:
    m = models()
    kind = ConfigError if error == "config" else ParameterMismatchError
    with pytest.raises(kind, match=remedy):
        coarse(m, target or named(m, 2), **settings)
