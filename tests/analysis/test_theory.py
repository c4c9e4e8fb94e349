"""The theory on an exact quadratic, where it must agree with descent, and on a model."""

import math

import pytest
import torch
from tests.fakes import EOS, TOKENIZER, ids, tiny_model
from tests.reference import quadratic_twin as twin
from tests.reference.quadratic_twin import descent, semidefinite
from torch import Tensor

from effopd.analysis.local_theory import krylov_theory, leading_theory
from effopd.analysis.quadratic import FrozenLoss, completion_logits
from effopd.analysis.theory import (
    SCALES,
    Comparison,
    PastRay,
    estimator_covariances,
    gradient_covariance,
)
from effopd.linalg.krylov import krylov_space, leading_eigenpairs
from effopd.models.policy import Policy, Sample

SIZE, BASE = 20, 3.0
A, B = semidefinite([4.0, 2.0, 1.0, 0.5, 0.25], SIZE)


class Quadratic:
    """A loss that is its own quadratic, plus a quartic term of the given size."""

    def __init__(self, quartic: float = 0.0) -> None:
        self.quartic = quartic

    def loss(self, update: Tensor | None = None) -> float:
        d = torch.zeros_like(B) if update is None else update
        return float(BASE + d @ A @ d / 2 - B @ d + self.quartic * (d @ d) ** 2)

    def gradient(self, update: Tensor) -> Tensor:
        return A @ update - B + 4 * self.quartic * (update @ update) * update

    def curvature_product(self, vector: Tensor) -> Tensor:
        return A @ vector


def comparison(loss: Quadratic | FrozenLoss, drive: Tensor, depth: int, rank: int) -> Comparison:
    start = torch.randn(len(drive), generator=torch.Generator().manual_seed(0)).to(drive)
    product = loss.curvature_product
    return Comparison(
        loss=loss,  # type: ignore[arg-type]
        drive_P=drive,
        krylov=krylov_theory(krylov_space(product, drive, depth)),
        leading=leading_theory(leading_eigenpairs(product, start, rank), drive),
        residuals=(),
        base_loss=loss.loss(),
    )


EXACT = comparison(Quadratic(), B, 10, 5)


# Gradient descent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.49])
def test_theory_is_descent_on_an_exact_quadratic(rate: float) -> None:
    rows = list(EXACT.descent(rate, [1, 2, 4, 30]))
    assert [row["step"] for row in rows] == [1, 2, 4, 30]
    for row in rows:
        walked = descent(A, B, rate, row["step"])
        assert row["norm"] == pytest.approx(float(walked.norm()), rel=1e-9)
        assert row["cosine"] == pytest.approx(1.0, abs=1e-9)
        assert row["norm_ratio"] == pytest.approx(1.0, rel=1e-8)
        assert row["loss"] == pytest.approx(Quadratic().loss(walked), rel=1e-9)
        assert row["predicted_loss"] == pytest.approx(row["loss"], rel=1e-8)


def test_descent_that_leaves_the_quadratic_is_told_apart() -> None:
    (row,) = comparison(Quadratic(quartic=0.05), B, 10, 5).descent(0.2, [20])
    assert row["norm_ratio"] is not None
    assert row["norm_ratio"] < 0.9
    assert row["cosine"] is not None
    assert row["cosine"] < 0.999
    assert row["loss"] > row["predicted_loss"] + 0.01


def test_descent_ends_where_the_loss_is_not_finite() -> None:
    rows = list(EXACT.descent(5.0, [1, 10, 400]))
    assert [row["step"] for row in rows] == [1, 10]
    assert all(math.isfinite(row["loss"]) for row in rows)


# Checkpoints --------------------------------------------------------------------------------------


def test_checkpoint_on_the_flow_is_matched() -> None:
    D = EXACT.krylov.flow(1.7)
    row = EXACT.checkpoint(3, D)
    assert row["step"] == 3
    assert row["time"] == pytest.approx(1.7, rel=1e-6)
    assert row["cosine"] == pytest.approx(1.0)
    assert row["leading_share"] == pytest.approx(1.0)
    assert row["loss"] == pytest.approx(row["quadratic_loss"])
    assert row["flow_loss"] == pytest.approx(row["loss"], rel=1e-6)


def test_checkpoint_along_the_drive_and_along_its_signs() -> None:
    assert EXACT.checkpoint(1, 0.01 * B)["cosine_drive"] == pytest.approx(1.0)
    row = EXACT.checkpoint(1, 0.01 * B.sign())
    assert row["cosine_sign"] == pytest.approx(1.0)
    assert row["cosine_drive"] == pytest.approx(float(B.abs().sum() / B.norm()) / SIZE**0.5)
    inside = EXACT.leading.vectors_kP @ B.sign()
    assert row["leading_share"] == pytest.approx(float(inside.square().sum()) / SIZE)


def test_checkpoint_farther_than_the_optimum_is_compared_with_the_optimum() -> None:
    optimum = torch.linalg.pinv(A, hermitian=True, rtol=1e-10) @ B
    row = EXACT.checkpoint(9, 2 * optimum)
    assert row["time"] is None
    assert row["cosine"] == pytest.approx(1.0)
    assert row["flow_loss"] == pytest.approx(Quadratic().loss(optimum))
    assert row["loss"] == pytest.approx(BASE)  # as far behind the optimum as the base is before it


def test_checkpoint_that_did_not_move() -> None:
    row = EXACT.checkpoint(0, torch.zeros_like(B))
    assert (row["norm"], row["time"], row["leading_share"]) == (0.0, 0.0, 0.0)
    assert row["cosine"] is row["cosine_drive"] is row["cosine_sign"] is None
    assert row["loss"] == row["quadratic_loss"] == BASE


# Searches -----------------------------------------------------------------------------------------


def test_scales_of_an_exact_quadratic_agree() -> None:
    anchor, tip = descent(A, B, 0.05, 2), descent(A, B, 0.05, 4)
    row = EXACT.search(PastRay(step=4, scale=7.0, tip_P=tip, anchor_P=anchor))
    assert (row["step"], row["accepted_scale"]) == (4, 7.0)
    assert row["update_norm"] == pytest.approx(float((tip - anchor).norm()))
    assert row["theory_scale"] is not None
    assert row["fitted_scale"] == pytest.approx(row["theory_scale"], rel=1e-6)
    losses = {s: Quadratic().loss(anchor + s * (tip - anchor)) for s in SCALES}
    assert row["least_scale"] == min(losses, key=losses.__getitem__)
    assert row["stable_scale"] > 1.0
    assert abs(row["least_scale"] - row["theory_scale"]) <= 4


def test_ray_over_a_summit_has_no_fitted_scale() -> None:
    row = comparison(Quadratic(quartic=-1.0), B, 10, 5).search(
        PastRay(step=1, scale=1.0, tip_P=2 * B / B.norm(), anchor_P=torch.zeros_like(B))
    )
    assert row["fitted_curvature"] < 0
    assert row["fitted_scale"] is None
    assert row["theory_scale"] is not None


# All at once --------------------------------------------------------------------------------------


def test_model_with_a_teacher_nearby_follows_the_theory() -> None:
    model = tiny_model(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn" in name)
    student = Policy(model, TOKENIZER)
    samples = [Sample(prompt_ids=ids("3 + 4 ="), completion_ids=(*ids("# 0"), EOS))]
    (z,) = completion_logits(student, samples)
    pull = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    errors = []
    for size in (0.3, 0.03):
        loss = FrozenLoss(student, samples, [z + size * pull])
        compared = comparison(loss, loss.drive(), 6, 2)
        (row,) = compared.descent(1 / float(compared.leading.values_k[0]), [6])
        assert row["cosine"] is not None
        assert row["cosine"] > 0.99
        assert row["loss"] < 0.95 * compared.base_loss
        errors.append(abs(row["loss"] - row["predicted_loss"]) / (compared.base_loss - row["loss"]))
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.02


# Gradients of single contexts ---------------------------------------------------------------------

TEXT = [
    Sample(prompt_ids=ids("3 + 4 ="), completion_ids=(*ids("# 0"), EOS)),
    Sample(prompt_ids=ids("5 * 5 ="), completion_ids=ids("4 # 4")),
]


def random_rows(n: int, size: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def partly_trained() -> Policy:
    model = tiny_model(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0.self_attn.k_proj" in name or "model.norm" in name)
    return Policy(model, TOKENIZER)


PARTLY_TRAINED = partly_trained()
TARGETS = completion_logits(Policy(tiny_model(1, sharpness=4.0), TOKENIZER), TEXT)
LOSS = FrozenLoss(PARTLY_TRAINED, TEXT, TARGETS)


@pytest.mark.parametrize("shape", [(5, 40), (12, 4), (2, 3)])
def test_statistics_are_those_of_the_dense_covariance(shape: tuple[int, int]) -> None:
    rows = random_rows(*shape) + 3.0
    sigma = twin.covariance(rows)
    found = gradient_covariance(rows)
    assert found["trace"] == pytest.approx(float(sigma.trace()), rel=1e-10)
    assert found["mean_norm"] == pytest.approx(float(rows.mean(0).norm()), rel=1e-12)
    p = torch.linalg.eigvalsh(sigma).clamp(min=0) / sigma.trace()
    entropy = -sum(float(x) * math.log(float(x)) for x in p if x > 1e-14)
    assert found["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-8)


def test_estimators_equal_dense_ones() -> None:
    chosen, advantages = [4, 0, 2, 5], [1.5, -0.5, -0.5, 0.25]
    dense = twin.dense(PARTLY_TRAINED, TEXT, torch.cat(TARGETS).double())
    tokens = torch.tensor([token for sample in TEXT for token in sample.completion_ids])
    hot = torch.nn.functional.one_hot(tokens, len(TOKENIZER))
    fisher = torch.diag_embed(dense.p) - dense.p[:, :, None] * dense.p[:, None, :]

    def pulled_back(covectors: Tensor) -> Tensor:
        return torch.einsum("nvp,nv->np", dense.jacobian, covectors)[chosen]

    q = torch.cat(TARGETS).double().log_softmax(-1)
    ratio = (q - dense.p.log()).gather(1, tokens[:, None])
    score = pulled_back(hot - dense.p)
    weights = torch.tensor(advantages, dtype=torch.float64)
    expected = {
        "opd": pulled_back(torch.einsum("nvw,nw->nv", fisher, dense.residual)),
        "sampled_opd": pulled_back(ratio * (hot - dense.p)),
        "rl": score * weights[:, None],
    }
    found = estimator_covariances(LOSS, chosen, advantages)
    for name, rows in expected.items():
        covariance = found["estimators"][name]
        assert covariance["trace"] == pytest.approx(float(twin.covariance(rows).trace()), rel=1e-5)
        assert covariance["mean_norm"] == pytest.approx(float(rows.mean(0).norm()), rel=1e-5)
    assert found["score_moment"] == pytest.approx(float(score.square().sum(1).mean()), rel=1e-5)
    assert found["advantage_variance"] == pytest.approx(float(weights.var()))
    assert found["rl_trace_bound"] == pytest.approx(found["score_moment"] * float(weights.var()))


def test_without_rewards_there_is_no_rl_estimator() -> None:
    found = estimator_covariances(LOSS, [0, 1, 2])
    assert list(found["estimators"]) == ["opd", "sampled_opd"]
    assert found["rl_trace_bound"] is None
