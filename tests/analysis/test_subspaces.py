"""Leading directions against whole decompositions, and how directions are compared."""

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.reference import subspace_twin
from torch import Tensor

from effopd.analysis.subspaces import (
    SubspaceRow,
    direction_cosines,
    direction_rows,
    principal_angles,
    subspace_columns,
    subspace_cosines,
    subspace_series,
)
from effopd.errors import NonFiniteError, ParameterMismatchError
from effopd.linalg.leading import (
    OVERSAMPLING,
    Directions,
    block_krylov,
    exact_directions,
    leading_directions,
    orthonormal_rest,
)

K = 4


def orthonormal(m: int, k: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(m, k, generator=rng, dtype=torch.float64)).Q


def matrix(m: int, n: int, values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with the given singular values."""
    values = values.double()
    return (orthonormal(m, len(values), seed) * values) @ orthonormal(n, len(values), seed + 1).T


def spiked(m: int = 120, n: int = 150, seed: int = 0, spikes: int = 8) -> Tensor:
    """A few values above a flat tail, as updates have."""
    tail = torch.linspace(1.0, 0.1, min(m, n) - spikes)
    return matrix(m, n, torch.cat([6.0 * 0.8 ** torch.arange(spikes), tail]), seed)


def assert_leading(found: Directions, update: Tensor, k: int, error: float) -> None:
    """The k leading triples: values, subspaces and each direction up to its sign."""
    left, values, right = map(torch.from_numpy, subspace_twin.triples(update.double().numpy(), k))
    torch.testing.assert_close(found.values_k.double(), values, rtol=error, atol=0.0)
    torch.testing.assert_close(
        found.U_mk.double() * found.values_k.double() @ found.V_nk.double().T,
        (left * values) @ right.T,
        rtol=0.0,
        atol=100 * error * float(values[0]),
    )
    unit = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(found.U_mk.double().T @ found.U_mk.double(), unit, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.V_nk.double().T @ found.V_nk.double(), unit, atol=1e-5, rtol=0)


# Against whole decompositions ---------------------------------------------------------------------

SHAPES = [(120, 150), (150, 120), (90, 400), (400, 90)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_iteration_equals_the_whole_decomposition(shape: tuple[int, int]) -> None:
    update = spiked(*shape)
    found = block_krylov(update, K, depth=30, tolerance=1e-9)
    assert found.relative_error <= 1e-9
    assert_leading(found, update, K, 1e-8)


@pytest.mark.parametrize("shape", [*SHAPES, (5, 7), (1, 9), (9, 1), (K, K)], ids=str)
def test_exact_directions_equal_the_whole_decomposition(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(3)
    update = torch.randn(*shape, generator=rng, dtype=torch.float64)
    found = exact_directions(update, K)
    assert_leading(found, update, min(K, *shape), 1e-11)
    assert len(found.values_k) == min(K, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_leading_directions_of_every_dtype(shape: tuple[int, int], dtype: torch.dtype) -> None:
    update = spiked(*shape).to(dtype)
    found = leading_directions(update, K)
    assert found.relative_error <= 1e-5
    assert_leading(found, update, K, 1e-5)


def test_the_stated_residual_is_the_true_one() -> None:
    update = spiked()
    for depth in (1, 2, 3):
        found = block_krylov(update, K, depth=depth)
        missed = update.T @ found.U_mk - found.V_nk * found.values_k
        torch.testing.assert_close(found.residuals_k, missed.norm(dim=0), rtol=1e-8, atol=1e-13)
        other = update @ found.V_nk - found.U_mk * found.values_k
        assert float(other.abs().max()) < 1e-13
        assert found.relative_error >= float((found.residuals_k / found.values_k).max()) > 1e-9


def test_depth_and_tolerance_end_the_iteration() -> None:
    update = spiked()
    errors = [block_krylov(update, K, depth=depth).relative_error for depth in range(1, 6)]
    assert errors == sorted(errors, reverse=True)
    found = block_krylov(update, K, depth=5, tolerance=errors[2])
    assert found.products == 3 * 2 * (K + OVERSAMPLING)
    assert found.relative_error == errors[2]


def test_flat_values_are_computed_exactly() -> None:
    """Where the iteration would take as long, what it has spent is counted too."""
    rng = torch.Generator().manual_seed(5)
    update = torch.randn(120, 150, generator=rng, dtype=torch.float64)
    found = leading_directions(update, K)
    assert_leading(found, update, K, 1e-11)
    exact = exact_directions(update, K)
    assert found.products > exact.products
    torch.testing.assert_close(found.U_mk, exact.U_mk, rtol=0, atol=0)


def test_values_far_apart_are_not_left_to_the_gram_matrix() -> None:
    """Its rounding is that of the square of the largest value."""
    values = torch.tensor([1.0, 1e-2, 1e-4, 5e-6], dtype=torch.float64)
    found = exact_directions(matrix(30, 40, values), 4)
    torch.testing.assert_close(found.values_k, values, rtol=1e-9, atol=0.0)
    assert found.relative_error <= 1e-9


def test_a_block_that_hardly_leaves_the_basis_is_still_split_into_orthonormal_parts() -> None:
    basis = orthonormal(80, 30, 0)
    away = orthonormal(80, 3, 5) * torch.tensor([1e-5, 1e-9, 2e-13])
    block = basis[:, :3] + away
    within, new, beyond = orthonormal_rest(block, basis, 1.0)
    everything = torch.cat([basis, new], 1)
    unit = torch.eye(33, dtype=torch.float64)
    torch.testing.assert_close(everything.T @ everything, unit, rtol=0, atol=1e-14)
    torch.testing.assert_close(basis @ within + new @ beyond, block, rtol=0, atol=1e-15)


# A start from a neighbour -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_start_from_the_neighbour_needs_fewer_products(shape: tuple[int, int]) -> None:
    update = spiked(*shape)
    rng = torch.Generator().manual_seed(9)
    following = update + 1e-4 * torch.randn(*shape, generator=rng, dtype=torch.float64)
    cold = block_krylov(following, K, depth=30, tolerance=1e-5)
    start = block_krylov(update, K, depth=30, tolerance=1e-5).V_nk
    warm = block_krylov(following, K, depth=30, start=start, tolerance=1e-5)
    assert warm.products < cold.products
    assert_leading(warm, following, K, 1e-5)


@pytest.mark.parametrize("value", [7.0, 5.0, 3.2])
@pytest.mark.parametrize("seed", range(5))
def test_a_start_does_not_hide_a_new_direction(value: float, seed: int) -> None:
    """The start is invariant: without random columns nothing would ever leave it."""
    spikes = torch.tensor([6.0, 4.5, 3.7, 3.1])
    left, right = orthonormal(300, 60, seed), orthonormal(400, 60, seed + 50)
    tail = torch.linspace(1.0, 0.5, 55)
    values = torch.cat([spikes, torch.tensor([value]), tail]).double()
    update = (left * values) @ right.T
    found = leading_directions(update, K, start=right[:, :K])
    expected = values.sort(descending=True).values[:K]
    torch.testing.assert_close(found.values_k, expected, rtol=1e-8, atol=0.0)


def test_a_direction_left_out_counts_as_an_error() -> None:
    """Two triples, exact by themselves, beside a third one that is larger."""
    found = Directions(
        U_mk=orthonormal(9, 2, 0),
        values_k=torch.tensor([3.0, 2.0]),
        V_nk=orthonormal(8, 2, 0),
        residuals_k=torch.zeros(2),
        next_value=2.5,
        asked=2,
        products=0,
    )
    assert found.relative_error == pytest.approx(0.25)


def test_the_same_call_gives_the_same_bits_and_leaves_random_numbers_alone() -> None:
    update = spiked()
    before = torch.random.get_rng_state()
    first, second = (block_krylov(update, K, depth=9) for _ in range(2))
    assert torch.equal(first.U_mk, second.U_mk)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = block_krylov(update, K, depth=9, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first.U_mk, other.U_mk)


# Ranks, ties and zero -----------------------------------------------------------------------------

Method = Callable[[Tensor, int], Directions]
METHODS = pytest.mark.parametrize(
    "method",
    [
        lambda update, k: block_krylov(update, k, depth=20, tolerance=1e-5),
        exact_directions,
        leading_directions,
    ],
    ids=["iteration", "exact", "leading"],
)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_more_directions_than_the_rank(method: Method, dtype: torch.dtype) -> None:
    update = matrix(100, 130, torch.tensor([5.0, 2.0, 1.0])).to(dtype)
    found = method(update, K)
    assert (found.asked, len(found.values_k), found.never_moved) == (K, 3, False)
    assert_leading(found, update, 3, 1e-5)
    assert found.relative_error <= 1e-5


@METHODS
def test_a_zero_update_has_no_direction(method: Method) -> None:
    found = method(torch.zeros(100, 130), K)
    assert found.never_moved
    assert found.U_mk.shape == (100, 0)
    assert found.V_nk.shape == (130, 0)
    assert found.relative_error == 0.0


@METHODS
@pytest.mark.parametrize("k", [2, 3, 6])
def test_tied_values_say_so_by_their_gap(method: Method, k: int) -> None:
    values = torch.tensor([5.0, 3.0, 3.0, 3.0, 1.0, 0.5])
    update = matrix(100, 130, values)
    found = method(update, k)
    torch.testing.assert_close(found.values_k, values[:k].double(), rtol=1e-9, atol=1e-9)
    gaps = torch.tensor([0.4, 0.0, 0.0, 0.0, 0.5, 1.0])[:k].double()
    torch.testing.assert_close(found.relative_gaps_k, gaps, rtol=1e-6, atol=1e-6)
    below = torch.tensor([0.4, 0.0, 0.0, 2 / 3, 0.5, 1.0])[:k].double()
    torch.testing.assert_close(found.subspace_gaps_k, below, rtol=1e-6, atol=1e-6)


# Comparing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "j"), [(1, 1), (5, 5), (5, 3), (2, 6)])
def test_comparisons_equal_their_twins(k: int, j: int) -> None:
    left, other = orthonormal(12, k, 0), orthonormal(12, j, 1)
    a, b = left.numpy(), other.numpy()
    assert direction_cosines(left, other).tolist() == pytest.approx(
        subspace_twin.direction_cosines(a, b), abs=1e-14
    )
    assert subspace_cosines(left, other).tolist() == pytest.approx(
        subspace_twin.subspace_cosines(a, b), abs=1e-14
    )
    assert principal_angles(left, other).tolist() == pytest.approx(
        subspace_twin.principal_angles(a, b), abs=1e-7
    )


def test_tiny_angles_survive_a_change_of_basis() -> None:
    left, across = orthonormal(40, 6, 0).split(3, 1)
    angles = torch.tensor([1e-11, 1e-8, 1e-5], dtype=torch.float64)
    other = (left * angles.cos() + across * angles.sin()) @ orthonormal(3, 3, 7)
    found = principal_angles(left, other)
    torch.testing.assert_close(found, angles, rtol=1e-4, atol=1e-15)


# Along a run --------------------------------------------------------------------------------------


def run_of_updates(count: int = 5, m: int = 100, n: int = 130) -> list[Tensor]:
    """Updates that turn towards the last one."""
    first, last = spiked(m, n), spiked(m, n, seed=20)
    return [(1 - t) * first + t * last for t in torch.linspace(0, 1, count).tolist()]


def test_series_equals_comparisons_of_whole_decompositions() -> None:
    updates = run_of_updates()
    rows = list(subspace_series(updates, updates[-1], K))
    wholes = [subspace_twin.triples(update.numpy(), K)[0] for update in updates]
    assert len(rows) == 5
    for t, row in enumerate(rows):
        pairs = [(row.to_final, wholes[-1])]
        if t:
            pairs.append((row.to_previous, wholes[t - 1]))
        for found, other in pairs:
            assert found is not None
            twins = [
                (found.direction_cosines, subspace_twin.direction_cosines(wholes[t], other)),
                (found.subspace_cosines, subspace_twin.subspace_cosines(wholes[t], other)),
                (found.captured_norms, subspace_twin.captured_norms(other, updates[t].numpy(), K)),
            ]
            for ours, expected in twins:
                assert ours == pytest.approx(expected, abs=1e-4)
            assert found.mean_subspace_cosine == pytest.approx(sum(found.subspace_cosines) / K)
            assert found.mean_direction_cosine == pytest.approx(sum(found.direction_cosines) / K)
    assert rows[0].to_previous is None
    last = rows[-1].to_final
    assert last is not None
    assert last.subspace_cosines == pytest.approx([1.0] * K, abs=1e-9)
    assert last.captured_norms == pytest.approx([1.0] * K, abs=1e-9)
    assert max(last.angles) < 1e-4


def test_series_takes_updates_one_by_one_and_saves_products() -> None:
    updates = run_of_updates(9, 260, 300)
    taken: list[int] = []

    def stream() -> Iterator[Tensor]:
        for index, update in enumerate(updates):
            taken.append(index)
            yield update.float()

    rows: list[SubspaceRow] = []
    for row in subspace_series(stream(), updates[-1], K):
        rows.append(row)
        assert taken == list(range(len(rows)))
    cold = [leading_directions(update, K).products for update in updates]
    assert sum(row.own.products for row in rows) < sum(cold)
    assert all(row.own.relative_error <= 1e-5 for row in rows)


def test_a_tensor_that_has_not_moved_yet() -> None:
    final = spiked(100, 130)
    zero = torch.zeros(100, 130)
    rows = list(subspace_series([zero, final, zero, final], final, K))
    assert [row.own.never_moved for row in rows] == [True, False, True, False]
    assert [row.to_final is None for row in rows] == [True, False, True, False]
    assert [row.to_previous is None for row in rows] == [True] * 4
    columns = subspace_columns(rows[0])
    assert columns["directions"] == 0
    assert columns["final_cosine_1"] is None
    assert columns["relative_gap_1"] is None
    assert list(direction_rows(rows[0])) == []
    (never,) = subspace_series([final], zero, K)
    assert never.to_final is None


def test_updates_of_different_rank_share_the_directions_of_the_lower_one() -> None:
    low, full = matrix(100, 130, torch.tensor([3.0, 1.0])), spiked(100, 130)
    low_row, full_row = subspace_series([low, full], full, K)
    assert low_row.to_final is not None
    assert len(low_row.own.values_k) == len(low_row.to_final.subspace_cosines) == 2
    assert full_row.to_previous is not None
    assert len(full_row.to_previous.captured_norms) == len(full_row.to_previous.angles) == 2
    long = list(direction_rows(full_row))
    assert [row["direction"] for row in long] == [1, 2, 3, 4]
    assert [row["previous_subspace_cosine"] is None for row in long] == [False, False, True, True]
    assert [row["final_direction_cosine"] for row in long] == pytest.approx([1.0] * 4)


# Mistakes -----------------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(method: Method, bad: float) -> None:
    update = spiked()
    update[3, 5] = bad
    with pytest.raises(NonFiniteError, match="damaged or training diverged"):
        method(update, K)


@METHODS
def test_what_has_no_directions_is_refused(method: Method) -> None:
    for shape in ((7,), (2, 3, 4), (0, 5)):
        with pytest.raises(ParameterMismatchError, match=r"expected \[m, n\] of floating-point"):
            method(torch.zeros(shape), 1)
