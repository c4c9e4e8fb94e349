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
    """How the process of a job ended.

    Attributes:
        stopped: Why it had to be ended: "wall", "cpu", "threads" or "output_limit", "asked" when
            it was no longer wanted; else "".
        laps: Calls that it finished, as its server counted.
        exit_status: As `waitpid` has it.
        cpu_s: Processor time it took.
        seconds: By the clock.
        detail: The end of its standard error.
        stdout: What a script printed.
    """

    stopped: str
    laps: int
    exit_status: int
    cpu_s: float
    seconds: float
    detail: str
    stdout: bytes

    @classmethod
    def read(
        cls, reply: dict[str, Any], stopped: str, stdout: bytes, stderr: bytes
    ) -> "Ending | None":
        """An ending from the reply of a server, unless something is missing or no number."""
        try:
            return cls(
                stopped=stopped or str(reply["stopped"]),
                laps=int(reply["laps"]),
                exit_status=int(reply["exit_status"]),
                cpu_s=float(reply["cpu_s"]),
                seconds=float(reply["seconds"]),
                detail=stderr.decode("utf-8", "replace"),
                stdout=stdout,
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None


def outcome_of(ending: Ending, limits: Limits, is_call: bool) -> Outcome:
    """The outcome of a script, or of the call that was under way when a process ended."""
    status, detail = _status(ending, limits)
    if is_call and status == "finished":
        status, detail = "runtime_error", "it ended before its function returned a value"
    return Outcome(
        status=status,
        stdout=ending.stdout[: limits.output_bytes],
        seconds=ending.seconds,
        detail=printable(detail),
    )


def value_outcome(line: bytes, seconds: float) -> Outcome:
    """The outcome of a call that came to a value."""
    try:
        return Outcome(status="finished", value=load(line), seconds=seconds)
    except ValueRefusedError as error:
        return refused(f"no value: {error}")


def refused(detail: str) -> Outcome:
    """The outcome of a program that cannot be run at all."""
    return Outcome(status="runtime_error", detail=printable(detail))


def _status(ending: Ending, limits: Limits) -> tuple[Status, str]:
    if ending.stopped == "wall":
        return "timeout", f"more than {limits.wall_s:g} s"
    if ending.stopped == "cpu":
        return "timeout", f"more than {limits.cpu_s:g} s of processor time"
    if ending.stopped == "threads":
        return "runtime_error", "too many threads"
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
