"""One job: a fresh process reads its request, shuts itself in, runs the program, and ends.

A program starts and ends as CPython has it for a script, with one difference: integers of any
length can be printed and read, as in PyPy and in LiveCodeBench's grader.
"""

import _io
import atexit
import contextlib
import gc
import itertools
import json
import os
import resource
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import kernel, values

RESULT, REQUEST = 3, 4
"""Descriptors beyond the three of the program.

To the first `SHUT_IN` is written before the program runs, then a line for each value that its
function returns; the second is a file with the request.
"""
SHUT_IN = b"+"
OUT_OF_MEMORY = 86
"""Exit status of a program that ran out of memory and was told so by an exception."""
_FLUSH_FAILED = 120
"""Exit status of CPython when standard output cannot be written at the end."""
_STACK_BYTES = 64 * 1024**2
_MAX_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What shuts a job in; made once by the server."""

    ruleset: int | None  # descriptor of a Landlock ruleset; None without
    instructions: bytes  # of the seccomp filter; b"" without
    threads: int  # RLIMIT_NPROC; 0 for none
    watched_threads: int  # most that the server lets a job have; 0 where the kernel counts them
    base_bytes: int  # address space of the server, which a job starts with


def run_and_exit(numbers: dict[str, Any], bounds: Bounds, server: int) -> None:
    """Runs a program in this process, which is a fresh child of the server, and ends it.

    Descriptors 0 to 2 are those of the program. The file with the request begins with the length
    of a header of JSON `[entry point, bytes of the source, bytes of the arguments of each call]`;
    the header, the source and the arguments follow.
    """
    leave = os._exit
    status = 1
    try:
        length = int.from_bytes(_part(0, 8), "big")
        entry_point, source_bytes, lengths = json.loads(_part(8, length))
        source = _part(8 + length, source_bytes)
        starts = itertools.accumulate(lengths, initial=8 + length + source_bytes)
        arguments = list(zip(starts, lengths))  # noqa: B905 - (offset, length) of each
        _shut_in(numbers["cpu_limit_s"], numbers["memory_bytes"], bounds, server)
        os.write(RESULT, SHUT_IN)
        os.closerange(REQUEST + 1 if entry_point else RESULT, 4096)
        _open_streams()
        status = _run(source, entry_point, arguments[numbers["first"] :])
    except MemoryError:
        status = OUT_OF_MEMORY
    finally:
        leave(status)


def _part(offset: int, length: int) -> bytes:
    part = bytearray()
    while len(part) < length:
        chunk = os.pread(REQUEST, length - len(part), offset + len(part))
        if not chunk:
            raise EOFError("a request is cut off")
        part += chunk
    return bytes(part)


def _shut_in(cpu_s: int, memory_bytes: int, bounds: Bounds, server: int) -> None:
    kernel.die_with_parent(server, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    if bounds.ruleset is not None:
        kernel.landlock_restrict(bounds.ruleset)
    for name, most in [("CORE", 0), ("FSIZE", 0), ("NOFILE", _MAX_FILES)]:
        _limit(name, most)
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)  # programs may raise it: memory is capped
    soft = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # SIGXCPU, then SIGKILL
    _limit("AS", bounds.base_bytes + memory_bytes)
    for name in ("MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE"):
        _limit(name, 0)
    if bounds.threads:
        _limit("NPROC", bounds.threads)
    if bounds.instructions:
        kernel.seccomp(bounds.instructions)


def _limit(name: str, most: int) -> None:
    """Lowers a limit for good; one that is lower already stays."""
    which = getattr(resource, f"RLIMIT_{name}")
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _run(source: bytes, entry_point: str, arguments: list[tuple[int, int]]) -> int:
    """The exit status of a script, or of calls whose values are written to RESULT as they come."""
    with _Ending() as ending:
        code = compile(source, "program.py", "exec", dont_inherit=True)
        if not entry_point:
            exec(code, _main_module().__dict__)
        for offset, length in arguments:
            # a module that is made anew, and so is what the program keeps in globals
            module = _main_module()
            exec(code, module.__dict__)
            if entry_point in module.__dict__:
                function = module.__dict__[entry_point]
            elif "Solution" in module.__dict__:
                function = getattr(module.__dict__["Solution"](), entry_point)
            else:
                raise NameError(f"the program defines no {entry_point!r}")
            text = values.dump(function(*values.load(_part(offset, length)))) + b"\n"
            while text:
                text = text[os.write(RESULT, text) :]
            module.__dict__.clear()  # functions and their globals hold each other
        if entry_point:
            return 0
    return _end(ending.status)


def _main_module() -> types.ModuleType:
    module = types.ModuleType("__main__")
    module.__file__ = "program.py"
    sys.modules["__main__"] = module
    return module


# What CPython does at the start and at the end ----------------------------------------------------


class _Ending:
    """Turns whatever is raised within it into an exit status, as CPython does."""

    status = 0

    def __enter__(self) -> "_Ending":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, SystemExit):
            self.status = 1
            if error.code is None or isinstance(error.code, int):
                self.status = int(error.code or 0) & 0xFF
            else:
                _complain(f"{error.code}\n")
        elif error is not None:
            self.status = OUT_OF_MEMORY if isinstance(error, MemoryError) else 1
            _complain("".join(traceback.format_exception(error, limit=-20)))
        return True


def _complain(text: str) -> None:
    """Writes to standard error, whatever a program made of `sys.stderr`."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _open_streams() -> None:
    """Opens the standard streams over descriptors 0 to 2, and lifts the limit on digits."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = open(  # noqa: SIM115 - it stays open
            descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False,
            errors="backslashreplace" if name == "stderr" else "surrogateescape",
        )  # fmt: skip
        stream.buffer.raw.name = f"<{name}>"
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["program.py"]
    sys.set_int_max_str_digits(0)


def _end(status: int) -> int:
    """The exit status of a script that came to `status`, after what the interpreter does at an end.

    Threads are waited for, exit functions run, every open file is flushed, and objects of the
    program, whose module nothing else may refer to, are destroyed. Taking the whole interpreter
    apart would do the same, and costs ten times what a short test does.
    """
    with _Ending():
        threading._shutdown()  # type: ignore[attr-defined]  # ends executors, joins threads
    atexit._run_exitfuncs()
    status = status or _flushed((sys.stdout, sys.stderr))
    with _Ending():  # there may be no memory for the list of all objects
        _flushed(each for each in gc.get_objects() if issubclass(type(each), _io._IOBase))
    sys.modules.pop("__main__", None)
    gc.collect()
    return status or _flushed((sys.stdout, sys.stderr))


def _flushed(streams: Iterable[Any]) -> int:
    """Flushes streams that are open; the status of an interpreter that could not."""
    status = 0
    for stream in streams:
        is_closed = stream is None
        with _Ending():  # a file that cannot say whether it is closed counts as open
            is_closed = is_closed or bool(getattr(stream, "closed", False))
        if not is_closed:
            with _Ending() as ending:
                stream.flush()
            if ending.status and stream is sys.stdout:
                status = _FLUSH_FAILED
    return status
