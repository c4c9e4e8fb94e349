"""The rank-1, linear continuation of a trajectory."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from tests.reference.direction_twin import relex_step
from torch import Tensor

from effopd import AtSteps, Draw, EveryN, Extrapolator, LadderScales, Relex, Search, Unconditional
from effopd.errors import ConfigError, NonFiniteError
from effopd.search import relex
from effopd.search.relex import gram, speed_weights, weighted_sum

SHAPES = {"mlp.a": (4, 3), "mlp.b": (7,), "mlp.c": ()}


def point(rng: torch.Generator, size: float = 1.0) -> dict[str, Tensor]:
    return {
        name: size * torch.randn(shape, generator=rng, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def jumps_at(*steps: int, scale: float = 2.0, keep: int = 8, every: int = 1) -> Search:
    """Takes every prediction unseen."""
    return Search(
        schedule=AtSteps(steps=steps),
        scales=LadderScales(scales=(scale,)),
        direction=Relex(keep=keep, every=every),
        accept=Unconditional(),
        guard=None,
    )


def no_validator(draw: Draw) -> float:
    raise AssertionError("nothing is to be validated")


def run(search: Search, start: Mapping[str, Tensor], updates: Sequence[Mapping[str, Tensor]]):
    """Live tensors after the updates, and copies of them after each step, step 0 first."""
    live = {name: tensor.clone() for name, tensor in start.items()}
    extrapolator = Extrapolator(live, no_validator, search=search)
    visited = [{name: tensor.clone() for name, tensor in live.items()}]
    for step, update in enumerate(updates, start=1):
        for name, tensor in live.items():
            tensor += update[name].to(tensor)
        extrapolator.step(step)
        visited.append({name: tensor.clone() for name, tensor in live.items()})
    return live, visited


# Against the whole decomposition ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_rank_one_line_equals_its_twin(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    points = {0: torch.randn(30, generator=rng, dtype=torch.float64)}
    drift = torch.randn(30, generator=rng, dtype=torch.float64)
    for step in (1, 2, 5, 6, 9):
        noise = torch.randn(30, generator=rng, dtype=torch.float64)
        points[step] = points[0] + step * drift + noise
    rows = [points[step] - points[0] for step in (1, 2, 5, 6, 9)]
    found = weighted_sum(rows, speed_weights(gram(rows), [1, 2, 5, 6, 9]))
    torch.testing.assert_close(found, relex_step(points), rtol=1e-10, atol=1e-12)


def test_pieces_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(torch.randn(5, 3, 41, generator=torch.Generator().manual_seed(1)))
    weights = torch.arange(5, dtype=torch.float64)
    whole = gram(rows), weighted_sum(rows, weights)
    flat = torch.stack(rows).double().flatten(1)
    torch.testing.assert_close(whole[0], flat @ flat.T)
    torch.testing.assert_close(whole[1].double().flatten(), weights @ flat, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(relex, "PIECE", 7)
    torch.testing.assert_close(gram(rows), whole[0], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(weighted_sum(rows, weights), whole[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_with_jumps_equals_the_twin_of_the_run_without(seed: int) -> None:
    """Jumps are taken out of the trajectory, and every jump starts at the tip."""
    rng = torch.Generator().manual_seed(seed)
    start, drift = point(rng), point(rng)
    noises = [point(rng, 0.3) for _ in range(9)]
    updates = [{n: drift[n] + noise[n] for n in drift} for noise in noises]
    live, visited = run(jumps_at(2, 5, 9, scale=4.0), start, updates)
    since = {2: 2, 5: 3, 9: 4}  # steps since the search before
    for name in SHAPES:
        trajectory = {0: start[name]}
        jumped = torch.zeros_like(start[name])
        for step, update in enumerate(updates, start=1):
            trajectory[step] = trajectory[step - 1] + update[name]
            if step in since:
                jumped += 3 * since[step] * relex_step(trajectory)
            expected = trajectory[step] + jumped
            torch.testing.assert_close(visited[step][name], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(live[name], expected, rtol=1e-9, atol=1e-9)


def test_records_as_often_as_asked_and_keeps_no_more_than_asked() -> None:
    rng = torch.Generator().manual_seed(8)
    start, updates = point(rng), [point(rng) for _ in range(15)]
    live, visited = run(jumps_at(15, keep=3, every=2), start, updates)  # 2 4 6, 4 8 12
    for name in SHAPES:
        tip = visited[14][name] + updates[14][name]
        points = {s: visited[s][name] for s in (0, 4, 8, 12)} | {15: tip}
        expected = tip + 15 * relex_step(points)
        torch.testing.assert_close(live[name], expected, rtol=1e-9, atol=1e-9)


# Closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_straight_and_steady_trajectory_is_continued_exactly(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(2)
    start = {n: t.to(dtype) for n, t in point(rng).items()}
    drift = {n: t.to(dtype) for n, t in point(rng).items()}
    search = Search.relex(at_step=6, target_step=30)
    live, _ = run(search, start, [drift] * 6)
    for name, tensor in live.items():
        expected = start[name].double() + 30 * drift[name].double()
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(tensor.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_jump_changes_neither_speed_nor_direction() -> None:
    rng = torch.Generator().manual_seed(3)
    start, drift = point(rng), point(rng)
    live, _ = run(jumps_at(2, 3, 7, scale=2.0), start, [drift] * 7)
    for name, tensor in live.items():  # 2 + 2, 1 + 1, 4 + 4
        torch.testing.assert_close(tensor, start[name] + 14 * drift[name], rtol=1e-11, atol=1e-11)


def test_the_first_step_alone_is_the_displacement_since_the_base() -> None:
    rng = torch.Generator().manual_seed(4)
    start, update = point(rng), point(rng)
    live, _ = run(jumps_at(1, scale=5.0), start, [update])
    for name, tensor in live.items():
        torch.testing.assert_close(tensor, start[name] + 5 * update[name])


def test_noise_across_the_direction_is_averaged_out() -> None:
    """Why it is a direction: closer to the drift than the last displacement."""
    rng = torch.Generator().manual_seed(5)
    start = {"mlp.a": torch.zeros(500, dtype=torch.float64)}
    drift = torch.randn(500, generator=rng, dtype=torch.float64)
    noises = torch.randn(8, 500, generator=rng, dtype=torch.float64)
    updates = [{"mlp.a": drift + noise} for noise in noises]
    live, visited = run(jumps_at(8), start, updates)
    displacement = live["mlp.a"] - visited[7]["mlp.a"] - updates[7]["mlp.a"]

    def cosine(a: Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(a, drift, dim=0))

    assert cosine(displacement) > 0.9 > 0.8 > cosine(updates[7]["mlp.a"])


def test_a_tensor_that_does_not_move_stays() -> None:
    start = {"mlp.a": torch.ones(3), "mlp.b": torch.ones(2)}
    live, _ = run(jumps_at(4), start, [{"mlp.a": torch.zeros(3), "mlp.b": torch.ones(2)}] * 4)
    assert live["mlp.a"].tolist() == [1, 1, 1]
    torch.testing.assert_close(live["mlp.b"], torch.full((2,), 9.0))


# Mistakes -----------------------------------------------------------------------------------------


def test_a_trajectory_that_is_not_finite_is_refused_at_the_tip() -> None:
    live = {"mlp.a": torch.ones(3)}
    search = Search(schedule=EveryN(n=1), direction=Relex())
    extrapolator = Extrapolator(live, no_validator, search=search)
    live["mlp.a"][1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"mlp\.a is or was not finite \(step 1\)"):
        extrapolator.step(1)
    assert live["mlp.a"].tolist() == [1, float("inf"), 1]


@pytest.mark.parametrize("bad", [{"every": 0}, {"keep": 1}], ids=str)
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="every >= 1 and keep >= 2"):
        Relex(**bad)
