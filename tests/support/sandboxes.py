"""Sandboxes of this machine, one of each kind that works here, shared by all tests."""

import functools

import pytest

from effopd.errors import ConfigError, MissingExtraError
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rewards.sandbox.program import Kind, Limits, Outcome, Program, Sandbox, SandboxSettings

QUICK = Limits(wall_s=20.0, cpu_s=2.0, memory_bytes=256 * 1024**2, output_bytes=1024**2)
BRIEF = Limits(wall_s=1.0, cpu_s=20.0, memory_bytes=256 * 1024**2, output_bytes=1024**2)


@functools.cache
def _opened(kind: Kind) -> Sandbox | str:
    try:
        return open_sandbox(SandboxSettings(kind=kind))
    except (ConfigError, MissingExtraError) as error:
        return str(error)


def sandbox_of(kind: Kind) -> Sandbox:
    """The sandbox of a kind; skips the test where there is none, and says why."""
    found = _opened(kind)
    if isinstance(found, str):
        pytest.skip(f"no {kind} here: {found[:200]}")
    return found


def run_script(
    sandbox: Sandbox, source: str, given: bytes = b"", limits: Limits = QUICK
) -> Outcome:
    return sandbox.run(Program(source=source), [given], limits)[0]
