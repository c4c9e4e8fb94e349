"""Products with J and F against a dense Jacobian; the drive against autograd of the KL itself."""

import re
from functools import cache
from typing import Any

import pytest
import torch
from tests.fakes import EOS, TOKENIZER, ids, tiny_model
from tests.reference import quadratic_twin as twin
from torch import Tensor

from effopd.analysis.quadratic import (
    FrozenLoss,
    ParameterSpace,
    completion_logits,
)
from effopd.errors import ConfigError, NonFiniteError
from effopd.models.policy import Policy, Sample

SAMPLES = [
    Sample(prompt_ids=ids("3 + 4 ="), completion_ids=(*ids("# 0"), EOS)),
    Sample(prompt_ids=ids("1 - 2 * 3 ="), completion_ids=ids("1 - 2 = 6")),
    Sample(prompt_ids=ids("5 * 5 ="), completion_ids=(EOS,)),
]
TRAINED = re.compile(r"layers\.0\.self_attn\.(k_proj|q_norm)|layers\.1\.self_attn\.v|model\.norm")
RELATIVE = 1e-10


def policy(seed: int, sharpness: float = 2.0) -> Policy:
    return Policy(tiny_model(seed, sharpness), TOKENIZER)


def student() -> Policy:
    """Trains a part of its tensors, so that a dense A fits."""
    chosen = policy(0)
    for name, parameter in chosen.model.named_parameters():
        parameter.requires_grad_(TRAINED.search(name) is not None)
    return chosen


STUDENT = student()
TARGETS = completion_logits(policy(1, sharpness=6.0), SAMPLES)
TARGET = torch.cat(TARGETS).double()


def frozen(**settings: Any) -> FrozenLoss:
    return FrozenLoss(STUDENT, SAMPLES, TARGETS, **settings)


LOSS = frozen()


@cache
def dense() -> twin.Dense:
    return twin.dense(STUDENT, SAMPLES, TARGET)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def direction(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LOSS.space.size, generator=generator, dtype=torch.float64)


# Gradient and curvature ---------------------------------------------------------------------------


def test_drive_is_minus_the_gradient_of_the_frozen_kl_however_far_the_teacher() -> None:
    loss, gradient = twin.loss_gradient(STUDENT, SAMPLES, TARGET)
    assert loss > 0.5  # nats: far
    assert LOSS.loss() == pytest.approx(loss, rel=1e-6)
    assert relative(LOSS.drive(), -gradient) < RELATIVE


def test_curvature_product_equals_the_dense_matrix() -> None:
    for seed in range(3):
        v = direction(seed)
        assert relative(LOSS.curvature_product(v), dense().A @ v) < RELATIVE


def test_hessian_product_equals_the_dense_hessian_which_is_not_the_curvature() -> None:
    chosen = policy(0)
    for name, parameter in chosen.model.named_parameters():
        parameter.requires_grad_("q_norm" in name or "model.norm" in name)
    loss = FrozenLoss(chosen, SAMPLES, TARGETS)
    H = twin.loss_hessian(chosen, SAMPLES, TARGET)
    for row in torch.eye(loss.space.size, dtype=torch.float64)[::9]:
        assert relative(loss.hessian_product(row), H @ row) < 1e-5
    assert float(torch.linalg.eigvalsh(H)[0]) < -1e-3  # indefinite, as the teacher is far
    A = twin.dense(chosen, SAMPLES, TARGET).A
    assert float((H - A).norm()) > 0.5 * float(A.norm())


def test_constant_is_the_quadratic_at_the_base() -> None:
    fisher = torch.diag_embed(dense().p) - dense().p[:, :, None] * dense().p[:, None, :]
    r = dense().residual
    expected = torch.einsum("nv,nvw,nw->n", r, fisher, r).mean() / 2
    assert LOSS.constant() == pytest.approx(float(expected), rel=1e-6)


def test_gradient_away_from_the_base_is_the_slope_of_the_loss() -> None:
    D, v, h = direction(4) / 50, direction(5), 1e-3
    slope = (LOSS.loss(D + h * v) - LOSS.loss(D - h * v)) / (2 * h)
    assert float(LOSS.gradient(D) @ v) == pytest.approx(slope, rel=1e-3)


def test_results_do_not_depend_on_the_batches() -> None:
    one_by_one = frozen(batch_tokens=1)
    v = direction()
    assert relative(one_by_one.drive(), LOSS.drive()) < RELATIVE
    assert relative(one_by_one.curvature_product(v), LOSS.curvature_product(v)) < RELATIVE
    assert one_by_one.loss() == pytest.approx(LOSS.loss(), rel=1e-6)


def test_single_precision_is_close() -> None:
    single = frozen(dtype=torch.float32)
    v = direction()
    found = single.curvature_product(v.float())
    assert found.dtype == torch.float32
    assert relative(found.double(), LOSS.curvature_product(v)) < 1e-4
    assert relative(single.drive().double(), LOSS.drive()) < 1e-4


def test_student_is_left_as_it_was() -> None:
    model = policy(0).model.train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    FrozenLoss(Policy(model, TOKENIZER), SAMPLES, TARGETS).drive()
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_tied_embeddings_are_one_tensor() -> None:
    model = tiny_model(0)
    model.lm_head.weight = model.get_input_embeddings().weight
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    tied = Policy(model, TOKENIZER)
    loss = FrozenLoss(tied, SAMPLES, TARGETS)
    assert list(loss.space.shapes) == ["model.embed_tokens.weight"]
    _, gradient = twin.loss_gradient(tied, SAMPLES, TARGET)
    assert relative(loss.drive(), -gradient) < RELATIVE
    v = torch.linspace(-1, 1, loss.space.size, dtype=torch.float64)
    expected = twin.dense(tied, SAMPLES, TARGET).A @ v
    assert relative(loss.curvature_product(v), expected) < RELATIVE


# Single contexts ----------------------------------------------------------------------------------


def test_completion_logits_do_not_depend_on_the_batches() -> None:
    apart = completion_logits(policy(1, sharpness=6.0), SAMPLES, batch_tokens=1)
    for found, expected in zip(apart, TARGETS, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    model = policy(1, sharpness=6.0).model
    sequence = torch.tensor([SAMPLES[1].prompt_ids + SAMPLES[1].completion_ids])
    torch.testing.assert_close(
        TARGETS[1], model(sequence).logits[0, -6:-1].detach(), rtol=1e-4, atol=1e-4
    )


# Parameters as a vector ---------------------------------------------------------------------------


def test_vector_and_tensors_are_the_same_numbers() -> None:
    space = ParameterSpace(shapes={"a": (2, 3), "b": (), "c": (2,)})
    vector = torch.arange(9.0)
    tensors = space.tensors(vector)
    assert tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (tensors["b"].item(), tensors["c"].tolist()) == (6, [7, 8])
    assert space.slices == {"a": slice(0, 6), "b": slice(6, 7), "c": slice(7, 9)}
    assert torch.equal(space.flat(tensors | {"other": torch.ones(4)}), vector)


def test_nothing_that_trains_is_refused() -> None:
    model = tiny_model().requires_grad_(False)
    with pytest.raises(ConfigError, match="no tensor trains"):
        FrozenLoss(Policy(model, TOKENIZER), SAMPLES, TARGETS)


def test_targets_must_be_finite() -> None:
    with pytest.raises(NonFiniteError, match="check the teacher"):
        FrozenLoss(STUDENT, SAMPLES, [t * torch.nan for t in TARGETS])
