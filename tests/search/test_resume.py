"""A run that stops after any step and starts again proposes what the whole run proposed."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.reference.core_twin import bits
from torch import Tensor

from effopd import (
    AlphaPLS,
    AtLeast,
    AtSteps,
    Draw,
    EveryN,
    Extrapolator,
    GeometricScales,
    LadderScales,
    LengthGuard,
    PowersOfTwo,
    Score,
    Search,
    SinceBase,
    SinceRaw,
    Unconditional,
)
from effopd.errors import ConfigError, ParameterMismatchError

STEPS = 20
SIZE = 24

SEARCHES = {
    "growing": Search(schedule=PowersOfTwo()),
    "paper": Search.paper(),
    "both ways": Search(
        schedule=AtSteps(steps=(2, 3, 9, 17)),
        scales=GeometricScales(cap=16.0, floor=0.25),
        direction=SinceRaw(),
        learning_rate="follow",
    ),
    "unasked": Search(
        schedule=EveryN(n=5),
        scales=LadderScales(scales=(2.0,)),
        accept=Unconditional(),
        guard=None,
    ),
    "from the base": Search(schedule=EveryN(n=3), direction=SinceBase()),
    "alpha": Search(
        schedule=EveryN(n=4),
        scales=LadderScales(scales=(1.2, 2.0)),
        direction=AlphaPLS(rank=2, every=1, min_snapshots=3, keep=7, min_r2=-1e9, target=0.9),
    ),
}


@dataclass
class Training:
    """Noisy Adam on an ill-conditioned quadratic; the noise is a function of the step alone."""

    search: Search
    dtype: torch.dtype
    steps: int = 0
    progress: float = 0.0
    log: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.live = {
            "mlp.a": torch.full((SIZE // 2,), 1.0, dtype=self.dtype),
            "mlp.b": torch.full((SIZE // 4, 2), 1.0, dtype=self.dtype),
        }
        self.optimizer = torch.optim.AdamW(list(self.live.values()), lr=0.02, weight_decay=0.0)
        self.extrapolator = Extrapolator(self.live, self.validate, search=self.search)

    def loss(self, noise: Tensor) -> Tensor:
        curvature = torch.arange(1, SIZE + 1, dtype=torch.float32) ** -1.5
        flat = torch.cat([tensor.float().reshape(-1) for tensor in self.live.values()])
        return (curvature * (flat - noise).square()).sum()

    def validate(self, draw: Draw) -> Score:
        rng = torch.Generator().manual_seed(2 * draw.step)
        value = -self.loss(0.05 * torch.randn(SIZE, generator=rng)).item()
        self.log.append([bits(tensor) for tensor in self.live.values()])
        self.log.append((draw, value))
        return Score(value=value, per_prompt=(value, value))

    def step(self) -> None:
        self.steps += 1
        rng = torch.Generator().manual_seed(1000 + self.steps)
        for tensor in self.live.values():
            tensor.requires_grad_(True)
        self.progress = 1 - self.loss(torch.zeros(SIZE)).item()
        self.optimizer.zero_grad()
        self.loss(0.3 * torch.randn(SIZE, generator=rng)).backward()
        self.optimizer.step()
        result = self.extrapolator.step(self.steps, progress=self.progress)
        if result is not None:
            self.log.append((result.step, result.accepted_scale))

    def save(self, folder: Path) -> None:
        state = self.extrapolator.state_dict()
        for key in ("anchor", "history"):
            save_file(state.pop(key), folder / f"{key}.safetensors")
        save_file({k: t.detach() for k, t in self.live.items()}, folder / "live.safetensors")
        moments = self.optimizer.state_dict()["state"]
        flat = {f"{i}/{k}": t for i, entries in moments.items() for k, t in entries.items()}
        save_file(flat, folder / "optimizer.safetensors")
        (folder / "state.json").write_text(json.dumps({"steps": self.steps, **state}))

    @classmethod
    def load(cls, folder: Path, search: Search, dtype: torch.dtype) -> "Training":
        state = json.loads((folder / "state.json").read_text())
        run = cls(search, dtype, steps=state.pop("steps"))
        live = load_file(folder / "live.safetensors")
        for name, tensor in run.live.items():
            tensor.copy_(live[name])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(folder / "optimizer.safetensors").items():
            index, entry = key.split("/")
            moments.setdefault(int(index), {})[entry] = tensor
        groups = run.optimizer.state_dict()["param_groups"]
        run.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for key in ("anchor", "history"):
            state[key] = load_file(folder / f"{key}.safetensors")
        run.extrapolator.load_state_dict(state)
        return run

    def final(self) -> list[list[int]]:
        return [bits(tensor) for tensor in self.live.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SEARCHES)
def test_resuming_after_any_step_continues_bit_for_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    search = SEARCHES[name]
    whole = Training(search, dtype)
    logged = []
    for step in range(1, STEPS + 1):
        whole.step()
        logged.append(len(whole.log))
        (tmp_path / str(step)).mkdir()
        whole.save(tmp_path / str(step))
    accepted = [entry[1] for entry in whole.log if isinstance(entry[0], int)]
    assert any(scale > 1 for scale in accepted)
    for step in range(1, STEPS + 1):
        resumed = Training.load(tmp_path / str(step), search, dtype)
        assert resumed.extrapolator.step(step) is None  # done before the stop
        while resumed.steps < STEPS:
            resumed.step()
        assert resumed.log == whole.log[logged[step - 1] :], f"resumed after step {step}"
        assert resumed.final() == whole.final(), f"resumed after step {step}"


# States that do not fit ---------------------------------------------------------------------------


def some_extrapolator(search: Search | None = None) -> Extrapolator:
    return Extrapolator({"w": torch.ones(2)}, lambda draw: 0.0, search=search)


def some_state(search: Search | None = None) -> dict[str, Any]:
    return some_extrapolator(search).state_dict()


KEYS = ["version", "last_step", "search", "past", "anchor", "history", "recorded"]


def test_state_names_what_it_holds() -> None:
    state = some_state()
    assert list(state) == KEYS
    assert (state["version"], state["last_step"]) == (4, 0)
    assert (state["past"], state["history"], state["recorded"]) == ([], {}, {})
    assert state["search"] == dataclasses.asdict(Search())
    assert json.loads(json.dumps(state["search"]))["scales"]["type"] == "geometric"
    assert state["anchor"]["w"].tolist() == [1.0, 1.0]


OTHER_SETTINGS = {
    "schedule": EveryN(n=9),
    "scales": LadderScales(),
    "direction": SinceRaw(),
    "accept": AtLeast(),
    "guard": LengthGuard(longest=3.0),
    "max_truncation": 0.1,
    "learning_rate": "follow",
    "parameters": "all",
}


def test_every_setting_is_tried() -> None:
    assert OTHER_SETTINGS.keys() == {f.name for f in dataclasses.fields(Search)}


@pytest.mark.parametrize("setting", OTHER_SETTINGS)
def test_changed_settings_are_named(setting: str) -> None:
    changed = dataclasses.replace(Search(), **{setting: OTHER_SETTINGS[setting]})
    extrapolator = some_extrapolator(changed)
    with pytest.raises(ConfigError, match=rf"changed: \['{setting}'\]"):
        extrapolator.load_state_dict(some_state())
    extrapolator.load_state_dict(some_state(changed))


@pytest.mark.parametrize("key", KEYS)
def test_missing_keys_are_named(key: str) -> None:
    state = some_state()
    del state[key]
    with pytest.raises(ParameterMismatchError, match=rf"missing \['{key}'\]"):
        some_extrapolator().load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 4: .*version 1"),
        ({"anchor": {}}, r"missing \['w'\]"),
        ({"anchor": {"w": torch.ones(2), "v": torch.ones(2)}}, r"extra \['v'\]"),
        ({"anchor": {"w": torch.ones(3)}}, r"tensor w: expected \(2,\)"),
        ({"anchor": {"w": torch.ones(2).double()}}, "tensor w: .*float64"),
        ({"history": {"w": torch.ones(2)}}, r"extra \['w'\]"),
    ],
    ids=["version", "missing", "extra", "shape", "dtype", "history"],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Mapping[str, Any], message: str) -> None:
    extrapolator = Extrapolator({"w": torch.full((2,), math.pi)}, lambda draw: 0.0)
    with pytest.raises(ParameterMismatchError, match=message):
        extrapolator.load_state_dict({**some_state(), "last_step": 8, **change})
    state = extrapolator.state_dict()
    assert state["last_step"] == 0
    assert state["anchor"]["w"].tolist() == pytest.approx([math.pi] * 2)
