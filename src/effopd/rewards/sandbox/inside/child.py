"""One test: a fresh process shuts itself in, runs the program, and ends."""

import os
import resource
import signal
import sys
import types
from dataclasses import dataclass
from typing import Any

from . import conventions, kernel, values

RESULT = 3
"""Descriptor to which `SHUT_IN` is written before the program runs, then the value it returns."""
SHUT_IN = b"+"
_STACK_BYTES = 64 * 1024**2
_MAX_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What shuts a test in; made once by the server.

    Attributes:
        ruleset: Descriptor of a Landlock ruleset; None without.
        instructions: Of the seccomp filter; b"" without.
        threads: RLIMIT_NPROC; 0 for none.
        base_bytes: Address space of the server, which a test starts with.
    """

    ruleset: int | None
    instructions: bytes
    threads: int
    base_bytes: int


@dataclass(frozen=True, kw_only=True)
class Test:
    """A program and what it may use; `arguments` are those of its function, encoded."""

    source: bytes
    entry_point: str
    arguments: bytes
    cpu_s: int
    memory_bytes: int


def run_and_exit(test: Test, bounds: Bounds, server: int) -> None:
    """Runs a test in this process, which is a fresh child of the server, and ends it.

    Descriptors 0 to 2 are those of the program, 3 that of the value it returns.
    """
    leave = os._exit
    status = 1
    try:
        _shut_in(test, bounds, server)
        conventions.begin()
        status = _run(test)
    except MemoryError:
        status = conventions.OUT_OF_MEMORY
    finally:
        leave(status)


def _shut_in(test: Test, bounds: Bounds, server: int) -> None:
    kernel.die_with_parent(server, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    if bounds.ruleset is not None:
        kernel.landlock_restrict(bounds.ruleset)
    os.closerange(RESULT + 1, 4096)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_FILES)
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)  # programs may raise it: memory is capped
    resource.setrlimit(resource.RLIMIT_STACK, (_stack_bytes(hard), hard))
    resource.setrlimit(resource.RLIMIT_CPU, (test.cpu_s, test.cpu_s + 1))  # SIGXCPU, then SIGKILL
    _limit(resource.RLIMIT_AS, bounds.base_bytes + test.memory_bytes)
    for name in ("RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_RTPRIO", "RLIMIT_NICE"):
        _limit(getattr(resource, name), 0)
    if bounds.threads:
        _limit(resource.RLIMIT_NPROC, bounds.threads)
    if bounds.instructions:
        kernel.seccomp(bounds.instructions)
    os.write(RESULT, SHUT_IN)
    if not test.entry_point:
        os.close(RESULT)


def _stack_bytes(hard: int) -> int:
    return _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)


def _limit(which: int, most: int) -> None:
    """Lowers a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _run(test: Test) -> int:
    module = types.ModuleType("__main__")
    module.__file__ = "program.py"
    sys.modules["__main__"] = module
    with conventions.Ending() as ending:
        exec(compile(test.source, "program.py", "exec", dont_inherit=True), module.__dict__)
        if test.entry_point:
            _answer(_function(module, test.entry_point), test)
    del module
    return conventions.end(ending.status)


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


def _answer(function: Any, test: Test) -> None:
    text = values.dump(function(*values.load(test.arguments)))
    while text:
        text = text[os.write(RESULT, text) :]
