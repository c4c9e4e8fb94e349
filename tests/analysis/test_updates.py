"""How far weights moved, against plain float64 arithmetic on whole models."""

import math
import weakref

import pytest
import torch
from tests.reference import analysis_twin as twin
from torch import Tensor

from effopd.analysis import updates as module
from effopd.analysis.updates import (
    PathGeometry,
    grouped,
    module_statistics,
    path_geometry,
    summed_paths,
    summed_statistics,
    update_statistics,
)
from effopd.errors import NonFiniteError
from effopd.models.layout import ModuleTensor, module_tensors
from effopd.models.updates import PairUpdate, read_module
from effopd.models.weights import MemoryWeights

SHAPES = {
    "model.embed_tokens.weight": (11, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.mlp.experts.gate_up_proj": (3, 12, 4),
    "model.layers.0.mlp.experts.down_proj": (3, 4, 6),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.1.self_attn.q_proj.weight": (4, 4),
    "model.layers.1.mlp.down_proj.weight": (4, 6),
    "model.scale": (),
}
Model = dict[str, Tensor]


def model(seed: int, size: float = 1.0) -> Model:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def moved(before: Model, seed: int, size: float = 1e-2) -> Model:
    return {name: before[name] + step for name, step in model(seed, size).items()}


def update(base: Model, tuned: Model) -> PairUpdate:
    return PairUpdate(MemoryWeights(base), MemoryWeights(tuned))


BASE = model(0)
TUNED = moved(BASE, 1)


def flat(tensors: Model, *parts: str) -> Tensor:
    """All elements of the tensors whose names hold one of the parts, in float64."""
    names = [name for name in tensors if any(part in name for part in parts)]
    assert names
    return torch.cat([tensors[name].double().flatten() for name in names])


def expected(base: Tensor, tuned: Tensor) -> dict[str, object]:
    change = (tuned - base).float().double()  # the update is read in float32
    numbers = {
        "elements": len(base),
        "frobenius_norm": change.norm().item(),
        "base_norm": base.norm().item(),
        "max_abs": change.abs().max().item(),
        "bf16_unchanged_share": twin.bf16_unchanged_share(base, tuned),
    }
    return pytest.approx(numbers, rel=1e-12)


# Statistics ---------------------------------------------------------------------------------------


def test_one_tensor_against_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    name = "model.embed_tokens.weight"
    base, tuned = BASE[name].bfloat16(), TUNED[name].bfloat16()
    found = update_statistics(tuned.float() - base.float(), base, tuned)
    change = tuned.double() - base.double()
    assert 0 < found.bf16_unchanged_share < 1
    assert found.bf16_unchanged_share == twin.bf16_unchanged_share(base, tuned)
    assert found.frobenius_norm == pytest.approx(change.norm().item(), rel=1e-12)
    assert found.base_norm == pytest.approx(base.double().norm().item(), rel=1e-12)
    assert found.max_abs == change.abs().max().item()
    assert found.relative_norm == found.frobenius_norm / found.base_norm


def test_every_place_is_measured_parts_of_tensors_too() -> None:
    found = update(BASE, TUNED)
    rows = {
        module.label: vars(module_statistics(found, module)) for module in module_tensors(SHAPES)
    }
    assert len(rows) == 6 + 3 * 3  # gate, up and down of each expert
    for name in SHAPES:
        if "experts" not in name:
            assert rows[name] == expected(*(m[name].double().flatten() for m in (BASE, TUNED)))
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    up = [m[fused][2, 6:].double().flatten() for m in (BASE, TUNED)]
    assert rows[f"{fused}[2]#up"] == expected(*up)
    down = "model.layers.0.mlp.experts.down_proj"
    assert rows[f"{down}[1]"] == expected(*(m[down][1].double().flatten() for m in (BASE, TUNED)))


@pytest.mark.parametrize(
    ("grouping", "group", "parts"),
    [
        ("whole", (), [""]),
        ("layer", (0,), ["layers.0"]),
        ("layer", (None,), ["embed", "scale"]),
        ("block", ("attention",), ["q_proj"]),
        ("block", ("mlp",), ["mlp"]),
        ("layer and block", (1, "mlp"), ["layers.1.mlp"]),
        ("projection", ("down",), ["down_proj"]),
    ],
)
def test_sums_are_those_of_the_parts_as_one_vector(
    grouping: str, group: tuple[str | int | None, ...], parts: list[str]
) -> None:
    moved = update(BASE, TUNED)
    rows = ((module, module_statistics(moved, module)) for module in module_tensors(SHAPES))
    found = grouped(rows, grouping)[group]  # type: ignore[arg-type]
    assert vars(summed_statistics(found)) == expected(flat(BASE, *parts), flat(TUNED, *parts))


def test_what_never_moved_and_a_zero_base_are_numbers() -> None:
    still = update_statistics(torch.zeros(3), torch.zeros(3), torch.zeros(3))
    assert (still.frobenius_norm, still.max_abs, still.bf16_unchanged_share) == (0, 0, 1)
    assert still.relative_norm is None


def test_statistics_refuse_what_is_wrong() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="damaged or diverged"):
            update_statistics(torch.tensor([1.0, bad]), torch.ones(2), torch.ones(2))


# Paths --------------------------------------------------------------------------------------------

POINTS = [BASE, TUNED, moved(TUNED, 2), moved(moved(TUNED, 2), 3), moved(BASE, 4)]


def paths() -> list[tuple[ModuleTensor, PathGeometry]]:
    series = [update(BASE, point) for point in POINTS[1:]]
    return [
        (module, path_geometry(read_module(each, module) for each in series))
        for module in module_tensors(SHAPES)
    ]


@pytest.mark.parametrize("parts", [[""], ["layers.0"], ["q_proj"]])
def test_paths_against_the_twin(parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 5)
    chosen = [path for module, path in paths() if any(part in module.name for part in parts)]
    found = summed_paths(chosen)
    wanted = twin.path([{"all": flat(point, *parts)} for point in POINTS])
    assert found.step_norms == pytest.approx(wanted["step_norms"], rel=1e-5)
    assert found.step_cosines == pytest.approx(wanted["cosines"], abs=1e-5)
    squares = [distance**2 for distance in wanted["displacements"]]
    assert found.displacement_squares == pytest.approx(squares, rel=1e-5)
    assert found.path_length == pytest.approx(wanted["path_length"], rel=1e-5)
    assert found.straightness == pytest.approx(wanted["straightness"], rel=1e-5)


def test_a_straight_line_is_straight_and_a_round_trip_is_not() -> None:
    line = torch.tensor([3.0, 4.0], dtype=torch.float64)
    straight = path_geometry([line, 2 * line, 4 * line])
    assert straight.step_norms == pytest.approx([5, 5, 10])
    assert straight.step_cosines == pytest.approx([1, 1])
    assert straight.path_length == pytest.approx(20)
    assert straight.straightness == pytest.approx(1)
    round_trip = path_geometry([line, 0 * line])
    assert round_trip.step_cosines == pytest.approx([-1])
    assert round_trip.straightness == 0
    corner = path_geometry([torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])])
    assert corner.step_cosines == [0.0]
    assert corner.straightness == pytest.approx(5 / 7)


def test_a_pause_has_no_direction() -> None:
    line = torch.ones(3)
    paused = path_geometry([line, line, 2 * line])
    assert paused.step_cosines == [None, None]
    still = path_geometry([0 * line, 0 * line])
    assert (still.step_cosines, still.path_length, still.straightness) == ([None], 0, None)


def test_three_displacements_are_alive_at_a_time() -> None:
    alive, most = [], 0

    def read(t: int) -> Tensor:
        nonlocal most
        tensor = torch.full((4,), float(t))
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    path_geometry(read(t) for t in range(1, 9))
    assert most == 3


def test_paths_refuse_what_is_wrong() -> None:
    with pytest.raises(NonFiniteError, match="damaged or diverged"):
        path_geometry([torch.tensor([math.inf])])
