import pytest

from effopd.search.direction import SinceAccepted, SinceBase, SinceRaw


@pytest.mark.parametrize("accepted", [1.0, 3.0, 11.0, 0.5])
def test_anchor_is_the_accepted_point_the_raw_tip_or_the_base(accepted: float) -> None:
    assert SinceAccepted().anchor_scale(accepted) == accepted
    assert SinceRaw().anchor_scale(accepted) == 1.0
    assert SinceBase().anchor_scale(accepted) == 0.0
