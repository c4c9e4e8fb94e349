import pytest

from effopd.errors import ConfigError
from effopd.search.direction import Averaged, SinceAccepted, SinceBase, SinceRaw


@pytest.mark.parametrize("accepted", [1.0, 3.0, 11.0, 0.5])
def test_anchor_is_the_accepted_point_the_raw_tip_or_the_base(accepted: float) -> None:
    assert SinceAccepted().anchor_scale(accepted) == accepted
    assert SinceRaw().anchor_scale(accepted) == 1.0
    assert SinceBase().anchor_scale(accepted) == 0.0
    assert Averaged().anchor_scale(accepted) == accepted


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_beta_is_a_weight_below_one(beta: float) -> None:
    with pytest.raises(ConfigError, match=r"beta must be in \[0, 1\)"):
        Averaged(beta=beta)
