"""Settings that contradict each other, and the published ones."""

import pytest
import torch

from effopd import (
    AlphaPLS,
    AtLeast,
    AtSteps,
    Draw,
    Extrapolator,
    GeometricScales,
    LadderScales,
    LengthGuard,
    Search,
    SinceBase,
    Unconditional,
)
from effopd.errors import ConfigError

ONE_SCALE = LadderScales(scales=(2.0,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": LadderScales()}, "exactly one scale"),
        ({"scales": LadderScales(scales=(2.0, 4.0))}, "exactly one scale"),
        ({"scales": GeometricScales(cap=2.0)}, "exactly one scale"),
        ({"guard": LengthGuard()}, "set guard to None"),
    ],
)
def test_an_unconditional_jump_has_one_scale_and_compares_nothing(
    settings: dict[str, object], message: str
) -> None:
    plain = {"accept": Unconditional(), "scales": ONE_SCALE, "guard": None}
    Search(**plain)
    with pytest.raises(ConfigError, match=message):
        Search(**{**plain, **settings})
    Search(**{**plain, **settings, "accept": AtLeast()})


def test_a_validator_is_never_called_for_an_unconditional_jump() -> None:
    def validate(draw: Draw) -> float:
        raise AssertionError("asked")

    weight = torch.zeros(3)
    extrapolator = Extrapolator({"w": weight}, validate, search=Search.expo(at_step=2))
    for step in (1, 2):
        weight += 1.0
        result = extrapolator.step(step)
    assert result is not None
    assert (result.accepted_scale, result.tokens) == (1.5, 0)
    assert weight.tolist() == [3.0] * 3  # 1.5 * 2
    assert extrapolator.state_dict()["anchor"]["w"].tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("search", "direction", "at_step", "scale", "parameters"),
    [
        (Search.expo(), SinceBase(), 16, 1.5, "all"),
        (Search.expo(at_step=9, alpha=0.25), SinceBase(), 9, 1.25, "all"),
        (Search.alphaopd(), AlphaPLS(), 16, 2.0, "matrices"),
    ],
)
def test_accelerators_jump_once_unseen(
    search: Search, direction: object, at_step: int, scale: float, parameters: str
) -> None:
    assert (search.schedule, search.direction) == (AtSteps(steps=(at_step,)), direction)
    assert (search.scales, search.accept) == (LadderScales(scales=(scale,)), Unconditional())
    assert (search.guard, search.parameters) == (None, parameters)


def test_published_defaults() -> None:
    assert (AlphaPLS().rank, AlphaPLS().target, AlphaPLS().every) == (1, 1.0, 2)
    assert (AlphaPLS().min_r2, AlphaPLS().min_snapshots) == (0.5, 4)
