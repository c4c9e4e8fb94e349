"""One job: a fresh process reads its request, shuts itself in, runs the program, and ends."""

import json
import os
import resource
import signal
import sys
import types
from dataclasses import dataclass
from typing import Any

from . import conventions, kernel, values

RESULT, REQUEST = 3, 4
"""Descriptors beyond the three of the program.

To the first `SHUT_IN` is written before the program runs, then a line for each value that its
function returns; the second is a file with the request.
"""
SHUT_IN = b"+"
_STACK_BYTES = 64 * 1024**2
_MAX_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What shuts a job in; made once by the server.

    Attributes:
        ruleset: Descriptor of a Landlock ruleset; None without.
        instructions: Of the seccomp filter; b"" without.
        threads: RLIMIT_NPROC; 0 for none.
        watched_threads: Most that the server lets a job have; 0 where the kernel counts them.
        base_bytes: Address space of the server, which a job starts with.
    """

    ruleset: int | None
    instructions: bytes
    threads: int
    watched_threads: int
    base_bytes: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """A program and where the arguments of its calls lie in the file; none for a script."""

    source: bytes
    entry_point: str
    arguments: list[tuple[int, int]]

    @classmethod
    def read(cls, first: int) -> "Request":
        """From the file, which begins with the length of a header of JSON; calls from `first`."""
        length = int.from_bytes(_part(0, 8), "big")
        header = json.loads(_part(8, length))
        offset = 8 + length
        source = _part(offset, header["source_bytes"])
        arguments = []
        offset += len(source)
        for length in header["arguments_bytes"]:
            arguments.append((offset, length))
            offset += length
        return cls(source=source, entry_point=header["entry_point"], arguments=arguments[first:])


def _part(offset: int, length: int) -> bytes:
    part = bytearray()
    while len(part) < length:
        chunk = os.pread(REQUEST, length - len(part), offset + len(part))
        if not chunk:
            raise EOFError("a request is cut off")
        part += chunk
    return bytes(part)


def run_and_exit(numbers: dict[str, Any], bounds: Bounds, server: int) -> None:
    """Runs a program in this process, which is a fresh child of the server, and ends it.

    Descriptors 0 to 2 are those of the program.
    """
    leave = os._exit
    status = 1
    try:
        request = Request.read(numbers["first"])
        _shut_in(numbers["cpu_limit_s"], numbers["memory_bytes"], bounds, server)
        os.write(RESULT, SHUT_IN)
        os.closerange(REQUEST + 1 if request.entry_point else RESULT, 4096)
        conventions.begin()
        status = _run(request)
    except MemoryError:
        status = conventions.OUT_OF_MEMORY
    finally:
        leave(status)


def _shut_in(cpu_s: int, memory_bytes: int, bounds: Bounds, server: int) -> None:
    kernel.die_with_parent(server, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    if bounds.ruleset is not None:
        kernel.landlock_restrict(bounds.ruleset)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_FILES)
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)  # programs may raise it: memory is capped
    resource.setrlimit(resource.RLIMIT_STACK, (_stack_bytes(hard), hard))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # SIGXCPU, then SIGKILL
    _limit(resource.RLIMIT_AS, bounds.base_bytes + memory_bytes)
    for name in ("RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_RTPRIO", "RLIMIT_NICE"):
        _limit(getattr(resource, name), 0)
    if bounds.threads:
        _limit(resource.RLIMIT_NPROC, bounds.threads)
    if bounds.instructions:
        kernel.seccomp(bounds.instructions)


def _stack_bytes(hard: int) -> int:
    return _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)


def _limit(which: int, most: int) -> None:
    """Lowers a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _run(request: Request) -> int:
    with conventions.Ending() as ending:
        code = compile(request.source, "program.py", "exec", dont_inherit=True)
        if request.entry_point:
            for offset, length in request.arguments:
                _answer(code, request.entry_point, _part(offset, length))
            return 0
        exec(code, _main_module().__dict__)
    return conventions.end(ending.status)


def _main_module() -> types.ModuleType:
    module = types.ModuleType("__main__")
    module.__file__ = "program.py"
    sys.modules["__main__"] = module
    return module


def _function(module: types.ModuleType, name: str) -> Any:
    """The function to call.

    Raises:
        NameError: The program defines none.
    """
    if name in module.__dict__:
        return module.__dict__[name]
    if "Solution" in module.__dict__:
        return getattr(module.__dict__["Solution"](), name)
    raise NameError(f"the program defines no {name!r}")


def _answer(code: types.CodeType, entry_point: str, arguments: bytes) -> None:
    """One call, in a module that is made anew, and so is what the program keeps in globals."""
    module = _main_module()
    exec(code, module.__dict__)
    function = _function(module, entry_point)
    text = values.dump(function(*values.load(arguments))) + b"\n"
    while text:
        text = text[os.write(RESULT, text) :]
    module.__dict__.clear()  # functions and their globals hold each other
