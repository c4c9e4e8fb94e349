"""From how a process ended to what is said of it. Nothing here trusts what it is given."""

import os
import signal
from dataclasses import dataclass
from typing import Any

from effopd.rewards.sandbox.inside.conventions import OUT_OF_MEMORY
from effopd.rewards.sandbox.inside.values import ValueRefusedError, load
from effopd.rewards.sandbox.program import Limits, Outcome, Status

_MAX_DETAIL = 2000


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the process of a test ended.

    Attributes:
        is_shut_in: Whether the boundary stood before the program ran.
        stopped: "timeout" or "output_limit" when the server ended it, else "".
        exit_status: As `waitpid` has it.
        cpu_s: Processor time it took.
        seconds: By the clock.
        detail: The end of its standard error.
        stdout: What it printed.
        result: What it wrote as its value.
    """

    is_shut_in: bool
    stopped: str
    exit_status: int
    cpu_s: float
    seconds: float
    detail: str
    stdout: bytes
    result: bytes

    @classmethod
    def read(cls, header: dict[str, Any], stdout: bytes, result: bytes) -> "Ending":
        """An ending from the reply of a server; what is missing counts as not shut in."""
        return cls(
            is_shut_in=header.get("is_shut_in") is True,
            stopped=str(header.get("stopped", "")),
            exit_status=int(header.get("exit_status", 0)),
            cpu_s=float(header.get("cpu_s", 0.0)),
            seconds=float(header.get("seconds", 0.0)),
            detail=str(header.get("detail", "")),
            stdout=stdout,
            result=result,
        )


def outcome_of(ending: Ending, limits: Limits, is_call: bool) -> Outcome:
    """The outcome of a test that ran in its boundary."""
    stdout = ending.stdout[: limits.output_bytes]
    status, detail = _status(ending, limits)
    value = None
    if status == "finished" and is_call:
        try:
            value = load(ending.result)
        except ValueRefusedError as error:
            status, detail = "runtime_error", f"no value: {error}"
    return Outcome(
        status=status,
        stdout=stdout,
        value=value,
        seconds=ending.seconds,
        detail=printable(detail),
    )


def refused(detail: str) -> Outcome:
    """The outcome of a program that cannot be run at all."""
    return Outcome(status="runtime_error", detail=printable(detail))


def _status(ending: Ending, limits: Limits) -> tuple[Status, str]:
    if ending.stopped == "timeout":
        return "timeout", f"more than {limits.wall_s:g} s"
    if ending.stopped == "output_limit":
        return "output_limit", f"more than {limits.output_bytes} bytes"
    if os.WIFSIGNALED(ending.exit_status):
        return _killed(os.WTERMSIG(ending.exit_status), ending, limits)
    code = os.WEXITSTATUS(ending.exit_status)
    if code == OUT_OF_MEMORY:
        return "memory", ending.detail
    return ("runtime_error" if code else "finished"), ending.detail


def _killed(number: int, ending: Ending, limits: Limits) -> tuple[Status, str]:
    """What a signal says: the kernel's limits end a program by SIGXCPU or SIGKILL."""
    if number == signal.SIGXCPU or (number == signal.SIGKILL and ending.cpu_s > limits.cpu_s - 0.1):
        return "timeout", f"more than {limits.cpu_s:g} s of processor time"
    if number == signal.SIGKILL:
        return "memory", "the kernel ended it"
    return "runtime_error", f"{ending.detail}\nsignal {number}"


def printable(text: str) -> str:
    """The end of a text, with a space for what a terminal might obey."""
    tail = text[-_MAX_DETAIL:]
    return "".join(c if c.isprintable() or c == "\n" else " " for c in tail).strip()
