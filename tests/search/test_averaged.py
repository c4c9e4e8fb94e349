"""The running average of displacements."""

import pytest
import torch
from tests.reference.direction_twin import averaged
from torch import Tensor

from effopd import Averaged, Draw, EveryN, Extrapolator, LadderScales, Search, SinceAccepted


class Climb:
    """Ten random updates, a search after every second one; accepts or rejects as told."""

    def __init__(self, search: Search, dtype: torch.dtype, verdicts: list[bool]) -> None:
        self.live = torch.ones(20, dtype=dtype)
        self.value, self.verdicts = 0.0, iter(verdicts)
        self.tips: list[Tensor] = []
        self.ends: list[Tensor] = []
        extrapolator = Extrapolator({"w": self.live}, self.validate, search=search)
        rng = torch.Generator().manual_seed(1)
        for step in range(1, 11):
            self.live += torch.randn(20, generator=rng).to(dtype)
            tip = self.live.clone()
            self.is_tip = True
            if extrapolator.step(step):
                self.tips.append(tip.double())
                self.ends.append(self.live.clone().double())
        self.extrapolator = extrapolator

    def validate(self, draw: Draw) -> float:
        if self.is_tip:
            self.is_tip = False
            return self.value
        self.value += 1 if next(self.verdicts) else -1
        return self.value


def search(direction: Averaged | SinceAccepted) -> Search:
    return Search(
        schedule=EveryN(n=2), scales=LadderScales(scales=(3.0,)), direction=direction, guard=None
    )


VERDICTS = [True, False, True, True, True]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_displacement_is_the_weighted_mean_of_all(
    beta: float, dtype: torch.dtype, tolerance: float
) -> None:
    run = Climb(search(Averaged(beta=beta)), dtype, VERDICTS)
    anchors = [torch.ones(20, dtype=torch.float64), *run.ends]
    updates = [tip - anchor for tip, anchor in zip(run.tips, anchors, strict=False)]
    for n, is_accepted in enumerate(VERDICTS):
        moved = 2 * averaged(updates[: n + 1], beta) if is_accepted else torch.zeros(1)
        torch.testing.assert_close(run.ends[n], run.tips[n] + moved, rtol=tolerance, atol=tolerance)


def test_average_follows_its_recurrence_through_the_state() -> None:
    beta = 0.7
    run = Climb(search(Averaged(beta=beta)), torch.float64, VERDICTS)
    anchors = [torch.ones(20, dtype=torch.float64), *run.ends]
    expected = torch.zeros(20, dtype=torch.float64)
    for tip, anchor in zip(run.tips, anchors, strict=False):
        expected = beta * expected + (1 - beta) * (tip - anchor)
    torch.testing.assert_close(run.extrapolator.state_dict()["history"]["average/w"], expected)


def test_without_weight_of_the_past_it_is_the_last_displacement() -> None:
    runs = [Climb(search(d), torch.float64, VERDICTS) for d in (Averaged(beta=0), SinceAccepted())]
    for one, other in zip(*(run.ends for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_average_is_kept_wider_than_bf16() -> None:
    state = Climb(search(Averaged()), torch.bfloat16, VERDICTS).extrapolator.state_dict()
    assert state["history"]["average/w"].dtype == torch.float32
    assert state["anchor"]["w"].dtype == torch.bfloat16
