"""The process that compares formulas: one line of JSON in, one out.

A request is the pairs `[[reference, answer], ...]`, with the relative error as a third entry of a
pair where one is allowed; the reply is `[verdict, last]`, where a true `last` says that the process
has grown and ends now. It limits itself before it reads anything: memory, processor time, no files,
no processes, no network. The kernel ends it when a request takes too long, whatever it is doing;
it ends by itself when its standard input does, so that nothing is left when its parent is gone.
"""

import json
import os
import resource
import signal
import sys
import time
from typing import Any

_MAX_REQUEST_BYTES = 64 * 1024

_REFUSED = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "webbrowser.", "pty.", "ftplib.")
_HARMLESS = {"os.listdir", "os.scandir"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def work(wall_s: float, memory_bytes: int) -> None:
    """Answers requests until there are no more, each within `wall_s` of processor and of clock."""
    # standard input and output for this protocol alone: what libraries print goes nowhere
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for number in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)  # the kernel ends the process, no handler has to run
    from effopd.rewards.mathematics.equivalence import UnreadableReferenceError, equal
    from effopd.rewards.mathematics.values import UndecidedError

    def verdict(pairs: list[list[Any]]) -> str:
        found = "wrong"
        unreadable = 0
        for pair in pairs:
            try:
                if equal(*pair):
                    return "correct"
            except MemoryError:
                return "memory"
            except UnreadableReferenceError:
                unreadable += 1  # another reading of the reference may be a formula
            except (RecursionError, UndecidedError):
                found = "error"
        return "error" if unreadable == len(pairs) else found

    # What is loaded and built on first use costs no answer its time.
    verdict([[r"\frac{1}{2}", r"x+\sqrt{2}"], [r"\int_0^1 x dx", "1"]])
    refuse_effects()
    replies.write(b'"ready"\n')
    while line := requests.readline(_MAX_REQUEST_BYTES):
        # start the clocks of this request
        signal.setitimer(signal.ITIMER_REAL, wall_s)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + wall_s) + 2, hard))
        found = verdict(json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        is_full = _peak_bytes() > memory_bytes // 2
        if is_full and found != "correct":
            found = "memory"  # an allocation that failed may have been caught on the way
        replies.write(json.dumps([found, is_full]).encode() + b"\n")
        if is_full:
            return


def refuse_effects() -> None:
    """Lets this process open nothing for writing and start or call nothing, a second defence."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            is_effect = isinstance(arguments[2], int) and bool(arguments[2] & _WRITES)
        else:
            is_effect = event.startswith(_REFUSED) and event not in _HARMLESS
        if is_effect:
            raise PermissionError(f"{event} is refused while answers are checked")

    sys.addaudithook(audit)


def _peak_bytes() -> int:
    """The most memory this program held; Linux's `getrusage` would count the parent's, too."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status", encoding="ascii") as status:
        kibibytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024


if __name__ == "__main__":
    work(wall_s=float(sys.argv[1]), memory_bytes=int(sys.argv[2]))
