"""The jump to the weights that a regression on progress predicts."""

import math
from collections.abc import Sequence

import pytest
import torch
from tests.reference.direction_twin import (
    alpha_prediction,
    flipped_to,
    pls_leave_one_out_r2,
    pls_line,
    scaled_components,
)
from torch import Tensor

from effopd import AlphaPLS, AtSteps, Draw, Extrapolator, LadderScales, Search, Unconditional
from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.search import alpha
from effopd.search.alpha import fit_progress, leading_components, leave_one_out_r2


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def no_validator(draw: Draw) -> float:
    raise AssertionError("nothing is to be validated")


def jump_at(step: int, direction: AlphaPLS) -> Search:
    """Takes the prediction of `step` unseen."""
    return Search(
        schedule=AtSteps(steps=(step,)),
        scales=LadderScales(scales=(2.0,)),
        direction=direction,
        accept=Unconditional(),
        guard=None,
    )


def run(search: Search, points: Sequence[Tensor], progress: Sequence[float]) -> Tensor:
    """The matrix after the last point was searched; `points[0]` and `progress[0]` are the base's.

    `progress[t]` is that of `points[t]`, which step t + 1 starts from.
    """
    live = points[0].clone()
    extrapolator = Extrapolator({"mlp.w": live}, no_validator, search=search)
    for step in range(1, len(points)):
        live.copy_(points[step])
        extrapolator.step(step, progress=progress[step - 1])
    return live


# Singular components ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_components_equal_the_whole_decomposition(shape: tuple[int, int], rank: int) -> None:
    rank = min(rank, *shape)
    matrix = normal(*shape, seed=0)
    found = leading_components(matrix, rank).aligned(scaled_components(matrix, rank)[0].T)
    scaled, right = scaled_components(matrix, rank)
    torch.testing.assert_close(found.scaled.T, scaled, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.right.T, right, rtol=1e-9, atol=1e-12)


def test_all_components_rebuild_the_matrix_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for matrix in (normal(7, 4, seed=1), normal(4, 7, seed=1)):
        for piece in (1, 9, 10**6):
            monkeypatch.setattr(alpha, "PIECE", piece)
            found = leading_components(matrix, 4)
            torch.testing.assert_close(found.scaled @ found.right.T, matrix)


def test_a_matrix_of_zeros_has_components_of_zero() -> None:
    found = leading_components(torch.zeros(3, 4), 2)
    assert found.scaled.tolist() == [[0, 0]] * 3
    assert found.right.isfinite().all()


# Partial least squares ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_fit_equals_the_textbook(seed: int) -> None:
    y = normal(6, seed=seed)
    x = y[:, None] * normal(9, seed=seed + 10) + 0.3 * normal(6, 9, seed=seed + 20)
    fit = fit_progress(x, y)
    mean, weight, loading, intercept, slope = pls_line(x, y)
    torch.testing.assert_close(fit.centre, mean)
    torch.testing.assert_close(fit.weight, weight)
    torch.testing.assert_close(fit.loading, loading)
    assert (fit.mean, fit.slope) == pytest.approx((float(intercept), float(slope)))
    assert leave_one_out_r2(x, y) == pytest.approx(pls_leave_one_out_r2(x, y))
    assert fit.progress_at(fit.point_at(0.7)) == pytest.approx(0.7)


def test_degenerate_observations_predict_nothing() -> None:
    x, y = normal(5, 3, seed=6), torch.full((5,), 0.25, dtype=torch.float64)
    assert leave_one_out_r2(x, y) == -math.inf
    assert fit_progress(x, y).slope == 0.0
    assert fit_progress(torch.ones(5, 3, dtype=torch.float64), normal(5, seed=7)).slope == 0.0


# Whole runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_progress_along_one_component_is_continued_exactly(
    dtype: torch.dtype, target: float
) -> None:
    """`W_t = base + y_t a v^T`, whatever the course of y."""
    base, a, v = normal(6, 4, seed=40), normal(6, seed=41), normal(4, seed=42)
    progress = [0.0, 0.05, 0.09, 0.15, 0.17, 0.26, 0.3, 0.31, 0.4, 0.5, 0.52]
    points = [(base + y * torch.outer(a, v)).to(dtype) for y in progress]
    found = run(jump_at(10, AlphaPLS(target=target)), points, progress)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(
        found.double(), base + target * torch.outer(a, v), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)], ids=str)
def test_noisy_runs_equal_the_twin(shape: tuple[int, int], rank: int, seed: int) -> None:
    settings = AlphaPLS(rank=rank, every=1, min_r2=-1e9)
    base, drift = normal(*shape, seed=seed), normal(*shape, seed=seed + 50)
    progress = [0.1 * step for step in range(8)]
    points = [base + y * drift for y in progress]
    points = [points[0]] + [p + 0.2 * normal(*shape, seed=i) for i, p in enumerate(points[1:])]
    expected = alpha_prediction(
        base, points[1:7], progress[1:7], points[7], rank=rank, target=1.0, min_r2=-1e9
    )
    found = run(jump_at(7, settings), points, progress)
    assert not torch.allclose(found, points[7])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def noisy_r2(seed: int) -> tuple[list[Tensor], list[float], float]:
    """A run whose progress has little to do with its weights, and how much."""
    points = [normal(5, 4, seed=100 * seed + step) for step in range(8)]
    progress = normal(8, seed=100 * seed + 99).tolist()
    aligned: list[Tensor] = []
    for point in points[1:7]:
        scaled, right = scaled_components(point - points[0], 1)
        aligned.append(flipped_to(aligned[-1], scaled, right)[0] if aligned else scaled)
    x = torch.stack([scaled.flatten() for scaled in aligned])
    return points, progress, pls_leave_one_out_r2(x, torch.tensor(progress[1:7]).double())


def test_a_matrix_whose_regression_does_not_hold_up_stays() -> None:
    points, progress, r2 = noisy_r2(seed=1)
    for min_r2, moves in [(r2 - 1e-6, True), (r2 + 1e-6, False)]:
        search = jump_at(7, AlphaPLS(every=1, min_r2=min_r2))
        found = run(search, points, progress)
        assert torch.equal(found, points[7]) is not moves


@pytest.mark.parametrize(("at_step", "moves"), [(8, False), (9, True), (10, True)])
def test_fewer_snapshots_with_progress_than_asked_predict_nothing(
    at_step: int, moves: bool
) -> None:
    """Every second step is recorded; the progress of step 8 comes with step 9."""
    base, a, v = normal(4, 3, seed=60), normal(4, seed=61), normal(3, seed=62)
    progress = [0.05 * step for step in range(at_step + 1)]
    points = [base + y * torch.outer(a, v) for y in progress]
    found = run(jump_at(at_step, AlphaPLS(min_snapshots=4)), points, progress)
    assert torch.equal(found, points[-1]) is not moves


@pytest.mark.parametrize("shape", [(4, 3), (3, 4)], ids=str)
def test_a_tip_back_at_the_base_stays(shape: tuple[int, int]) -> None:
    base, drift = normal(*shape, seed=69), normal(*shape, seed=70)
    progress = [0.05 * step for step in range(11)]
    points = [base + y * drift for y in progress[:-1]]
    assert torch.equal(run(Search.alphaopd(at_step=10), [*points, base], progress), base)


def test_what_is_no_matrix_stays() -> None:
    base, a, v = normal(4, 3, seed=63), normal(4, seed=64), normal(3, seed=65)
    live = {"mlp.w": base.clone(), "mlp.bias": torch.zeros(4), "mlp.cube": torch.zeros(2, 2, 2)}
    extrapolator = Extrapolator(live, no_validator, search=Search.alphaopd(at_step=12))
    for step in range(1, 13):
        live["mlp.w"] += 0.05 * torch.outer(a, v)
        live["mlp.bias"] += 1.0
        live["mlp.cube"] += 1.0
        extrapolator.step(step, progress=0.05 * (step - 1))
    torch.testing.assert_close(live["mlp.w"], base + torch.outer(a, v))
    assert live["mlp.bias"].tolist() == [12.0] * 4
    assert live["mlp.cube"].unique().tolist() == [12.0]


def test_an_accepted_jump_is_one_more_observation() -> None:
    """Snapshots are of the weights the next update starts from: the jump at step 6 included."""
    base, a, v = normal(4, 3, seed=66), normal(4, seed=67), normal(3, seed=68)
    live = base.clone()
    search = Search(
        schedule=AtSteps(steps=(6, 12)),
        scales=LadderScales(scales=(2.0,)),
        direction=AlphaPLS(every=1, target=0.6),
        accept=Unconditional(),
        guard=None,
    )
    extrapolator = Extrapolator({"mlp.w": live}, no_validator, search=search)
    reached = 0.0
    for step in range(1, 7):
        live += 0.02 * torch.outer(a, v)
        extrapolator.step(step, progress=reached)
        reached += 0.02
    torch.testing.assert_close(live, base + 0.6 * torch.outer(a, v))
    at_six = extrapolator.state_dict()["history"]["step-6/mlp.w"].squeeze()
    sign = torch.sign(at_six @ a)
    torch.testing.assert_close(sign * at_six, 0.6 * v.norm() * a)
    extrapolator.step(7, progress=0.6)
    assert extrapolator.state_dict()["recorded"]["progress"][-1] == [6, 0.6]


# Mistakes -----------------------------------------------------------------------------------------


def some_extrapolator() -> Extrapolator:
    return Extrapolator({"mlp.w": torch.ones(3, 2)}, no_validator, search=Search.alphaopd())


def test_progress_has_to_be_given_from_the_first_step_on() -> None:
    extrapolator = some_extrapolator()
    with pytest.raises(ConfigError, match=r"step\(step, progress=p\)"):
        extrapolator.step(1)
    extrapolator.step(1, progress=0.0)
    extrapolator.step(2)  # one that is missing is one observation fewer
    extrapolator.step(3, progress=0.2)
    assert extrapolator.state_dict()["recorded"]["progress"] == [[0, 0.0], [2, 0.2]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_progress_is_finite(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="progress must be a finite number"):
        some_extrapolator().step(1, progress=bad)


def test_weights_that_are_not_finite_are_no_snapshot() -> None:
    live = torch.ones(3, 2)
    extrapolator = Extrapolator({"mlp.w": live}, no_validator, search=Search.alphaopd())
    extrapolator.step(1, progress=0.0)
    live[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"mlp\.w is not finite"):
        extrapolator.step(2, progress=0.1)


def test_a_selection_without_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is none among"):
        Extrapolator({"mlp.bias": torch.ones(3)}, no_validator, search=Search.alphaopd())


def test_a_base_that_does_not_fit_is_refused() -> None:
    extrapolator = some_extrapolator()
    state = extrapolator.state_dict()
    state["history"] = {"base/mlp.w": torch.ones(2, 2)}
    with pytest.raises(ParameterMismatchError, match=r"base/mlp\.w: expected \(3, 2\)"):
        extrapolator.load_state_dict(state)
