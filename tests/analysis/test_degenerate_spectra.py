"""Spectra with zero, repeated and tiny eigenvalues, against NumPy's pseudo-inverse and rank."""

import math

import numpy as np
import pytest
import torch
from tests.analysis.test_quadratic import SAMPLES, STUDENT, TARGETS
from tests.reference import quadratic_twin as twin
from tests.reference.quadratic_twin import descent, semidefinite
from torch import Tensor

from effopd.analysis.local_theory import (
    LocalTheory,
    fitted_parabola,
    krylov_theory,
    leading_theory,
    quadratic_parabola,
)
from effopd.analysis.quadratic import FrozenLoss
from effopd.analysis.theory import gradient_covariance
from effopd.linalg.krylov import EigenPairs, krylov_space, leading_eigenpairs
from effopd.linalg.singular_values import above_rounding, numerical_rank, singular_values

SIZE = 40
SPECTRA = {
    "low rank": [3.0, 2.0, 0.5],
    "repeated": [2.0, 2.0, 2.0, 1.0, 1.0],
    "tiny but there": [5.0, 1.0, 1e-6, 3e-9],
    "one direction": [7.0],
    "small numbers": [4e-20, 3e-20, 1e-21],
    "large numbers": [4e20, 3e20, 1e18],
    "of full rank": list(np.geomspace(3.0, 1e-5, SIZE)),
}


def pairs_of(matrix: Tensor) -> EigenPairs:
    """All of them, those that are zero up to rounding too."""
    values, vectors = torch.linalg.eigh(matrix)
    return EigenPairs(
        values_k=values.flip(0),
        vectors_kP=vectors.flip(1).mT.contiguous(),
        residuals_k=torch.zeros(len(matrix), dtype=torch.float64),
    )


def theories(matrix: Tensor, drive: Tensor) -> dict[str, LocalTheory]:
    start = torch.ones(len(matrix), dtype=torch.float64)
    product = matrix.mv
    return {
        "eigh": leading_theory(pairs_of(matrix), drive),
        "lanczos": leading_theory(leading_eigenpairs(product, start, SIZE), drive),
        "krylov": krylov_theory(krylov_space(product, drive, SIZE)),
    }


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in SPECTRA
        for kind in ("eigh", "lanczos", "krylov")
        # A Krylov space closes before it has met values as small as these.
        if (name, kind) != ("tiny but there", "krylov")
    ],
)
def test_the_limit_of_descent_is_that_of_the_pseudo_inverse(name: str, kind: str) -> None:
    values = SPECTRA[name]
    matrix, drive = semidefinite(values, SIZE)
    theory = theories(matrix, drive)[kind]
    expected = torch.from_numpy(np.linalg.pinv(matrix.numpy(), 1e-12, hermitian=True)) @ drive
    condition = max(values) / min(values)
    tolerance = 1e-13 * condition * (1e3 if kind == "krylov" else 1)
    assert relative(theory.optimum(), expected) < max(tolerance, 1e-9)
    # Repeated values have one direction in the Krylov space of b, whatever their number.
    counted = len(set(values)) if kind == "krylov" else len(values)
    assert int(theory.positive_k.sum()) == counted


def test_nothing_to_invert_is_no_displacement() -> None:
    nothing = torch.zeros(6, 6, dtype=torch.float64)
    theory = leading_theory(pairs_of(nothing), torch.ones(6, dtype=torch.float64))
    assert not theory.optimum().any()
    assert theory.matching_time(3.0) == pytest.approx(3.0 / math.sqrt(6))


def test_the_optimum_of_a_model_solves_its_own_equations() -> None:
    """b lies in the range of A, whose rank is far below the number of parameters."""
    loss = FrozenLoss(STUDENT, SAMPLES[2:], TARGETS[2:])
    A = twin.dense(STUDENT, SAMPLES[2:], TARGETS[2].double()).A
    expected = torch.linalg.pinv(A, hermitian=True, rtol=1e-10) @ loss.drive()
    rank = int(torch.linalg.matrix_rank(A, hermitian=True, rtol=1e-10))
    space = krylov_space(loss.curvature_product, loss.drive(), 3 * rank)
    pairs = leading_eigenpairs(loss.curvature_product, torch.ones_like(expected), rank + 4)
    for theory in krylov_theory(space), leading_theory(pairs, loss.drive()):
        assert relative(loss.curvature_product(theory.optimum()), loss.drive()) < 1e-6
        assert relative(theory.optimum(), expected) < 1e-4
        assert int(theory.positive_k.sum()) == rank


def test_time_to_a_length_does_not_depend_on_zeros_of_the_spectrum() -> None:
    matrix, drive = semidefinite([3.0, 2.0, 0.5], SIZE)
    theory = leading_theory(pairs_of(matrix), drive)
    optimum = float(theory.optimum().norm())
    assert theory.matching_time(0.9 * optimum) == pytest.approx(
        leading_theory(leading_eigenpairs(matrix.mv, drive, 3), drive).matching_time(0.9 * optimum)
    )
    assert theory.matching_time(1.01 * optimum) is None


def test_the_bound_counts_no_zero_of_the_tail() -> None:
    matrix, drive = semidefinite([3.0, 2.0, 0.5], SIZE)
    values = torch.linalg.eigvalsh(matrix).flip(0)
    pairs = leading_eigenpairs(matrix.mv, drive, 1)
    theory = leading_theory(pairs, drive)
    bound = theory.error_bound(0.1, 400, values[1:])
    assert bound == pytest.approx(theory.perpendicular_norm / 0.5, rel=1e-6)
    missed = descent(matrix, drive, 0.1, 400) - theory.displacement(0.1, 400)
    assert float(missed.norm()) <= bound


def test_a_ray_along_a_flat_direction_has_no_minimum() -> None:
    """Whatever the sign that rounding gives to its curvature."""
    matrix, drive = semidefinite([3.0, 2.0, 0.5], SIZE)
    flat = torch.linalg.eigh(matrix).eigenvectors[:, :20].mT
    for update in flat:
        line = quadratic_parabola(matrix.mv, drive, 0.1 * drive, update, largest=3.0)
        assert (line.curvature, line.factor) == (0.0, None)
    assert quadratic_parabola(matrix.mv, drive, drive, drive, largest=3.0).factor is not None


def test_rounding_of_equal_losses_is_no_curvature() -> None:
    straight = [2.0 + 1e-3 * f for f in (-1, 0, 1)]
    assert fitted_parabola(0.3, 0.1 + 0.2, 0.3).factor is None
    assert fitted_parabola(*straight).factor is None
    assert fitted_parabola(2.0, 1.0, 1.0 + 1e-12).factor == pytest.approx(0.5)


def test_gradients_that_differ_by_rounding_have_no_spread() -> None:
    row = torch.full((7,), 0.1).cumsum(0)
    found = gradient_covariance(torch.stack([row * 3 / 3, row, row * 7 / 7, row + 0.0]))
    assert (found["trace"], found["effective_rank"]) == (0.0, 0.0)


@pytest.mark.parametrize("name", SPECTRA)
def test_ranks_are_those_of_numpy(name: str) -> None:
    matrix = semidefinite(SPECTRA[name], SIZE)[0]
    expected = int(np.linalg.matrix_rank(matrix.numpy(), hermitian=True))
    assert expected == len(SPECTRA[name])
    assert numerical_rank(singular_values(matrix), (SIZE, SIZE)) == expected
    assert int(above_rounding(torch.linalg.eigvalsh(matrix), SIZE).sum()) == expected


def test_the_cutoff_is_relative_and_stated() -> None:
    eps = torch.finfo(torch.float64).eps
    values = torch.tensor([8.0, 8.1 * 100 * eps, -8.1 * 100 * eps, 7.9 * 100 * eps, 0.0]).double()
    assert above_rounding(values, 100).tolist() == [True, True, True, False, False]
    assert not above_rounding(torch.zeros(3).double(), 100).any()
    assert not above_rounding(torch.zeros(0).double(), 100).any()
    single = torch.tensor([1.0, 1e-3, 1e-4])  # a billion numbers lose no more than sqrt(eps)
    assert above_rounding(single, 10**9, dtype=torch.float32).tolist() == [True, True, False]
