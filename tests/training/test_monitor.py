"""The monitor against its twin and against paths whose numbers are known."""

import math

import pytest
import torch
from tests.reference.monitor_twin import Leg, twin_inertia, twin_row
from torch import Tensor, nn

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.training import monitor as module
from effopd.training.monitor import Monitor, inertia
from effopd.training.settings import MonitorSettings

SIZE = 120


def noise(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


class Walk:
    """Live weights, a matrix and a vector, under a monitor, and everything that moved them."""

    def __init__(self, dtype: torch.dtype = torch.float32, momentum: float = 0.0, **settings):
        start = noise(0).to(dtype)
        self.live = [start[:100].clone().view(10, 10), start[100:].clone()]
        chosen = MonitorSettings(**{"every": 1, **settings})
        self.monitor = Monitor(self.live, chosen, momentum=momentum)
        self.points, self.legs, self.steps = [self.now()], list[Leg](), 0

    def now(self) -> Tensor:
        return torch.cat([tensor.double().flatten() for tensor in self.live])

    def _move(self, update: Tensor, kind: str) -> None:
        for tensor, part in zip(self.live, update.split([100, 20]), strict=True):
            tensor += part.view(tensor.shape).to(tensor.dtype)
        self.legs.append((kind, self.now()))

    def train(self, update: Tensor):
        self._move(update, "training")
        self.steps += 1
        return self.monitor.observe(self.steps)

    def jump(self, update: Tensor) -> None:
        self._move(update, "jump")
        self.monitor.on_extrapolation()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_row_is_that_of_the_twin(dtype: torch.dtype) -> None:
    """Training and jumps by turns, and a skipped update."""
    walk = Walk(dtype)
    for step in range(1, 8):
        if step in {3, 4, 6}:
            walk.jump(noise(100 + step, 0.5))
        row = walk.train(noise(step, 0.1) if step != 5 else torch.zeros(SIZE))
        for name, value in twin_row(walk.points[0], walk.legs).items():
            near = None if value is None else pytest.approx(value, rel=1e-4, abs=1e-4)
            assert row[name] == near, (step, name)


def test_a_sample_of_the_weights_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COORDINATES", 40)
    walk, whole = Walk(), Walk()
    assert len(walk.monitor.state()["base"]) == 34 + 7
    monkeypatch.undo()
    for step in range(1, 4):
        row = walk.train(torch.full((SIZE,), 0.5 * step))
    assert whole.train(torch.full((SIZE,), 3.0))["displacement"] == pytest.approx(
        row["displacement"], rel=1e-5
    )


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("before", "updates"), [(1, 1), (2, 1), (4, 4), (24, 4), (60, 30)])
def test_inertia_is_that_of_the_twin(momentum: float, before: int, updates: int) -> None:
    expected = twin_inertia(momentum, before, updates)
    assert inertia(momentum, before, updates) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("every", [1, 3])
def test_noise_is_neither_foresight_nor_its_opposite(every: int) -> None:
    """AdamW on gradients that are noise: the excess is 0 within what 120 elements can tell."""
    base = nn.Parameter(noise(0))
    optimizer = torch.optim.AdamW([base], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    monitor = Monitor([base], MonitorSettings(every=every), momentum=0.9)
    excesses = []
    for step in range(1, 40 * every + 1):
        base.grad = noise(step)
        optimizer.step()
        row = monitor.observe(step)
        if row is not None and row["step_cosine"] is not None:
            excesses.append(row["step_cosine"] - row["inertia"])
    assert len(excesses) == 39
    assert sum(excesses) / len(excesses) == pytest.approx(0, abs=0.03)


def test_momentum_alone_is_no_foresight() -> None:
    """Displacements that agree by 0.7: enough for plain descent, not under momentum 0.9."""
    first, second = (noise(seed) / noise(seed).norm() for seed in (1, 2))
    for momentum, holds in ((0.0, True), (0.9, False)):
        walk = Walk(momentum=momentum, patience=2)
        for step in range(8):
            row = walk.train(first + float(step % 2) * second)
        assert row["foresight"] is holds
        assert row["step_cosine"] == pytest.approx(0.7, abs=0.1)


def test_the_alarm_sounds_once_when_foresight_is_lost() -> None:
    walk, update = Walk(patience=2, bound=0.1), noise(1)
    rows = [walk.train(sign * update) for sign in (1, 1, 1, -1, -1, 1, -1, -1, -1, 1)]
    # cosines:                         -     1     1     -1     1     -1     -1     1    1  -1
    expected = [None, None, True, False, False, False, False, False, True, False]
    assert [row["foresight"] for row in rows] == expected
    assert [index for index, row in enumerate(rows) if row["alarms"]] == [3, 9]
    assert "from what momentum alone gives, below the bound 0.1" in rows[3]["alarms"][0]


def test_rows_come_when_they_are_due() -> None:
    walk = Walk(every=3)
    assert [walk.train(noise(1)) is not None for _ in range(7)] == [0, 0, 1, 0, 0, 1, 0]


def test_a_weight_that_is_not_finite_is_an_error_that_changes_nothing() -> None:
    walk = Walk()
    walk.train(noise(1))
    before = {name: tensor.clone() for name, tensor in walk.monitor.state().items()}
    walk.live[1][2] = math.nan
    with pytest.raises(NonFiniteError, match="the monitor follows is NaN"):
        walk.monitor.observe(2)
    after = walk.monitor.state()
    assert all(torch.equal(before[name], after[name]) for name in before | after)


@pytest.mark.parametrize("settings", [{"every": -1}, {"patience": 0}, {"bound": 3.0}])
def test_bad_settings(settings) -> None:
    with pytest.raises(ConfigError, match="patience >= 1 and a bound in"):
        MonitorSettings(**settings)


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_restored_monitor_goes_on_bit_for_bit(taken: int) -> None:
    old, new = Walk(), Walk()
    for step in range(taken):
        old.train(noise(step, 0.1))
        old.jump(noise(50 + step, 0.3))
    new.monitor.load_state(dict(old.monitor.state()))
    for ours, theirs in zip(new.live, old.live, strict=True):
        ours.copy_(theirs)
    new.steps = old.steps
    for step in range(taken, taken + 4):
        assert new.train(noise(step, 0.1)) == old.train(noise(step, 0.1))
    with pytest.raises(ParameterMismatchError, match=r"missing \['base'\]"):
        new.monitor.load_state({n: t for n, t in old.monitor.state().items() if n != "base"})
