"""Paths of leading directions: signs, variance in a plane, and pictures."""

import builtins
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.reference import subspace_twin
from torch import Tensor

from effopd.analysis.trajectories import (
    aligned,
    explained_variance_ratio,
    leading_trajectory,
    pca_points,
    tsne_points,
)
from effopd.errors import ConfigError, MissingExtraError


def walk(count: int, d: int, seed: int = 0) -> Tensor:
    """Unit vectors that wander."""
    rng = torch.Generator().manual_seed(seed)
    steps = torch.randn(count, d, generator=rng, dtype=torch.float64)
    return torch.nn.functional.normalize(3 * steps[:1] + steps.cumsum(0), dim=1)


def with_random_signs(points: Tensor, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return points * (2 * torch.randint(0, 2, (len(points), 1), generator=rng) - 1)


# Signs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_alignment_equals_its_twin_and_undoes_random_signs(seed: int) -> None:
    path = walk(7, 12, seed)
    found = aligned(list(with_random_signs(path, seed)))
    expected = subspace_twin.aligned(list(path.numpy()))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=0)


def test_later_checkpoints_change_no_sign() -> None:
    vectors = list(with_random_signs(walk(9, 5, 1), 3))
    whole = aligned(vectors)
    for count in range(1, 9):
        assert torch.equal(aligned(vectors[:count]), whole[:count])
    assert ((whole[1:] * whole[:-1]).sum(1) >= 0).all()


def test_the_first_sign_is_a_convention() -> None:
    vector = torch.tensor([0.6, -0.8])
    assert aligned([vector]).tolist() == pytest.approx(torch.tensor([[-0.6, 0.8]]).double())
    orthogonal = aligned([-vector, torch.tensor([0.8, 0.6])])  # a product of zero turns nothing
    assert orthogonal[1].tolist() == pytest.approx([0.8, 0.6], abs=1e-7)


# Along a run --------------------------------------------------------------------------------------


def turning_updates(count: int, m: int = 60, n: int = 80) -> list[Tensor]:
    """Updates whose first direction turns in a plane, by 0.2 radians a checkpoint, with noise."""
    rng = torch.Generator().manual_seed(2)
    plane = torch.linalg.qr(torch.randn(m, 2, generator=rng, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, 1, generator=rng, dtype=torch.float64)).Q[:, 0]
    angles = 0.2 * torch.arange(count, dtype=torch.float64)
    lefts = [plane[:, 0] * a.cos() + plane[:, 1] * a.sin() for a in angles]
    noise = torch.randn(m, n, generator=rng, dtype=torch.float64) / 1000
    return [(1 + t) * torch.outer(u, right) + noise for t, u in enumerate(lefts)]


def test_a_direction_that_turns_in_a_plane() -> None:
    updates = turning_updates(8)
    found = leading_trajectory(update.float() for update in updates)
    wholes = [subspace_twin.triples(update.numpy(), 1)[0][:, 0] for update in updates]
    expected = torch.from_numpy(subspace_twin.aligned(wholes))
    torch.testing.assert_close(found.points_Td, expected, rtol=0, atol=1e-5)
    assert found.indices == tuple(range(8))
    assert min(found.relative_gaps) > 0.9
    turns = (found.points_Td[1:] * found.points_Td[:-1]).sum(1).acos()
    torch.testing.assert_close(turns, torch.full((7,), 0.2).double(), rtol=0, atol=0.02)
    ratio = explained_variance_ratio(found.points_Td)
    assert ratio == pytest.approx(1.0, abs=1e-3)
    assert ratio < 1.0


def test_checkpoints_that_have_not_moved_are_left_out_and_named() -> None:
    updates = turning_updates(3)
    zero = torch.zeros_like(updates[0])
    found = leading_trajectory([zero, updates[0], zero, *updates[1:]])
    assert found.indices == (1, 3, 4)
    torch.testing.assert_close(found.points_Td, leading_trajectory(updates).points_Td)
    assert not found.never_moved
    never = leading_trajectory([zero, zero])
    assert never.never_moved
    assert len(never.points_Td) == 0
    assert explained_variance_ratio(never.points_Td) is None


def test_updates_are_taken_one_by_one() -> None:
    """None that has been dealt with is kept."""
    earlier: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for update in turning_updates(4):
            assert sum(reference() is not None for reference in earlier) <= 1
            stored = update.float()
            earlier.append(weakref.ref(stored))
            yield stored
            del stored

    assert leading_trajectory(stream()).indices == (0, 1, 2, 3)


# Variance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "d"), [(4, 9), (12, 5), (6, 200)])
@pytest.mark.parametrize("components", [1, 2, 3])
def test_variance_and_coordinates_equal_their_twins(count: int, d: int, components: int) -> None:
    path = walk(count, d)
    expected = subspace_twin.explained_variance_ratio(path.numpy(), components)
    assert explained_variance_ratio(path, components) == pytest.approx(expected, rel=1e-12)
    coordinates = torch.from_numpy(subspace_twin.pca_points(path.numpy(), components))
    torch.testing.assert_close(pca_points(path, components), coordinates, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("value", [1 / 3, 1e6, 0.0])
def test_a_path_that_stays_in_one_point_has_no_variance(count: int, value: float) -> None:
    path = torch.full((count, 7), value)
    assert explained_variance_ratio(path) is None
    assert torch.equal(pca_points(path), torch.zeros(count, 2).double())


def test_a_small_step_is_not_taken_for_rounding() -> None:
    path = torch.ones(4, 7, dtype=torch.float64)
    path[1, 0] += 1e-9
    path[2, 1] += 2e-9
    path[3, 2] += 3e-9
    enlarged = (path - 1) * 1e9
    expected = subspace_twin.explained_variance_ratio(enlarged.numpy(), 2)
    assert explained_variance_ratio(path) == pytest.approx(expected, rel=1e-6)


# Pictures -----------------------------------------------------------------------------------------


def test_near_points_stay_near() -> None:
    """Two groups far apart: every point is closer to its own group than to the other."""
    rng = torch.Generator().manual_seed(0)
    groups = [torch.randn(6, 30, generator=rng) + far for far in (0.0, 40.0)]
    found = tsne_points(torch.cat(groups))
    distances = torch.cdist(found, found)
    within = torch.cat([distances[:6, :6], distances[6:, 6:]]).amax()
    assert float(within) < float(distances[:6, 6:].amin())


@pytest.mark.parametrize("count", [4, 5, 8])
def test_a_picture_of_few_points_is_finite_and_repeatable(count: int) -> None:
    path = walk(count, 50)
    found = tsne_points(path)
    assert found.shape == (count, 2)
    assert found.isfinite().all()
    assert float(torch.pdist(found).min()) > 0.1
    assert torch.equal(found, tsne_points(path))


def test_points_that_coincide_have_a_picture_without_nan() -> None:
    assert torch.equal(tsne_points(torch.ones(5, 3)), torch.zeros(5, 2).double())
    path = walk(6, 8)[[0, 0, 0, 3, 4, 5]]
    assert tsne_points(path).isfinite().all()


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ConfigError, match="picture of 3 points; expected at least 4"):
        tsne_points(walk(3, 8))


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'effopd\[analysis\]'"):
        tsne_points(walk(5, 8))
