import pytest

from effopd.core.direction import SinceAccepted, SinceRaw


@pytest.mark.parametrize("accepted", [1.0, 3.0, 11.0, 0.5])
def test_anchor_is_the_accepted_point_or_the_raw_tip(accepted: float) -> None:
    assert SinceAccepted().anchor_scale(accepted) == accepted
    assert SinceRaw().anchor_scale(accepted) == 1.0
