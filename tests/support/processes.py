"""Children forked from the warm test process: they train, are killed, and report by exit status."""

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

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
    except BaseException:  # noqa: BLE001 (a child must never return into pytest)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int, timeout_s: float = 60.0) -> int:
    """Exit status of a child; minus the signal that killed it."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the child did not end within {timeout_s} s")


def run(body: Callable[[], int | None], output: Path | None = None) -> int:
    """Forks and waits."""
    return wait(fork(body, output))


def kill_me() -> None:
    """SIGKILL to the calling process: no handler, no `finally`, no buffered write survives it."""
    os.kill(os.getpid(), signal.SIGKILL)


class EventCounter:
    """Counts Python calls and returns inside named functions, and may kill the process at one.

    Args:
        phases: Code object to name; what it calls belongs to it, the innermost name counts.
        kill_in: Name of the phase in which to die.
        kill_at: Events inside that phase after which to die.
    """

    def __init__(
        self, phases: dict[CodeType, str], kill_in: str | None = None, kill_at: int = 0
    ) -> None:
        self._phases, self._kill_in, self._left = phases, kill_in, kill_at
        self._stack = ["outside"]
        self.counts: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """The profile function, see `sys.setprofile`."""
        if event in {"call", "return"} and frame.f_code in self._phases:
            if event == "call":
                self._stack.append(self._phases[frame.f_code])
            else:
                self._stack.pop()
        phase = self._stack[-1]
        self.counts[phase] = self.counts.get(phase, 0) + 1
        if phase == self._kill_in:
            self._left -= 1
            if self._left <= 0:
                kill_me()
