"""A fork server as its user sees it: started, asked, ended."""

import contextlib
import json
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from effopd.errors import EffopdError
from effopd.rewards.sandbox.interpreter import ENVIRONMENT

_START_S = 60.0
_MAX_LINE_BYTES = 64 * 1024
_CHUNK_BYTES = 1 << 18
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


class ServerProcess:
    """One fork server. Starting it raises BrokenServerError when it does not come to work."""

    def __init__(self, plan: StartPlan) -> None:
        self._owner = os.getpid()
        self._process = _in_lasting_thread(lambda: _popen(plan))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._in, self._out):
            os.set_blocking(descriptor, False)
        self._received = bytearray()
        is_namespaced = bool(plan.command)
        configuration = plan.configuration | {"parent": 0 if is_namespaced else os.getpid()}
        try:
            self.hello, _, _ = self._exchange(configuration, b"", _START_S, 2 * _MAX_LINE_BYTES)
        except BrokenServerError as error:
            self.end()
            raise BrokenServerError(f"{error}: {self._complaint()}") from None

    @property
    def is_usable(self) -> bool:
        """Whether this process started it and it still runs."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(
        self, header: dict[str, Any], body: bytes, *, wall_s: float, most_bytes: int
    ) -> tuple[dict[str, Any], bytes, bytes]:
        """The reply to a request: what the server says, what was printed, what was returned.

        Args:
            header: The request.
            body: Bytes that follow it.
            wall_s: Seconds until the server counts as lost.
            most_bytes: Length of a reply that is read.

        Returns:
            The header of the reply and its two bodies.
        """
        return self._exchange(header, body, wall_s, most_bytes)

    def end(self) -> None:
        """Ends it and all it runs; in a forked process, does nothing to it."""
        if self._owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _complaint(self) -> str:
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        with self._process.stderr as stream:
            said = (stream.read(_MAX_LINE_BYTES) or b"").decode("utf-8", "replace").strip()
        return said.rsplit("\n", maxsplit=1)[-1][-500:]

    def _exchange(
        self, header: dict[str, Any], body: bytes, wall_s: float, most_bytes: int
    ) -> tuple[dict[str, Any], bytes, bytes]:
        deadline = time.monotonic() + wall_s
        self._send(json.dumps(header).encode("ascii") + b"\n" + body, deadline)
        reply = self._header(deadline)
        lengths = [_length(reply, name) for name in ("stdout_bytes", "result_bytes")]
        if sum(lengths) > most_bytes:
            raise BrokenServerError(f"a server announced {lengths} bytes")
        text = self._take(sum(lengths), deadline)
        return reply, text[: lengths[0]], text[lengths[0] :]

    def _send(self, message: bytes, deadline: float) -> None:
        left = memoryview(message)
        with selectors.DefaultSelector() as selector:
            selector.register(self._in, selectors.EVENT_WRITE)
            while left:
                _wait(selector, deadline)
                try:
                    left = left[os.write(self._in, left[:_CHUNK_BYTES]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    raise BrokenServerError("a server ended") from None

    def _header(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            if len(self._received) > _MAX_LINE_BYTES:
                raise BrokenServerError("a server replied with too long a line")
            self._receive(deadline)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise BrokenServerError("a server replied with something else than an object")
        return reply

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self._received) < count:
            self._receive(deadline)
        text = bytes(self._received[:count])
        del self._received[:count]
        return text

    def _receive(self, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            _wait(selector, deadline)
        chunk = os.read(self._out, _CHUNK_BYTES)
        if not chunk:
            raise BrokenServerError("a server ended")
        self._received += chunk


def _length(reply: dict[str, Any], name: str) -> int:
    length = reply.get(name)
    if not isinstance(length, int) or length < 0:
        raise BrokenServerError(f"a server announced {length!r:.50} as {name}")
    return length


def _wait(selector: selectors.BaseSelector, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0 or not selector.select(left):
        raise BrokenServerError("a server did not answer in time")


def _popen(plan: StartPlan) -> "subprocess.Popen[bytes]":
    code = plan.configuration["code"]
    options = ["-P", "-S", "-B", "-X", "utf8"]
    return subprocess.Popen(
        [*plan.command, plan.executable, *options, "-c", _BOOT, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
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
