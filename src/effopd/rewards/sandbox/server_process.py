"""A fork server as its user sees it: started, given jobs, ended. Its replies are not trusted."""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effopd.errors import EffopdError
from effopd.rewards.sandbox.inside.child import OUT_OF_MEMORY, SHUT_IN
from effopd.rewards.sandbox.program import Limits, Outcome, Status, printable

_START_S = 60.0
_GRACE_S = 10.0
"""How much longer than a job may take its end is waited for."""
_MAX_PACKET_BYTES = 64 * 1024
_CHUNK_BYTES = 1 << 18
_DETAIL_BYTES = 2000
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from inside.server import serve; serve()"
_CODE = str(Path(__file__).parent)
"""The directory above the package `inside`."""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "PYTHONHASHSEED": "0",  # the order of a set must not depend on the process
    "MALLOC_ARENA_MAX": "1",  # each other one takes 64 MiB of address space
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""All of it: nothing of this process's own goes inside."""


class BrokenServerError(EffopdError, OSError):
    """A server died, was silent, or spoke out of turn."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a fresh child of a server does."""

    request: int  # descriptor of the file with the program, for the child
    given: int  # descriptor of its standard input
    numbers: dict[str, Any]  # the limits of each call, and which calls
    output_bytes: int  # most that is taken of each stream, and of the value of a call
    take: Callable[[bytes], bool] | None  # takes the line of a call; False ends the job


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the process of a job ended."""

    stopped: str  # why it was ended: wall, cpu, threads, output_limit, asked (not wanted), or ""
    laps: int  # calls that it finished, as its server counted
    exit_status: int  # as `waitpid` has it
    cpu_s: float
    seconds: float
    detail: str  # the end of its standard error
    stdout: bytes  # of a script

    @classmethod
    def read(
        cls, reply: dict[str, Any], stopped: str, stdout: bytes, stderr: bytes
    ) -> "Ending | None":
        """An ending from the reply of a server, unless something is missing or no number."""
        kinds = {"stopped": str, "laps": int, "exit_status": int, "cpu_s": float, "seconds": float}
        try:
            said: dict[str, Any] = {name: kind(reply[name]) for name, kind in kinds.items()}
            os.waitstatus_to_exitcode(said["exit_status"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        said["stopped"] = stopped or said["stopped"]
        return cls(**said, detail=stderr.decode("utf-8", "replace"), stdout=stdout)

    def outcome(self, limits: Limits, *, is_call: bool) -> Outcome:
        """The outcome of a script, or of the call that was under way when the process ended."""
        over_cpu: tuple[Status, str] = ("timeout", f"more than {limits.cpu_s:g} s of processor")
        stops: dict[str, tuple[Status, str]] = {
            "wall": ("timeout", f"more than {limits.wall_s:g} s"),
            "cpu": over_cpu,
            "threads": ("runtime_error", "too many threads"),
            "output_limit": ("output_limit", f"more than {limits.output_bytes} bytes"),
        }
        status: Status = "finished"
        detail, code = self.detail, os.waitstatus_to_exitcode(self.exit_status)
        if self.stopped in stops:
            status, detail = stops[self.stopped]
        elif code == -signal.SIGXCPU or (code == -9 and self.cpu_s > limits.cpu_s - 0.1):
            status, detail = over_cpu  # the kernel's limits end it by SIGXCPU or SIGKILL
        elif code in {OUT_OF_MEMORY, -signal.SIGKILL}:
            status, detail = "memory", detail if code > 0 else "the kernel ended it"
        elif code:
            status, detail = "runtime_error", detail + (f"\nsignal {-code}" if code < 0 else "")
        elif is_call:
            status, detail = "runtime_error", "it ended before its function returned a value"
        stdout = self.stdout[: limits.output_bytes]
        return Outcome(status=status, stdout=stdout, seconds=self.seconds, detail=printable(detail))


class ServerProcess:
    """One fork server. Starting it raises BrokenServerError when it does not come to work."""

    def __init__(self, configuration: dict[str, Any], executable: str = sys.executable) -> None:
        self._owner = os.getpid()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _started(os.path.realpath(executable), theirs)
        told = configuration | {"parent": os.getpid(), "code": _CODE}
        try:
            with file_of(json.dumps(told).encode("ascii")) as file:
                self._send(b"configuration", [file])
            self.hello = self._receive(time.monotonic() + _START_S)
            if self.hello.get("ready") is not True:
                raise BrokenServerError("a server is not ready")
        except BrokenServerError as error:
            self.end()
            assert self._process.stderr is not None
            os.set_blocking(self._process.stderr.fileno(), False)
            with self._process.stderr as stream:
                said = (stream.read(_MAX_PACKET_BYTES) or b"").decode("utf-8", "replace").strip()
            raise BrokenServerError(f"{error}: {said.rpartition(chr(10))[2][-500:]}") from None

    @property
    def is_usable(self) -> bool:
        """Whether this process started it and it still runs."""
        return self._owner == os.getpid() and self._process.poll() is None

    def run(self, job: Job) -> Ending:
        """Has a fresh child do a job; raises BrokenServerError when not the program failed."""
        deadline = time.monotonic() + job.numbers["calls"] * job.numbers["wall_s"] + _GRACE_S
        with contextlib.ExitStack() as opened:
            pipes = [os.pipe() for _ in range(3)]
            for read, _ in pipes:
                opened.callback(os.close, read)
                os.set_blocking(read, False)
            theirs = [write for _, write in pipes]
            try:
                self._send(json.dumps(job.numbers).encode(), [job.given, *theirs, job.request])
            finally:
                for write in theirs:
                    os.close(write)
            streams = _Streams([read for read, _ in pipes], job, self._send)
            poller, control = select.poll(), self._control.fileno()
            for descriptor in (*streams.descriptors, control):
                poller.register(descriptor, select.POLLIN)
            was_stopped, events = False, set[int]()
            while control not in events:  # the server tells of the end of the program
                if streams.stopped and not was_stopped:
                    was_stopped = True
                    self._send(b"stop", [])
                left_s = deadline - time.monotonic()
                events = {descriptor for descriptor, _ in poller.poll(max(0.0, left_s * 1000))}
                if not events:
                    raise BrokenServerError("a server did not answer in time")
                for descriptor in events - {control}:
                    if not streams.read(descriptor):
                        poller.unregister(descriptor)
            reply = self._receive(deadline)
            for read, _ in pipes:  # what is left of a program that has ended
                while streams.read(read):
                    pass
        ending = Ending.read(reply, streams.stopped, bytes(streams.stdout), bytes(streams.stderr))
        if ending is None:
            raise BrokenServerError(f"a server said of an ending {reply!r:.200}")
        if not streams.is_shut_in:
            raise BrokenServerError(f"a program could not be shut in: {ending.detail[-300:]}")
        return ending

    def end(self) -> None:
        """Ends it and all it runs; in a forked process, does nothing to it."""
        if self._owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        self._control.close()

    def _send(self, packet: bytes, descriptors: list[int]) -> None:
        self._control.settimeout(_START_S)
        try:
            socket.send_fds(self._control, [packet], descriptors)
        except OSError:
            raise BrokenServerError("a server ended") from None

    def _receive(self, deadline: float) -> dict[str, Any]:
        self._control.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            reply = json.loads(self._control.recv(_MAX_PACKET_BYTES) or b"0")
        except (OSError, ValueError, RecursionError) as error:
            raise BrokenServerError(f"a server did not answer ({error or 'in time'})") from None
        if not isinstance(reply, dict):
            raise BrokenServerError("a server ended, or replied with something else than an object")
        return reply


class _Streams:
    """What a program writes: its output, its errors, and the lines of its calls."""

    def __init__(
        self, descriptors: list[int], job: Job, tell: Callable[[bytes, list[int]], None]
    ) -> None:
        self.descriptors = descriptors
        self._tell = tell
        self.is_shut_in = False
        self.stopped = ""
        self.stdout, self.stderr, self._line = bytearray(), bytearray(), bytearray()
        self._written = dict.fromkeys(descriptors, 0)
        self._most_bytes, self._take = job.output_bytes, job.take

    def read(self, descriptor: int) -> bool:
        """Takes what has come; False when there will be no more."""
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._written[descriptor] += len(chunk)
        if self.stopped:
            return bool(chunk)
        if descriptor == self.descriptors[2]:
            self._read_lines(chunk)
        elif descriptor == self.descriptors[1]:
            self.stderr = (self.stderr + chunk)[-_DETAIL_BYTES:]
        elif self._take is None:
            self.stdout += chunk
        if self._written[descriptor] > self._most_bytes:
            self.stopped = self.stopped or "output_limit"
        return bool(chunk)

    def _read_lines(self, chunk: bytes) -> None:
        if chunk and not self.is_shut_in:
            self.is_shut_in = chunk.startswith(SHUT_IN)
            chunk = chunk[len(SHUT_IN) :]
        *ends, rest = chunk.split(b"\n")
        if ends:  # the server counts the time of the next call from here
            self._tell(b"%d" % len(ends), [])
        for end in ends:
            line, self._line = bytes(self._line + end), bytearray()
            self._written[self.descriptors[2]] = len(rest)
            if not self.stopped and not (self._take and self._take(line)):
                self.stopped = "asked"
        self._line += rest


@contextlib.contextmanager
def file_of(content: bytes) -> Iterator[int]:
    """A descriptor of a file in memory that holds these bytes, for good, and is read at 0."""
    descriptor = os.memfd_create("file", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


_spawners: dict[int, ThreadPoolExecutor] = {}
_spawners_lock = threading.Lock()


def _started(executable: str, control: socket.socket) -> "subprocess.Popen[bytes]":
    """A server, started by a thread that never ends: the kernel ends a server with its starter."""
    with _spawners_lock:
        spawner = _spawners.setdefault(os.getpid(), ThreadPoolExecutor(1, "sandbox-spawner"))

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [executable, "-P", "-S", "-B", "-X", "utf8", "-c", _BOOT, _CODE],
            stdin=control.fileno(), stdout=control.fileno(), stderr=subprocess.PIPE,
            env=_ENVIRONMENT, cwd="/", start_new_session=True,
        )  # fmt: skip

    return spawner.submit(start).result()
