"""The search must pay where small steps go the right way too slowly: ill-conditioned quadratics."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from effopd import (
    AlphaPLS,
    Draw,
    EveryN,
    Extrapolator,
    LadderScales,
    PowersOfTwo,
    Search,
    SinceAccepted,
    SinceBase,
    SinceRaw,
)
from effopd.search.direction import Direction

SIZE = 300
CURVATURE = torch.arange(1, SIZE + 1, dtype=torch.float32) ** -1.5
LONGEST = 400
DEFAULT = Search(schedule=PowersOfTwo())

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda tensors: torch.optim.SGD(tensors, lr=0.3),
    "adam": lambda tensors: torch.optim.Adam(tensors, lr=0.01),
}


def steps_to_a_tenth(optimizer: str, search: Search | None, columns: int = 1) -> int:
    """Optimizer steps until the loss is a tenth of the initial one.

    The target is a matrix of rank 1, the curvature one of its row.
    """
    rng = torch.Generator().manual_seed(0)
    weight = torch.zeros(SIZE, columns, requires_grad=True)
    target = torch.randn(SIZE, 1, generator=rng) * torch.linspace(1, 2, columns)

    def loss() -> Tensor:
        return 0.5 * (CURVATURE[:, None] * (weight - target).square()).sum()

    def validate(draw: Draw) -> float:
        return -loss().item()

    optim = OPTIMIZERS[optimizer]([weight])
    extrapolator = Extrapolator({"w": weight}, validate, search=search) if search else None
    initial = loss().item()
    for step in range(1, LONGEST + 1):
        progress = 1 - (loss().item() / initial) ** 0.5
        optim.zero_grad()
        loss().backward()
        optim.step()
        if extrapolator:
            extrapolator.step(step, progress)
        if loss().item() <= 0.1 * initial:
            return step
    raise AssertionError(f"{optimizer} did not get there in {LONGEST} steps")


@pytest.mark.parametrize(
    "search", [DEFAULT, Search.paper(), Search.release()], ids=["default", "paper", "release"]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_reaches_a_tenth_of_the_loss_in_half_the_steps(optimizer: str, search: Search) -> None:
    plain = steps_to_a_tenth(optimizer, None)
    assert plain >= 20  # slow enough for the comparison to mean something
    assert 2 * steps_to_a_tenth(optimizer, search) <= plain


@pytest.mark.parametrize(
    "direction",
    [SinceAccepted(), SinceRaw(), SinceBase(), AlphaPLS(every=1)],
    ids=lambda direction: direction.type,
)
@pytest.mark.parametrize(("optimizer", "share"), [("sgd", 0.9), ("adam", 0.5)])
def test_every_direction_saves_steps(optimizer: str, share: float, direction: Direction) -> None:
    scales = LadderScales(scales=(1.1, 1.25, 1.5, 2.0, 3.0, 4.0))
    search = Search(schedule=EveryN(n=4), scales=scales, direction=direction)
    plain = steps_to_a_tenth(optimizer, None, columns=4)
    assert steps_to_a_tenth(optimizer, search, columns=4) <= share * plain
