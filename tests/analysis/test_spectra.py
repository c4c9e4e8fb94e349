"""Singular values and their metrics against a whole float64 decomposition, and closed forms."""

import math

import pytest
import torch
from tests.reference import analysis_twin as twin
from torch import Tensor

from effopd.analysis.spectra import SpectralMetrics, metrics_of, spectral_metrics
from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.linalg import singular_values as module
from effopd.linalg.singular_values import (
    gram_eigenvectors,
    numerical_rank,
    product_svd,
    singular_values,
    smallest_is_not_zero,
    tail_singular_values,
)

TOP = (0.01, 0.05, 0.1, 0.5, 1.0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_values(rows: int, columns: int, values: Tensor) -> Tensor:
    """A matrix whose singular values are these."""
    left, right = (torch.linalg.qr(randn(n, len(values), seed=n)).Q for n in (rows, columns))
    return (left * values.double()) @ right.T


def spiky(rows: int, columns: int, rank: int = 8) -> Tensor:
    """Noise of a trained update's size with a head of a few strong directions, in fp32."""
    head = randn(rows, rank, seed=1) @ randn(rank, columns, seed=2)
    return (1e-6 * (head + randn(rows, columns, seed=3))).float()


def with_zero_rows() -> Tensor:
    update = spiky(150, 40)
    update[:, ::3] = 0
    update[::2] = 0
    return update


UPDATES = {
    "square": randn(64, 64),
    "wide": randn(48, 200),
    "tall": randn(300, 70),
    "one row": randn(1, 50),
    "one column": randn(50, 1),
    "one element": -randn(1, 1),
    "two rows": spiky(2, 500),
    "spiky fp32": spiky(96, 240),
    "spiky bf16": spiky(120, 80).bfloat16(),
    "spiky fp16": (1e3 * spiky(60, 90)).half(),
    "rank 3": with_values(80, 120, torch.tensor([3.0, 2.0, 1e-3])),
    "rank 5, bf16": (randn(40, 5).sign() @ randn(5, 30).sign()).bfloat16() * 2**-18,
    "LoRA product in fp32": randn(160, 4).float() @ randn(4, 90, seed=1).float(),
    "all values tied": torch.linalg.qr(randn(150, 60)).Q,
    "two groups of ties": with_values(70, 90, torch.tensor([2.0] * 20 + [1e-2] * 50)),
    "falling over 16 decades": with_values(60, 60, torch.logspace(0, -16, 60)),
    "falling over 5 decades": with_values(60, 100, torch.logspace(0, -5, 60)),
    "one value far above": with_values(64, 80, torch.tensor([1e6] + [1.0] * 63)),
    "zero rows and columns": with_zero_rows(),
    "diagonal": torch.diag(torch.arange(1.0, 41.0)),
    "more strips than one": spiky(300, 310),
    "strided": randn(60, 90)[::2, 1::3],
}


def found(update: Tensor) -> dict[str, float]:
    metrics = spectral_metrics(update, top=TOP)
    numbers = {
        "rank": float(metrics.rank),
        "frobenius_norm": metrics.frobenius_norm,
        "spectral_norm": metrics.spectral_norm,
        "spectral_share": metrics.spectral_share,
        "effective_rank": metrics.effective_rank,
        "stable_rank": metrics.stable_rank,
    }
    return numbers | {f"top {share}": ratio for share, ratio in metrics.top_ratios.items()}


@pytest.mark.parametrize("case", UPDATES)
def test_every_metric_equals_the_whole_decomposition_s(case: str) -> None:
    update = UPDATES[case]
    before = update.clone()
    assert found(update) == pytest.approx(twin.spectral_metrics(update, TOP), rel=1e-9, abs=0)
    assert torch.equal(update, before)


@pytest.mark.parametrize("scale", [1e-300, 1e-180, 1e-20, 1e150])
def test_only_the_norms_know_the_scale(scale: float) -> None:
    update = randn(30, 45)
    wanted = twin.spectral_metrics(update, TOP)
    wanted |= {name: scale * wanted[name] for name in ("frobenius_norm", "spectral_norm")}
    assert found(scale * update) == pytest.approx(wanted, rel=1e-9, abs=0)


def test_pieces_and_strips_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    update = spiky(50, 333)
    monkeypatch.setattr(module, "PIECE", 700)
    monkeypatch.setattr(module, "STRIP", 16)
    assert found(update) == pytest.approx(twin.spectral_metrics(update, TOP), rel=1e-9, abs=0)


# Closed forms -------------------------------------------------------------------------------------


def test_the_ratio_is_one_of_norms_and_its_count_is_rounded_up() -> None:
    values = torch.cat([torch.tensor([4.0, 3.0]), torch.ones(98)])
    ratios = metrics_of(values.double(), (100, 200), top=[0.011, 0.01, 0.07]).top_ratios
    total = 16 + 9 + 98
    assert ratios[0.01] == pytest.approx(math.sqrt(16 / total), rel=1e-12)
    assert ratios[0.011] == pytest.approx(math.sqrt(25 / total), rel=1e-12)
    assert ratios[0.07] == pytest.approx(math.sqrt(30 / total), rel=1e-12)  # 7, not 8, of 100


# Updates that never moved, and what is refused ----------------------------------------------------


def test_a_zero_update_never_moved() -> None:
    metrics = spectral_metrics(torch.zeros(20, 30, dtype=torch.bfloat16), top=[0.01])
    assert metrics == SpectralMetrics(
        shape=(20, 30),
        rank=0,
        frobenius_norm=0.0,
        spectral_norm=0.0,
        spectral_share=None,
        effective_rank=None,
        stable_rank=None,
        top_ratios={0.01: None},
    )
    assert metrics.never_moved
    assert not spectral_metrics(torch.ones(2, 2)).never_moved


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    update = randn(4, 5)
    update[1, 2] = bad
    for function in (singular_values, spectral_metrics, tail_singular_values):
        with pytest.raises(NonFiniteError, match=r"\(4, 5\) has entries from"):
            function(update)


@pytest.mark.parametrize(
    "update",
    [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(0, 3), torch.zeros(2, 3, dtype=torch.int64)],
    ids=lambda update: str(list(update.shape)),
)
def test_what_is_no_matrix_is_refused(update: Tensor) -> None:
    for function in (singular_values, spectral_metrics, tail_singular_values):
        with pytest.raises(ParameterMismatchError, match=r"expected \[m, n\]"):
            function(update)


# Tails, vectors, factors --------------------------------------------------------------------------


def test_the_tail_is_accurate_value_by_value() -> None:
    values = torch.logspace(0, -11, 50, dtype=torch.float64)
    update = with_values(80, 50, values)
    tail = tail_singular_values(update, 25)
    torch.testing.assert_close(tail, values[25:], rtol=0, atol=1e-14)
    torch.testing.assert_close(tail_singular_values(update.T), values, rtol=0, atol=1e-14)
    with pytest.raises(ConfigError, match="51 of 50"):
        tail_singular_values(update, 51)


@pytest.mark.parametrize("shape", [(70, 110), (110, 70)], ids=str)
def test_vectors_of_the_gram_matrix_are_singular_vectors(shape: tuple[int, int]) -> None:
    update = 1e-160 * spiky(*shape).double()  # its squares underflow
    squares, vectors = gram_eigenvectors(update)
    short = update if shape[0] < shape[1] else update.T
    lengths = (1e160 * short.T @ vectors).norm(dim=0)
    torch.testing.assert_close(squares.sqrt() / squares[0].sqrt(), lengths / lengths[0])
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(70, dtype=torch.float64))
    assert smallest_is_not_zero(squares)
    assert not smallest_is_not_zero(gram_eigenvectors(UPDATES["rank 3"])[0])


def test_a_product_is_decomposed_through_its_factors() -> None:
    left, right = randn(90, 4).float() * 1e-3, randn(4, 60, seed=1).float() * 1e3
    product = left.double() @ right.double()
    u, values, v = product_svd(left, right)
    torch.testing.assert_close(values, torch.linalg.svdvals(product)[:4], rtol=1e-12, atol=0)
    torch.testing.assert_close((u * values) @ v.T, product, rtol=1e-12, atol=1e-14)
    assert numerical_rank(values, (90, 60)) == 4
    assert numerical_rank(torch.cat([values, 1e-15 * values]), (90, 60)) == 4
    assert numerical_rank(torch.zeros(4), (90, 60)) == 0
    _, wide, _ = product_svd(randn(3, 8), randn(8, 5))
    torch.testing.assert_close(wide, torch.linalg.svdvals(randn(3, 8) @ randn(8, 5)))
    with pytest.raises(ParameterMismatchError, match=r"\[m, r\] and \[r, n\]"):
        product_svd(left, right.T)
