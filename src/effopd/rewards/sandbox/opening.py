"""Opens the sandbox that the settings name, or says why there is none."""

from effopd.errors import ConfigError
from effopd.rewards.sandbox.program import Sandbox
from effopd.rewards.sandbox.settings import SandboxSettings


def open_sandbox(settings: SandboxSettings) -> Sandbox:
    """A sandbox that has shown that it works.

    Raises:
        ConfigError: It does not work on this machine; the message says what to do.
    """
    raise ConfigError(f"no sandbox of kind {settings.kind!r} works on this machine")
