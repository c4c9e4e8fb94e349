import pytest
from tests.support.sandboxes import sandbox_of

from effopd.rewards.sandbox.program import Sandbox


@pytest.fixture
def sandbox() -> Sandbox:
    """The sandbox of this machine."""
    return sandbox_of("landlock")
