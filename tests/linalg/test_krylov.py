"""Leading eigenpairs against a dense decomposition, and a Krylov space against its definition."""

import math
from collections.abc import Callable

import pytest
import torch
from tests.reference.quadratic_twin import semidefinite
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.linalg.krylov import krylov_space, leading_eigenpairs, ritz_pairs

SIZE, LARGE = 40, 90
DECAYING = [10.0 * 0.6**i for i in range(SIZE)]


def operator(A: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: A @ v


def start(size: int = SIZE, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SPECTRA = {
    "decaying": DECAYING,
    "low rank": [5.0, 4.0, 3.0, 2.0, 1.0],
    "tied": [5.0, 5.0, 5.0, 2.0, 2.0, 1.0],
    "one": [3.0],
    "flat": [2.0] * SIZE,
    "indefinite": [4.0, 3.0, -6.0, 1.0],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("size", [SIZE, LARGE], ids=["whole", "ARPACK"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_leading_eigenpairs_equal_eigh(name: str, size: int, k: int) -> None:
    A, _ = semidefinite(SPECTRA[name], size)
    pairs = leading_eigenpairs(operator(A), start(size), k, tolerance=1e-12)
    expected = torch.linalg.eigvalsh(A).flip(0)[:k]
    torch.testing.assert_close(pairs.values_k, expected, rtol=1e-9, atol=1e-9)
    U = pairs.vectors_kP
    torch.testing.assert_close(U @ U.mT, torch.eye(k, dtype=U.dtype), rtol=0, atol=1e-10)
    left = (A @ U.mT - U.mT * pairs.values_k).norm(dim=0)
    assert float(left.max()) < 1e-8


def test_products_are_told_one_by_one() -> None:
    A, _ = semidefinite(DECAYING, LARGE)
    counted: list[int] = []
    leading_eigenpairs(operator(A), start(LARGE), 2, tolerance=1e-3, on_step=counted.append)
    assert counted == list(range(1, len(counted) + 1))
    assert len(counted) < LARGE


def test_residuals_bound_the_error_of_the_values() -> None:
    A, _ = semidefinite(DECAYING, LARGE)
    pairs = leading_eigenpairs(operator(A), start(LARGE), 4, tolerance=1e-2)
    exact = torch.linalg.eigvalsh(A)
    for value, vector, residual in zip(
        pairs.values_k, pairs.vectors_kP, pairs.residuals_k, strict=True
    ):
        assert float((A @ vector - value * vector).norm()) == pytest.approx(
            float(residual), abs=1e-12
        )
        assert float((exact - value).abs().min()) <= float(residual) + 1e-12


def test_krylov_space_is_orthonormal_and_tridiagonal() -> None:
    A, _ = semidefinite(DECAYING, SIZE)
    krylov = krylov_space(operator(A), start(), 12)
    Q = krylov.basis_mP
    torch.testing.assert_close(Q @ Q.mT, torch.eye(12, dtype=Q.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(Q @ A @ Q.mT, krylov.tridiagonal(), rtol=0, atol=1e-11)
    powers = torch.stack([torch.linalg.matrix_power(A, i) @ start() for i in range(4)])
    torch.testing.assert_close(powers @ Q[:4].mT @ Q[:4], powers)
    assert krylov.start_norm == pytest.approx(float(start().norm()))
    assert krylov.couplings_m[-1] > 0


def test_orthogonality_survives_where_plain_lanczos_loses_it() -> None:
    values = [1.0] + [1e-6 * (1 + i / 60) for i in range(59)]
    A, _ = semidefinite(values, 60)
    Q = krylov_space(operator(A), start(60), 30).basis_mP
    overlaps = Q @ Q.mT - torch.eye(len(Q), dtype=Q.dtype)
    assert float(overlaps.abs().max()) < 1e-12


def test_krylov_space_of_a_low_rank_drive_closes() -> None:
    A, b = semidefinite([5.0, 3.0, 1.0], SIZE)
    krylov = krylov_space(operator(A), b, 20)
    assert krylov.basis_mP.shape == (3, SIZE)
    assert krylov.couplings_m[-1] == 0
    torch.testing.assert_close(
        ritz_pairs(krylov).values_k, torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64)
    )


def test_single_precision_stays_single_and_is_accurate() -> None:
    A, _ = semidefinite(DECAYING, LARGE)
    pairs = leading_eigenpairs(operator(A.float()), start(LARGE).float(), 3)
    assert pairs.vectors_kP.dtype == torch.float32
    exact = torch.linalg.eigvalsh(A).flip(0)[:3]
    torch.testing.assert_close(pairs.values_k, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("k", [0, SIZE + 1])
def test_impossible_number_of_pairs_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match="number of parameters \\(40\\)"):
        leading_eigenpairs(operator(torch.eye(SIZE, dtype=torch.float64)), start(), k)


@pytest.mark.parametrize(("vector", "steps"), [(torch.zeros(3), 2), (torch.ones(3), 0)])
def test_empty_krylov_space_is_refused(vector: Tensor, steps: int) -> None:
    with pytest.raises(ConfigError, match="steps >= 1 and a start that is not zero"):
        krylov_space(lambda v: v, vector, steps)


def test_product_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="not finite"):
        krylov_space(lambda v: v * math.nan, torch.ones(3), 2)
    with pytest.raises(NonFiniteError, match="not finite"):
        leading_eigenpairs(lambda v: v * math.nan, torch.ones(LARGE), 2)
