"""A fork server as its user sees it: started, given jobs, ended."""

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from effopd.errors import EffopdError
from effopd.rewards.sandbox.inside.child import SHUT_IN
from effopd.rewards.sandbox.interpreter import ENVIRONMENT
from effopd.rewards.sandbox.outcomes import Ending

_START_S = 60.0
_GRACE_S = 10.0
"""How much longer than a job may take its end is waited for."""
_MAX_PACKET_BYTES = 64 * 1024
_CHUNK_BYTES = 1 << 18
_DETAIL_BYTES = 2000
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from inside.server import serve; serve()"


class BrokenServerError(EffopdError, OSError):
    """A server died, was silent, or spoke out of turn."""


@dataclass(frozen=True, kw_only=True)
class StartPlan:
    """How a server is started.

    Attributes:
        command: What stands before the interpreter; empty without namespaces.
        executable: The interpreter.
        configuration: What the server is told first.
    """

    command: tuple[str, ...]
    executable: str
    configuration: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a fresh child of a server does.

    Attributes:
        request: Descriptor of the file with the program, for the child.
        given: Descriptor of its standard input.
        numbers: What the server is told: the limits of each call, and which calls.
        output_bytes: Most that is taken of each stream, and of the value of a call.
        take: Is given the line of each call as it comes; False ends the job. None for a script,
            whose output is kept instead.
    """

    request: int
    given: int
    numbers: dict[str, Any]
    output_bytes: int
    take: Callable[[bytes], bool] | None


class ServerProcess:
    """One fork server. Starting it raises BrokenServerError when it does not come to work."""

    def __init__(self, plan: StartPlan) -> None:
        self._owner = os.getpid()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _in_lasting_thread(lambda: _popen(plan, theirs))
        parent = 0 if plan.command else os.getpid()  # in a namespace of its own it sees none
        configuration = json.dumps(plan.configuration | {"parent": parent}).encode("ascii")
        try:
            with file_of(configuration) as file:
                self._send(b"configuration", [file])
            self.hello = self._receive(time.monotonic() + _START_S)
            if self.hello.get("ready") is not True:
                raise BrokenServerError("a server is not ready")
        except BrokenServerError as error:
            self.end()
            raise BrokenServerError(f"{error}: {self._complaint()}") from None

    @property
    def is_usable(self) -> bool:
        """Whether this process started it and it still runs."""
        return self._owner == os.getpid() and self._process.poll() is None

    def run(self, job: Job) -> Ending:
        """Has a fresh child do a job.

        Raises:
            BrokenServerError: The server failed, not the program.
        """
        deadline = time.monotonic() + job.numbers["calls"] * job.numbers["wall_s"] + _GRACE_S
        with contextlib.ExitStack() as opened:
            pipes = [os.pipe() for _ in range(3)]
            for read, _ in pipes:
                opened.callback(os.close, read)
                os.set_blocking(read, False)
            laps = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
            theirs = [*(write for _, write in pipes), job.request, laps]
            try:
                self._send(json.dumps(job.numbers).encode("ascii"), [job.given, *theirs])
            finally:
                for each in (laps, *(write for _, write in pipes)):
                    os.close(each)
            streams = _Streams([read for read, _ in pipes], job)
            self._follow(streams, deadline)
            reply = self._receive(deadline)
            streams.read_rest()
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

    def _follow(self, streams: "_Streams", deadline: float) -> None:
        """Reads what a program writes until the server tells of its end."""
        poller = select.poll()
        for descriptor in (*streams.descriptors, self._control.fileno()):
            poller.register(descriptor, select.POLLIN)
        was_stopped = False
        while True:
            left_s = deadline - time.monotonic()
            events = {descriptor for descriptor, _ in poller.poll(max(0.0, left_s * 1000))}
            if not events:
                raise BrokenServerError("a server did not answer in time")
            for descriptor in events - {self._control.fileno()}:
                if not streams.read(descriptor):
                    poller.unregister(descriptor)
            if self._control.fileno() in events:
                return
            if streams.stopped and not was_stopped:
                was_stopped = True
                self._send(b"stop", [])

    def _send(self, packet: bytes, descriptors: list[int]) -> None:
        self._control.settimeout(_START_S)
        try:
            socket.send_fds(self._control, [packet], descriptors)
        except OSError:
            raise BrokenServerError("a server ended") from None

    def _receive(self, deadline: float) -> dict[str, Any]:
        self._control.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            packet = self._control.recv(_MAX_PACKET_BYTES)
        except TimeoutError:
            raise BrokenServerError("a server did not answer in time") from None
        except OSError:
            packet = b""
        if not packet:
            raise BrokenServerError("a server ended")
        try:
            reply = json.loads(packet)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise BrokenServerError("a server replied with something else than an object")
        return reply

    def _complaint(self) -> str:
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        with self._process.stderr as stream:
            said = (stream.read(_MAX_PACKET_BYTES) or b"").decode("utf-8", "replace").strip()
        return said.rsplit("\n", maxsplit=1)[-1][-500:]


class _Streams:
    """What a program writes: its output, its errors, and the lines of its calls."""

    def __init__(self, descriptors: list[int], job: Job) -> None:
        self.descriptors = descriptors
        self.is_shut_in = False
        self.stopped = ""
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._line = bytearray()
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

    def read_rest(self) -> None:
        """Takes what is left of a program that has ended; never waits."""
        for descriptor in self.descriptors:
            while self.read(descriptor):
                pass

    def _read_lines(self, chunk: bytes) -> None:
        if chunk and not self.is_shut_in:
            self.is_shut_in = chunk.startswith(SHUT_IN)
            chunk = chunk[len(SHUT_IN) :]
        *ends, rest = chunk.split(b"\n")
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


def _popen(plan: StartPlan, control: socket.socket) -> "subprocess.Popen[bytes]":
    code = plan.configuration["code"]
    options = ["-P", "-S", "-B", "-X", "utf8"]
    return subprocess.Popen(
        [*plan.command, plan.executable, *options, "-c", _BOOT, code],
        stdin=control.fileno(),
        stdout=control.fileno(),
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )


_spawners: dict[int, ThreadPoolExecutor] = {}
_spawners_lock = threading.Lock()


def _in_lasting_thread(
    start: Callable[[], "subprocess.Popen[bytes]"],
) -> "subprocess.Popen[bytes]":
    """Calls in a thread that lives as long as this process.

    The kernel ends a server with the thread that started it, so it must not be a caller's.
    """
    with _spawners_lock:
        spawner = _spawners.setdefault(os.getpid(), ThreadPoolExecutor(1, "sandbox-spawner"))
    return spawner.submit(start).result()
