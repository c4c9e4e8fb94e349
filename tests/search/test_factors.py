"""Points of low-rank updates: the factored ones against dense twins in float64."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.core_twin import bits
from tests.reference.factors_twin import dense_point, nearest_of_rank
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.search.direction import AlphaPLS, SinceBase, SinceRaw
from effopd.search.extrapolator import Extrapolator, Search
from effopd.search.factors import Factors, product_point
from effopd.search.ray import Ray
from effopd.search.scales import LadderScales
from effopd.search.schedule import EveryN
from effopd.search.validation import Draw, Score

SHAPES = [(12, 20), (20, 12), (5, 20), (20, 5), (3, 3)]
"""Wider than twice the rank, narrower, and narrower than the rank itself."""
RANK = 4
PAIRS = [("q.B", "q.A"), ("v.B", "v.A")]


def ends(rows: int, columns: int, seed: int, drift: float = 0.05) -> tuple[Any, Any]:
    """Factors before and after a few updates."""
    rng = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(rows, RANK, generator=rng),
        torch.randn(RANK, columns, generator=rng),
    )
    moved = [t + drift * torch.randn(t.shape, generator=rng) for t in (left, right)]
    return (left, right), (moved[0], moved[1])


@pytest.mark.parametrize("scale", [-1.0, 0.3, 1.0, 2.0, 11.0, 256.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nearest_product_of_the_rank(shape: tuple[int, int], scale: float) -> None:
    anchor, tip = ends(*shape, seed=0)
    point = product_point(anchor, tip, scale)
    exact = dense_point(anchor, tip, scale)
    nearest = nearest_of_rank(exact, RANK)
    assert (point.left_mr.shape, point.right_rn.shape) == ((shape[0], RANK), (RANK, shape[1]))
    assert (point.left_mr @ point.right_rn - nearest).norm() <= 1e-12 * exact.norm()
    assert math.isclose(point.whole, float(exact.square().sum()), rel_tol=1e-12)
    lost = float((exact - nearest).square().sum())
    assert point.lost == pytest.approx(lost, rel=1e-9, abs=1e-20 * point.whole)


def test_the_exact_point_has_twice_the_rank() -> None:
    """Concatenated factors hold it; those of one rank cannot."""
    (b_0, a_0), (b_1, a_1) = ends(12, 20, seed=1)
    stacked = torch.cat([(1 - 3.0) * b_0, 3.0 * b_1], 1).double() @ torch.cat([a_0, a_1]).double()
    exact = dense_point((b_0, a_0), (b_1, a_1), 3.0)
    torch.testing.assert_close(stacked, exact, rtol=1e-5, atol=1e-5)
    assert int(torch.linalg.matrix_rank(exact)) == 2 * RANK


@pytest.mark.parametrize("dead", [0, 1, RANK])
def test_where_the_right_factor_stayed_the_left_one_is_on_the_ray(dead: int) -> None:
    """As from a new adapter, whose left factor is zero; also with directions not used yet."""
    (_, right), (left, _) = ends(12, 20, seed=2)
    left[:, :dead] = 0
    point = product_point((torch.zeros(12, RANK), right), (left, right), 3.0)
    torch.testing.assert_close(point.right_rn.float(), right)
    torch.testing.assert_close(point.left_mr.float(), 3 * left, rtol=1e-5, atol=1e-6)
    assert point.lost <= 1e-28 * point.whole


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999), scale=st.floats(0.1, 64.0), drift=st.sampled_from([1e-4, 0.1, 3.0])
)
def test_no_direction_of_the_rank_dies(seed: int, scale: float, drift: float) -> None:
    """Both factors keep full rank, so that training can go on in all of it."""
    point = product_point(*ends(12, 20, seed, drift), scale)
    for factor in (point.left_mr, point.right_rn):
        values = torch.linalg.svdvals(factor)
        assert values[-1] > 1e-5 * values[0]


# On the ray ---------------------------------------------------------------------------------------


def adapters(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two adapted modules and a plain tensor, before and after some updates."""
    before, after = {}, {}
    for i, (name, shape) in enumerate((("q", (12, 20)), ("v", (5, 20)))):
        for side, first, last in zip("BA", *ends(*shape, seed + i), strict=True):
            before[f"{name}.{side}"], after[f"{name}.{side}"] = first, last
    return before | {"norm": torch.ones(5)}, after | {"norm": torch.full((5,), 1.5)}


def ray_between(
    before: dict[str, Tensor], after: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Ray]:
    live = {name: tensor.clone() for name, tensor in before.items()}
    ray = Ray(live, factors=Factors(PAIRS))
    for name, tensor in live.items():
        tensor.copy_(after[name])
    ray.capture_tip_()
    return live, ray


def test_the_ray_moves_products_and_other_tensors_as_ever() -> None:
    before, after = adapters()
    live, ray = ray_between(before, after)
    for scale in (3.0, 0.5, 7.0):
        ray.move_to_(scale)
        lost = whole = 0.0
        for left, right in PAIRS:
            start, end = ((each[left], each[right]) for each in (before, after))
            exact = dense_point(start, end, scale)
            nearest = nearest_of_rank(exact, RANK)
            torch.testing.assert_close(
                live[left].double() @ live[right].double(), nearest, rtol=1e-4, atol=1e-4
            )
            lost += float((exact - nearest).square().sum())
            whole += float(exact.square().sum())
        assert ray.truncation == pytest.approx(math.sqrt(lost / whole), rel=1e-6)
        assert 0 < ray.truncation < 1
        torch.testing.assert_close(live["norm"], torch.full((5,), 1 + 0.5 * scale))


def test_the_ends_are_copies_bit_for_bit() -> None:
    before, after = adapters()
    live, ray = ray_between(before, after)
    for scale, end in ((3.0, None), (1.0, after), (9.0, None), (0.0, before), (1.0, after)):
        ray.move_to_(scale)
        if end is not None:
            assert all(bits(live[name]) == bits(end[name]) for name in live)
            assert ray.truncation == 0.0


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("moved", [True, False])
def test_the_next_anchor_is_the_point_itself(scale: float, moved: bool) -> None:
    before, after = adapters()
    live, ray = ray_between(before, after)
    ray.move_to_(scale)
    point = {name: tensor.clone() for name, tensor in live.items()}
    if not moved:
        ray.move_to_(5.0)
    ray.advance_anchor_(scale)
    assert all(bits(ray.anchor[name]) == bits(point[name]) for name in point)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("q.B", "gone")], "gone does not move, but its product does: select both factors"),
        ([("q.A", "v.B")], "have no product: shapes"),
        ([("q.B", "norm")], "have no product: shapes"),
        ([], "no factors to move"),
    ],
)
def test_impossible_pairs_are_refused(pairs: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ray(adapters()[0], factors=Factors(pairs))


# In the search ------------------------------------------------------------------------------------


class Student:
    """Adapters that an optimizer has moved, searched once."""

    def __init__(self, likes: float, **search: Any) -> None:
        before, self.after = adapters()
        self.live = {name: tensor.clone() for name, tensor in before.items()}
        self.likes, self.scored = likes, 0
        arguments: dict[str, Any] = {
            "schedule": EveryN(n=1),
            "scales": LadderScales(scales=(2.0, 4.0)),
            "guard": None,
            "parameters": "all",
        }
        self.extrapolator = Extrapolator(
            self.live, self.score, search=Search(**arguments | search), factors=Factors(PAIRS)
        )
        for name, tensor in self.live.items():
            tensor.copy_(self.after[name])

    def score(self, draw: Draw) -> Score:
        """Of how far the plain tensor is from where the student wants it."""
        self.scored += 1
        scale = 2 * (float(self.live["norm"][0]) - 1)
        return Score(value=-abs(scale - self.likes))

    def state(self) -> dict[str, Tensor]:
        return self.live | {
            f"anchor {name}": tensor
            for name, tensor in self.extrapolator.state_dict()["anchor"].items()
        }


def test_an_accepted_point_reports_its_error_and_is_the_next_anchor() -> None:
    student = Student(likes=4.0)
    result = student.extrapolator.step(1)
    assert result is not None
    assert result.accepted_scale == 4.0
    tip, *points = [trial.score.truncation for trial in result.trials if trial.score]
    assert tip == 0.0
    assert 0 < points[0] < points[1] < 1
    state = student.state()
    assert all(bits(state[name]) == bits(state[f"anchor {name}"]) for name in student.live)


def test_a_rejected_search_leaves_no_trace() -> None:
    student = Student(likes=1.0)
    result = student.extrapolator.step(1)
    assert result is not None
    assert (result.accepted_scale, len(result.trials)) == (1.0, 2)
    assert all(bits(student.live[name]) == bits(student.after[name]) for name in student.live)


def test_a_broken_search_puts_the_tip_back() -> None:
    student = Student(likes=float("nan"))
    with pytest.raises(NonFiniteError):
        student.extrapolator.step(1)
    assert all(bits(student.live[name]) == bits(student.after[name]) for name in student.live)


def test_points_that_the_rank_cannot_hold_are_rejected_unseen() -> None:
    student = Student(likes=4.0, max_truncation=1e-6)
    result = student.extrapolator.step(1)
    assert result is not None
    assert student.scored == 1, "the tip alone"
    assert result.accepted_scale == 1.0
    assert result.trials[1].reason.startswith("the rank cannot hold 0.")
    assert all(bits(student.live[name]) == bits(student.after[name]) for name in student.live)


@pytest.mark.parametrize(("direction", "anchor"), [(SinceRaw(), "after"), (SinceBase(), "before")])
def test_the_other_anchors(direction: Any, anchor: str) -> None:
    student = Student(likes=4.0, direction=direction)
    student.extrapolator.step(1)
    expected = {"after": student.after, "before": adapters()[0]}[anchor]
    found = student.extrapolator.state_dict()["anchor"]
    assert all(bits(found[name]) == bits(expected[name]) for name in found)


def test_fits_of_factors_are_refused() -> None:
    with pytest.raises(ConfigError, match="'alpha_pls' fits tensors"):
        Student(likes=4.0, direction=AlphaPLS())


def test_a_jump_unseen_has_no_limit() -> None:
    with pytest.raises(ConfigError, match="takes its one point whatever it is"):
        dataclasses.replace(Search.expo(), max_truncation=0.5)
