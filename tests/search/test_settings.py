"""Settings that contradict each other, and the published ones."""

import pytest

from effopd import (
    AlphaPLS,
    AtLeast,
    AtSteps,
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
