"""Recorded runs of the released code and of the paper's letter, replayed."""

import pytest
import torch
from tests.reference.core_twin import (
    Point,
    Run,
    Visit,
    copied,
    paper_search,
    released_factors,
    released_search,
    replay,
)

from effopd import Draw, Extrapolator, Search, SearchResult

STEPS = 17  # searches at 1, 2, 4, 8, 16
SHAPES = {"self_attn.q_proj.weight": (3, 4), "mlp.up_proj.weight": (5,), "mlp.down_proj.bias": ()}


def recorded(seed: int) -> tuple[Point, list[Point], list[list[float]]]:
    """Start, updates and a table of scores; few distinct scores, so that ties are common."""
    rng = torch.Generator().manual_seed(seed)

    def point(size: float) -> Point:
        return {
            name: size * torch.randn(shape, generator=rng, dtype=torch.float64)
            for name, shape in SHAPES.items()
        }

    updates = [point(0.01) for _ in range(STEPS)]
    noise = torch.randint(0, 4, (5, 6), generator=rng)
    rising = torch.arange(6) * torch.randint(0, 3, (5, 1), generator=rng)
    return point(1.0), updates, ((noise + rising) / 50).tolist()


def ours(search: Search, start: Point, updates: list[Point], scores: list[list[float]]) -> Run:
    """The same run through the extrapolator, scored from the table."""
    run = Run(live=copied(start), anchor={})
    table: list[float] = []
    seen: list[Point] = []

    def validate(draw: Draw) -> float:
        seen.append(copied(run.live))
        return table[len(seen) - 1]

    extrapolator = Extrapolator(run.live, validate, search=search)
    for number, update in enumerate(updates, start=1):
        for name, tensor in run.live.items():
            tensor += update[name]
        table, seen = scores[min(len(run.visits), len(scores) - 1)], []
        result = extrapolator.step(number)
        if result is not None:
            run.visits.append(visited(result, seen))
    run.anchor = extrapolator.state_dict()["anchor"]
    return run


def visited(result: SearchResult, seen: list[Point]) -> list[Visit]:
    return [
        Visit(point, trial.score.value if trial.score else float("nan"), trial.accepted)
        for point, trial in zip(seen, result.trials, strict=True)
    ]


def assert_close(found: Point, expected: Point) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("search", "twin"),
    [(Search.release(), released_search), (Search.paper(), paper_search)],
    ids=["release", "paper"],
)
def test_visits_the_same_points_with_the_same_decisions(search: Search, twin, seed: int) -> None:
    start, updates, scores = recorded(seed)
    expected, found = replay(twin, start, updates, scores), ours(search, start, updates, scores)
    assert len(expected.visits) == 5
    for theirs, here in zip(expected.visits, found.visits, strict=True):
        assert [v.accepted for v in here] == [v.accepted for v in theirs]
        assert [v.score for v in here] == [v.score for v in theirs]
        for found_visit, expected_visit in zip(here, theirs, strict=True):
            assert_close(found_visit.point, expected_visit.point)
    assert_close(found.live, expected.live)
    assert_close(found.anchor, expected.anchor)


def test_released_factors_are_the_odd_scales() -> None:
    tip, anchor = torch.tensor(3.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    scales, moving = [], tip.clone()
    for factor in released_factors():
        moving = moving + factor * (moving - anchor)
        scales.append(float((moving - anchor) / (tip - anchor)))
    assert list(Search.release().scales.scales) == pytest.approx(scales)
    assert list(released_factors()) == pytest.approx([2, 2 / 3, 2 / 5, 2 / 7, 2 / 9])
