"""The search must pay where small steps go the right way too slowly: ill-conditioned quadratics."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from effopd import Draw, Extrapolator, PowersOfTwo, Search

SIZE = 300
CURVATURE = torch.arange(1, SIZE + 1, dtype=torch.float32) ** -1.5
LONGEST = 400
DEFAULT = Search(schedule=PowersOfTwo())

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda tensors: torch.optim.SGD(tensors, lr=0.3),
    "adam": lambda tensors: torch.optim.Adam(tensors, lr=0.01),
}


def steps_to_a_tenth(optimizer: str, search: Search | None) -> int:
    """Optimizer steps until the loss is a tenth of the initial one."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.zeros(SIZE, requires_grad=True)
    target = torch.randn(SIZE, generator=rng)

    def loss() -> Tensor:
        return 0.5 * (CURVATURE * (weight - target).square()).sum()

    def validate(draw: Draw) -> float:
        return -loss().item()

    optim = OPTIMIZERS[optimizer]([weight])
    extrapolator = Extrapolator({"w": weight}, validate, search=search) if search else None
    initial = loss().item()
    for step in range(1, LONGEST + 1):
        optim.zero_grad()
        loss().backward()
        optim.step()
        if extrapolator:
            extrapolator.step(step)
        if loss().item() <= 0.1 * initial:
            return step
    raise AssertionError(f"{optimizer} did not get there in {LONGEST} steps")


@pytest.mark.parametrize("search", [DEFAULT, Search.paper(), Search.release()],
                         ids=["default", "paper", "release"])  # fmt: skip
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_reaches_a_tenth_of_the_loss_in_half_the_steps(optimizer: str, search: Search) -> None:
    plain = steps_to_a_tenth(optimizer, None)
    assert plain >= 20  # slow enough for the comparison to mean something
    assert 2 * steps_to_a_tenth(optimizer, search) <= plain


def test_default_search_goes_as_far_as_validation_allows() -> None:
    """Adam's first steps are small and well directed: scales beyond the ladder's 11 pay."""
    plain, ladder, default = (
        steps_to_a_tenth("adam", search) for search in (None, Search.release(), DEFAULT)
    )
    assert default < ladder
    assert 10 * default <= plain
