"""Closed forms of gradient descent on an exact quadratic, and how far to extrapolate."""

import math

import pytest
import torch
from tests.reference.quadratic_twin import (
    descent,
    descent_closed,
    descent_sum,
    semidefinite,
)
from torch import Tensor

from effopd.analysis.local_theory import (
    LocalTheory,
    Parabola,
    descent_gain,
    fitted_parabola,
    flow_gain,
    krylov_theory,
    largest_stable_factor,
    leading_theory,
    quadratic_parabola,
)
from effopd.errors import ConfigError
from effopd.linalg.krylov import EigenPairs, krylov_space

SIZE = 30
VALUES = [4.0 * 0.7**i for i in range(20)]
A, B = semidefinite(VALUES, SIZE)
RATES = [0.01, 0.3, 0.49]  # 2 / lambda_max is 0.5
STEPS = [1, 7, 64]


def exact_pairs(k: int) -> EigenPairs:
    values, vectors = torch.linalg.eigh(A)
    return EigenPairs(
        values_k=values.flip(0)[:k],
        vectors_kP=vectors.flip(1).mT[:k].contiguous(),
        residuals_k=torch.zeros(k, dtype=torch.float64),
    )


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-8) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


# Trajectory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("steps", STEPS)
def test_closed_forms_equal_gradient_descent(rate: float, steps: int) -> None:
    walked = descent(A, B, rate, steps)  # 36
    assert close(descent_sum(A, B, rate, steps), walked)  # 39
    assert close(descent_closed(A, B, rate, steps), walked)  # 41
    whole = leading_theory(exact_pairs(20), B)
    assert whole.perpendicular_norm < 1e-12
    assert close(whole.displacement(rate, steps), walked)  # 44


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("steps", STEPS)
def test_bound_of_the_part_left_out_holds_and_is_reached(k: int, rate: float, steps: int) -> None:
    theory = leading_theory(exact_pairs(k), B)
    error = float((descent(A, B, rate, steps) - theory.displacement(rate, steps)).norm())
    tail = torch.tensor(VALUES[k:], dtype=torch.float64)
    sharp = theory.error_bound(rate, steps, tail)
    assert error <= sharp * (1 + 1e-8)
    assert sharp <= theory.error_bound(rate, steps) * (1 + 1e-8)
    # A drive whose tail lies along the direction of the largest gain reaches the bound.
    vectors, values = torch.linalg.eigh(A).eigenvectors.flip(1), torch.linalg.eigvalsh(A).flip(0)
    worst = k + int(descent_gain(values[k:20], rate, steps).abs().argmax())
    drive = vectors[:, 0] + 0.5 * vectors[:, worst]
    reached = leading_theory(exact_pairs(k), drive)
    left_out = descent(A, drive, rate, steps) - reached.displacement(rate, steps)
    assert float(left_out.norm()) == pytest.approx(reached.error_bound(rate, steps, tail), rel=1e-8)


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("rate", RATES)
def test_krylov_space_of_b_is_exact_up_to_its_depth(depth: int, rate: float) -> None:
    theory = krylov_theory(krylov_space(lambda v: A @ v, B, depth))
    for steps in range(1, depth + 1):
        assert close(theory.displacement(rate, steps), descent(A, B, rate, steps))
    power = torch.linalg.matrix_power(A, depth) @ B  # what step depth + 1 brings in
    outside = power - theory.vectors_kP.mT @ (theory.vectors_kP @ power)
    error = descent(A, B, rate, depth + 1) - theory.displacement(rate, depth + 1)
    missed = theory.vectors_kP.mT @ (theory.vectors_kP @ error) - error
    torch.testing.assert_close(
        missed.abs(), rate ** (depth + 1) * outside.abs(), rtol=1e-4, atol=1e-12
    )


@pytest.mark.parametrize("whole", [True, False])
def test_change_of_the_loss_is_that_of_the_quadratic(whole: bool) -> None:
    krylov = krylov_space(lambda v: A @ v, B, 25)
    theory = leading_theory(exact_pairs(20), B) if whole else krylov_theory(krylov)
    d = theory.displacement(0.3, 6)
    assert theory.change(0.3, 6) == pytest.approx(float(d @ A @ d / 2 - B @ d), rel=1e-9)
    assert theory.drive_norm == pytest.approx(float(B.norm()), rel=1e-12)


# Gains --------------------------------------------------------------------------------------------


def test_gain_of_tiny_zero_and_negative_values() -> None:
    values = torch.tensor([1e-14, 0.0, -1e-14, 1.0, 2.0], dtype=torch.float64)
    expected = [6.4, 6.4, 6.4, 1 - 0.9**64, (1 - 0.8**64) / 2]
    assert descent_gain(values, 0.1, 64).tolist() == pytest.approx(expected, rel=1e-10)
    assert descent_gain(torch.zeros(1), 0.1, 0).tolist() == [0.0]


def test_flow_is_the_limit_of_small_rates() -> None:
    values = torch.tensor([0.0, 1e-12, 0.3, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        flow_gain(values, 1.5), descent_gain(values, 1.5e-6, 1_000_000), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(("rate", "steps"), [(0.0, 1), (-0.1, 1), (math.inf, 1), (0.1, -1)])
def test_impossible_descent_is_refused(rate: float, steps: int) -> None:
    with pytest.raises(ConfigError, match="rate above 0 and steps >= 0"):
        descent_gain(torch.ones(1), rate, steps)


# Matching a given length --------------------------------------------------------------------------


def test_matching_time_gives_that_length() -> None:
    theory = leading_theory(exact_pairs(20), B)
    for time in (0.01, 1.0, 30.0):
        norm = float(theory.flow(time).norm())
        assert theory.matching_time(norm) == pytest.approx(time, rel=1e-6)


# Extrapolation ------------------------------------------------------------------------------------


def test_factor_of_the_quadratic_minimises_it_along_the_ray() -> None:
    anchor, tip = descent(A, B, 0.1, 4), descent(A, B, 0.1, 8)
    update = tip - anchor
    line = quadratic_parabola(lambda v: A @ v, B, tip, update)
    assert line.factor is not None
    assert line.scale == 1 + line.factor

    def loss(f: float) -> float:
        point = tip + f * update
        return float(point @ A @ point / 2 - B @ point)

    assert loss(line.factor) < min(loss(line.factor - 0.1), loss(line.factor + 0.1))
    found = loss(0.0) + line.slope * 3 + line.curvature * 9 / 2
    assert loss(3.0) == pytest.approx(found, rel=1e-9)
    fitted = fitted_parabola(loss(-1.0), loss(0.0), loss(1.0))
    assert fitted.factor == pytest.approx(line.factor, rel=1e-9)


@pytest.mark.parametrize("curvature", [0.0, -1.0, math.nan])
def test_a_ray_that_does_not_curve_upwards_has_no_minimum(curvature: float) -> None:
    line = Parabola(slope=-1.0, curvature=curvature)
    assert line.factor is None
    assert line.scale is None


def test_a_ray_of_a_concave_loss_is_found_out_by_the_fit() -> None:
    assert fitted_parabola(1.0, 2.0, 2.5).factor is None


@pytest.mark.parametrize(("q", "largest"), [(0.5, 2.0), (5 / 6, 10.0)])
def test_largest_stable_factor_of_one_direction(q: float, largest: float) -> None:
    """From half of the steps to all of them q of the gap is left: twice `q / (1 - q)`."""
    theory = LocalTheory(
        values_k=torch.tensor([1 - q], dtype=torch.float64),
        vectors_kP=torch.eye(1, 3, dtype=torch.float64),
        coefficients_k=torch.ones(1, dtype=torch.float64),
        perpendicular_norm=0.0,
    )
    tip, anchor = theory.displacement(1.0, 2), theory.displacement(1.0, 1)
    assert largest_stable_factor(theory, tip, tip - anchor) == pytest.approx(largest)


def test_directions_without_remaining_loss_do_not_limit_the_factor() -> None:
    theory = leading_theory(exact_pairs(20), B)
    U, optimum_k = theory.vectors_kP, theory.coefficients_k / theory.values_k

    def factor(gaps: dict[int, float], factors: dict[int, float]) -> float:
        """Of these gaps; other directions are at their optimum and move by one."""
        gap_k, moved_k = torch.zeros_like(optimum_k), torch.ones_like(optimum_k)
        for i, gap in gaps.items():
            gap_k[i], moved_k[i] = gap, gap / factors[i]
        return largest_stable_factor(theory, U.mT @ (optimum_k - gap_k), U.mT @ moved_k)

    assert factor({0: 1.0, 1: 1.0}, {0: 3.0, 1: 5.0}) == pytest.approx(6.0)
    assert factor({0: 1.0, 1: 1e-3}, {0: 3.0, 1: 0.1}) == pytest.approx(6.0)
    assert factor({0: 1.0, 1: 1.0}, {0: 3.0, 1: -1.0}) == 0.0
