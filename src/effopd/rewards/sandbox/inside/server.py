"""The fork server: waits inside the boundary, and has each test run in a fresh child.

A request is a line of JSON and then as many bytes as it says; so is a reply. The candidate runs in
children only, none of which can reach this process; what a reply says of how a test ended is what
the kernel told this process.
"""

import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from . import child, kernel

_NOBODY = 65534
_WARM = (
    "collections", "heapq", "bisect", "itertools", "functools", "math", "random", "re", "string",
    "decimal", "fractions", "operator", "copy", "typing", "statistics", "queue", "datetime",
    "array", "cmath", "hashlib", "threading", "json", "time", "io", "enum", "_strptime",
)  # fmt: skip
"""Imported once, so that no test has to."""
_CHUNK_BYTES = 1 << 16
_DETAIL_BYTES = 2000


def serve() -> None:
    """Answers requests on standard input until it ends."""
    configuration = json.loads(sys.stdin.buffer.readline())
    bounds = _prepare(configuration)
    _reply({"ready": True, "version": sys.version, "abi": kernel.landlock_abi()})
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        source = sys.stdin.buffer.read(request["source_bytes"])
        given = sys.stdin.buffer.read(request["input_bytes"])
        run = _start(request, source, given, bounds)
        del given
        run.watch()
        _reply(run.summary(), bytes(run.stdout), bytes(run.result[1:]))


def _prepare(configuration: dict[str, Any]) -> child.Bounds:
    """Makes this process what its children start as.

    Raises:
        OSError: The kernel has not what is needed.
    """
    kernel.die_with_parent(configuration["parent"] or os.getppid(), signal.SIGKILL)
    sys.path[:] = [path for path in sys.path if path != configuration["code"]]
    sys.path += configuration["paths"]
    for name in (*_WARM, *configuration["packages"]):
        importlib.import_module(name)
    _add_quitters()
    ruleset = None
    if configuration["is_landlocked"]:
        ruleset = _ruleset(configuration)
    if configuration["drops_user"]:
        _become_nobody()
        kernel.die_with_parent(configuration["parent"] or os.getppid(), signal.SIGKILL)
    kernel.no_new_privileges()
    kernel.keep_memory_private()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    sys.setrecursionlimit(1000)
    with open("/proc/self/statm", encoding="ascii") as statm:
        base_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    gc.freeze()  # a test looks for open files among its own objects alone
    return child.Bounds(
        ruleset=ruleset,
        instructions=bytes.fromhex(configuration["instructions"]),
        threads=configuration["threads"],
        base_bytes=base_bytes,
    )


def _ruleset(configuration: dict[str, Any]) -> int:
    """The Landlock rules of the children.

    Raises:
        OSError: There is no Landlock.
    """
    abi = kernel.landlock_abi()
    if abi < 1:
        raise OSError("the kernel has no Landlock")
    readable = [*configuration["readable"], "/dev/urandom", "/dev/zero"]
    return kernel.landlock_ruleset(abi, readable, ["/dev/null"])


def _become_nobody() -> None:
    """Gives up root; files of this interpreter stay in reach by way of the working directory."""
    os.chdir(sys.base_prefix)
    before = list(sys.path)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    for module in list(sys.modules.values()):
        if isinstance(found := module.__dict__.get("__path__"), list):
            found[:] = [_reachable(path) for path in found]
    sys.path[:] = [_reachable(path) for path in before]
    sys.path_importer_cache.clear()


def _reachable(path: str) -> str:
    """The path, or the one from here where a directory above it is closed to this user."""
    if os.path.exists(path) or not path.startswith(sys.base_prefix + "/"):
        return path
    return "/proc/self/cwd/" + path.removeprefix(sys.base_prefix + "/")


def _add_quitters() -> None:
    """`exit` and `quit`, which programs use and only `site` brings."""
    import builtins
    from _sitebuiltins import Quitter

    for name in ("exit", "quit"):
        setattr(builtins, name, Quitter(name, "Ctrl-D"))


# One test -----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Run:
    """A child under way, and what has come out of it."""

    process: int
    watched: int
    streams: dict[int, bytearray]
    most_bytes: int
    started: float
    deadline: float
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    result: bytearray = field(default_factory=bytearray)
    stopped: str = ""
    exit_status: int = 0
    cpu_s: float = 0.0
    seconds: float = 0.0

    def watch(self) -> None:
        """Reads until the child has ended or has to be ended."""
        poller = select.poll()
        for descriptor in (*self.streams, self.watched):
            poller.register(descriptor, select.POLLIN)
        poller.register(0, 0)  # tells only of the end of the one that asks
        has_ended = False
        while not has_ended and not self.stopped:
            left_ms = (self.deadline - time.monotonic()) * 1000
            events = dict(poller.poll(max(0, left_ms) + 1))
            if not events and time.monotonic() >= self.deadline:
                self.stopped = "timeout"
            if events.pop(0, 0):
                os._exit(0)  # the kernel ends the child with this process
            has_ended = self.watched in events
            for descriptor in events.keys() & self.streams.keys():
                if not self._read(descriptor):
                    poller.unregister(descriptor)
        self._end()

    def _read(self, descriptor: int) -> bool:
        """Takes what has come; False when there will be no more."""
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        kept = self.streams[descriptor]
        kept += chunk
        if len(kept) > self.most_bytes:
            self.stopped = "output_limit"
        return bool(chunk)

    def _end(self) -> None:
        self.seconds = time.monotonic() - self.started
        if self.stopped:
            signal.pidfd_send_signal(self.watched, signal.SIGKILL)
        _, self.exit_status, used = os.wait4(self.process, 0)
        self.cpu_s = used.ru_utime + used.ru_stime
        for descriptor in self.streams:  # never waits: nobody else needs to have closed it
            while not self.stopped and self._read(descriptor):
                pass
            os.close(descriptor)
        os.close(self.watched)

    def summary(self) -> dict[str, Any]:
        """How it ended, for the one that asked."""
        return {
            "is_shut_in": self.result[:1] == child.SHUT_IN,
            "stopped": self.stopped,
            "exit_status": self.exit_status,
            "cpu_s": self.cpu_s,
            "seconds": self.seconds,
            "detail": self.stderr[-_DETAIL_BYTES:].decode("utf-8", "replace"),
        }


def _start(request: dict[str, Any], source: bytes, given: bytes, bounds: child.Bounds) -> _Run:
    is_script = not request["entry_point"]
    test = child.Test(
        source=source,
        entry_point=request["entry_point"],
        arguments=b"" if is_script else given,
        cpu_s=request["cpu_s"],
        memory_bytes=request["memory_bytes"],
    )
    standard_input = _as_file(given if is_script else b"")
    pipes = [os.pipe() for _ in range(3)]
    started = time.monotonic()
    server = os.getpid()
    process = os.fork()
    if process == 0:
        _become_child(test, bounds, server, [standard_input, *(write for _, write in pipes)])
    os.close(standard_input)
    for _, write in pipes:
        os.close(write)
    buffers = [bytearray(), bytearray(), bytearray()]
    for read, _ in pipes:
        os.set_blocking(read, False)
    return _Run(
        process=process,
        watched=os.pidfd_open(process),
        streams={read: buffer for (read, _), buffer in zip(pipes, buffers, strict=True)},
        most_bytes=request["output_bytes"] + 1,
        started=started,
        deadline=started + request["wall_s"],
        stdout=buffers[0],
        stderr=buffers[1],
        result=buffers[2],
    )


def _become_child(
    test: child.Test, bounds: child.Bounds, server: int, descriptors: list[int]
) -> None:
    """Puts the descriptors where the program has them, above all that are open, then in place."""
    ruleset = bounds.ruleset
    high = [os.dup2(each, 100 + place) for place, each in enumerate(descriptors)]
    if ruleset is not None:
        ruleset = os.dup2(ruleset, 110)
    for place, each in enumerate(high):
        os.dup2(each, place)
    child.run_and_exit(
        test,
        child.Bounds(
            ruleset=ruleset,
            instructions=bounds.instructions,
            threads=bounds.threads,
            base_bytes=bounds.base_bytes,
        ),
        server,
    )


def _as_file(content: bytes) -> int:
    """A descriptor that reads these bytes: a file in memory, which nobody has to feed."""
    descriptor = os.memfd_create("stdin", os.MFD_ALLOW_SEALING)
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    import fcntl

    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _reply(header: dict[str, Any], stdout: bytes = b"", result: bytes = b"") -> None:
    header |= {"stdout_bytes": len(stdout), "result_bytes": len(result)}
    out = sys.stdout.buffer
    out.write(json.dumps(header).encode("ascii") + b"\n")
    out.write(stdout)
    out.write(result)
    out.flush()
