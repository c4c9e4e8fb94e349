"""Children forked from the warm test process: they train, are killed, and report by exit status."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

FAILED = 99
"""Exit status of a child whose body raised."""


def fork(body: Callable[[], int | None], output: Path | None = None) -> int:
    """Runs `body` in a child and returns its process id; the body's value is the exit status.

    Args:
        body: Runs in the child; its return value (None is 0) or `SystemExit` is the exit status.
        output: File that receives the child's standard output and error.
    """
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # idle threads of a library
        child = os.fork()
    if child:
        return child
    status = FAILED
    try:
        if output is not None:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        status = body() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> int:
    """Exit status of a child; minus the signal that killed it. It is killed if the test ends."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def run(body: Callable[[], int | None], output: Path | None = None) -> int:
    """Forks and waits."""
    return wait(fork(body, output))


def kill_me() -> None:
    """SIGKILL to the calling process: no handler, no `finally`, no buffered write survives it."""
    os.kill(os.getpid(), signal.SIGKILL)


class EventCounter:
    """Counts Python calls and returns inside some functions, and may kill the process at one.

    Args:
        kill_at: Number of the event at which to die; 0 never.
    """

    def __init__(self, kill_at: int = 0) -> None:
        self._kill_at = kill_at
        self.count = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """The profile function, see `sys.setprofile`."""
        self.count += 1
        if self.count == self._kill_at:
            kill_me()

    def watch(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        """Counts inside `owner.name` from now on."""
        real = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            sys.setprofile(self)
            try:
                return real(*arguments, **keywords)
            finally:
                sys.setprofile(None)

        patch.setattr(owner, name, watched)
