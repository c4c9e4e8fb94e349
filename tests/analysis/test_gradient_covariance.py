"""Covariances from a Gram matrix against dense ones, and the estimators against each other."""

import math

import pytest
import torch
from tests.fakes import EOS, TOKENIZER, ids, tiny_model
from tests.reference import quadratic_twin as twin
from torch import Tensor

from effopd.analysis.gradient_covariance import (
    estimator_covariances,
    gradient_covariance,
    opd_covectors,
    sampled_opd_covectors,
    score_covectors,
)
from effopd.analysis.quadratic import ContextBatch, FrozenLoss, completion_logits
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.policy import Policy, Sample

SAMPLES = [
    Sample(prompt_ids=ids("3 + 4 ="), completion_ids=(*ids("# 0"), EOS)),
    Sample(prompt_ids=ids("5 * 5 ="), completion_ids=ids("4 # 4")),
]


def random_rows(n: int, size: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def student() -> Policy:
    model = tiny_model(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0.self_attn.k_proj" in name or "model.norm" in name)
    return Policy(model, TOKENIZER)


STUDENT = student()
TARGETS = completion_logits(Policy(tiny_model(1, sharpness=4.0), TOKENIZER), SAMPLES)
LOSS = FrozenLoss(STUDENT, SAMPLES, TARGETS)


@pytest.mark.parametrize("shape", [(5, 40), (12, 4), (2, 3)])
def test_statistics_are_those_of_the_dense_covariance(shape: tuple[int, int]) -> None:
    rows = random_rows(*shape) + 3.0
    sigma = twin.covariance(rows)
    found = gradient_covariance(rows)
    assert found.contexts == shape[0]
    assert found.trace == pytest.approx(float(sigma.trace()), rel=1e-10)
    assert found.mean_norm == pytest.approx(float(rows.mean(0).norm()), rel=1e-12)
    p = torch.linalg.eigvalsh(sigma).clamp(min=0) / sigma.trace()
    entropy = -sum(float(x) * math.log(float(x)) for x in p if x > 1e-14)
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-8)


def test_effective_rank_of_equal_and_of_orthogonal_gradients() -> None:
    equal = gradient_covariance(torch.ones(4, 6))
    assert (equal.trace, equal.effective_rank) == (0.0, 0.0)
    assert gradient_covariance(torch.eye(6)).effective_rank == pytest.approx(5.0)
    along_one_line = torch.arange(5.0)[:, None] * torch.ones(1, 3)
    assert gradient_covariance(along_one_line).effective_rank == pytest.approx(1.0)


def test_one_gradient_has_no_covariance() -> None:
    with pytest.raises(ParameterMismatchError, match=r"at least two gradients .* \(1, 3\)"):
        gradient_covariance(torch.ones(1, 3))


def some_batch(log_p: Tensor, tokens: Tensor) -> ContextBatch:
    one = torch.ones(1, 1, dtype=torch.long)
    target = torch.linspace(-2, 1, log_p.numel(), dtype=torch.float64).view_as(log_p)
    return ContextBatch(
        ids_BT=one,
        attention_BT=one,
        predicts_BT=one.bool(),
        target_log_probs_NV=target.log_softmax(-1),
        tokens_N=tokens,
    )


def test_sampled_estimator_is_unbiased_for_the_whole_vocabulary_one() -> None:
    log_p = random_rows(2, 5).log_softmax(-1)
    expected = opd_covectors(some_batch(log_p, torch.tensor([0, 0])), log_p)
    mean = sum(
        log_p[:, [y]].exp() * sampled_opd_covectors(some_batch(log_p, torch.tensor([y, y])), log_p)
        for y in range(5)
    )
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-14)


def test_score_is_the_derivative_of_the_log_probability() -> None:
    z = random_rows(2, 5).requires_grad_()
    tokens = torch.tensor([3, 1])
    picked = z.log_softmax(-1).gather(1, tokens[:, None]).sum()
    (expected,) = torch.autograd.grad(picked, z)
    log_p = z.detach().log_softmax(-1)
    found = score_covectors(some_batch(log_p, tokens), log_p)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_estimators_equal_dense_ones() -> None:
    chosen, advantages = [4, 0, 2, 5], [1.5, -0.5, -0.5, 0.25]
    dense = twin.dense(STUDENT, SAMPLES, torch.cat(TARGETS).double())
    tokens = torch.tensor([token for sample in SAMPLES for token in sample.completion_ids])
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
        covariance = getattr(found, name)
        assert covariance.trace == pytest.approx(float(twin.covariance(rows).trace()), rel=1e-5)
        assert covariance.mean_norm == pytest.approx(float(rows.mean(0).norm()), rel=1e-5)
    assert found.score_moment == pytest.approx(float(score.square().sum(1).mean()), rel=1e-5)
    assert found.advantage_variance == pytest.approx(float(weights.var()))
    assert found.rl_bound == pytest.approx(found.score_moment * float(weights.var()))


def test_without_rewards_there_is_no_rl_estimator() -> None:
    found = estimator_covariances(LOSS, [0, 1, 2])
    assert (found.rl, found.advantage_variance, found.rl_bound) == (None, None, None)


def test_one_advantage_a_context() -> None:
    with pytest.raises(ConfigError, match=r"chosen context \(2\), got 1"):
        estimator_covariances(LOSS, [0, 1], [0.5])
