"""A few long-lived processes that compare formulas, each check within a hard wall.

Processes are started with `subprocess`, never forked. Each has one check at a time; a check that
outlasts the wall costs its process, which is replaced, and a verdict, which says so.
"""

import contextlib
import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effopd.errors import ConfigError
from effopd.rewards.verdicts import VERDICTS, Pairs, Verdict

_START_S = 120.0
_GRACE_S = 0.5
_MAX_REPLY_BYTES = 4096
_SMALLEST_BYTES = 256 * 1024**2
_CLOCKS = {-signal.SIGALRM, -signal.SIGXCPU}
"""Exit statuses of a worker that its own clock or its processor limit ended."""
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "LANG")
_FIXED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""SymPy's order of terms must not depend on the process."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How answers are compared.

    Attributes:
        processes: Worker processes; each takes about 100 MB.
        wall_s: Seconds one check may take.
        memory_bytes: Address space of a worker.
    """

    processes: int = 2
    wall_s: float = 2.0
    memory_bytes: int = 1024**3

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"processes must be at least 1, got {self.processes}")
        if not 0 < self.wall_s <= 3600:
            raise ConfigError(f"wall_s must be in (0, 3600] seconds, got {self.wall_s}")
        if self.memory_bytes < _SMALLEST_BYTES:
            raise ConfigError(
                f"memory_bytes must be at least {_SMALLEST_BYTES} (a worker needs that much to "
                f"start), got {self.memory_bytes}"
            )


@dataclass(eq=False)
class _Worker:
    """One process and what it is doing: starting, a check, or nothing."""

    process: "subprocess.Popen[bytes]"
    deadline: float
    is_ready: bool = False
    check: int | None = None
    received: bytes = b""

    @property
    def descriptor(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.check is None

    def send(self, check: int, pairs: Pairs, wall_s: float) -> None:
        """Gives it a check; a process that has died meanwhile is noticed by its silence."""
        assert self.process.stdin is not None
        self.check, self.deadline = check, time.monotonic() + wall_s + _GRACE_S
        request = json.dumps({"id": check, "pairs": pairs}, ensure_ascii=False).encode()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(request + b"\n")
            self.process.stdin.flush()

    def end(self) -> int:
        """Its exit status; it is killed unless it has ended by itself."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()  # does nothing to a process that has ended
        status = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        return status


class WorkerPool:
    """Worker processes, started when the first check needs them.

    Threads may share a pool; their batches take turns. A process that was forked from this one
    starts workers of its own.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._workers: list[_Worker] = []
        self._foreign: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)

    def verdicts(self, checks: Sequence[Pairs]) -> list[Verdict]:
        """One verdict per check, in order; as many checks run at once as there are processes.

        Args:
            checks: Pairs of formulas; a check is correct when one of its pairs is equal.

        Returns:
            The verdicts. A check whose process dies is tried once more before it is an "error".
        """
        with self._lock:
            self._leave_parents_workers()
            batch = _Batch(checks)
            try:
                while batch.open:
                    self._staff(batch)
                    self._hand_out(batch)
                    self._listen(batch)
            finally:  # an exception leaves no worker with a stale check
                for worker in [w for w in self._workers if w.check is not None]:
                    self._end(worker)
        return [batch.verdicts[check] for check in range(len(checks))]

    def close(self) -> None:
        """Ends the processes; the next check starts others."""
        with self._lock:
            self._leave_parents_workers()
            _end_all(self._workers, self._owner)

    def _staff(self, batch: "_Batch") -> None:
        """Replaces who has died, and starts as many processes as the batch can use."""
        for worker in [w for w in self._workers if w.is_idle and w.process.poll() is not None]:
            self._end(worker)
        while len(self._workers) < min(self.settings.processes, batch.open):
            self._workers.append(_start(self.settings))

    def _hand_out(self, batch: "_Batch") -> None:
        for worker in self._workers:
            if worker.is_idle and batch.waiting:
                check = batch.waiting.popleft()
                worker.send(check, batch.checks[check], self.settings.wall_s)

    def _listen(self, batch: "_Batch") -> None:
        """Waits for the next reply, death or deadline."""
        busy = [worker for worker in self._workers if not worker.is_idle]
        first = min(worker.deadline for worker in busy)
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.descriptor, selectors.EVENT_READ, worker)
            ready = selector.select(max(0.0, first - time.monotonic()))
        for key, _ in ready:
            self._receive(key.data, batch)
        now = time.monotonic()
        for worker in [w for w in self._workers if not w.is_idle and now > w.deadline]:
            self._lose(worker, batch, "timeout")

    def _receive(self, worker: _Worker, batch: "_Batch") -> None:
        chunk = os.read(worker.descriptor, _MAX_REPLY_BYTES)
        if not chunk:
            self._lose(worker, batch, None)
            return
        worker.received += chunk
        if b"\n" not in worker.received and len(worker.received) <= _MAX_REPLY_BYTES:
            return
        reply, worker.received = _reply(worker.received), b""
        if not worker.is_ready and reply == {"ready": True}:
            worker.is_ready = True
        elif worker.check is not None and reply.get("id") == worker.check:
            batch.settle(worker.check, reply.get("verdict", "error"))
            worker.check = None
            if reply.get("last"):
                self._end(worker)
        else:
            self._lose(worker, batch, "error")

    def _lose(self, worker: _Worker, batch: "_Batch", verdict: Verdict | None) -> None:
        """Ends a worker and settles its check; None asks its exit status for the verdict.

        Raises:
            ConfigError: The worker never came to work.
        """
        status, check = self._end(worker), worker.check
        worker.check = None
        if check is None:
            raise ConfigError(
                f"a process that compares answers did not start within {_START_S:.0f} s (exit "
                f"status {status}); `{shlex.join(_command(self.settings))}` shows why"
            )
        if verdict is None and status in _CLOCKS:
            verdict = "timeout"
        if verdict is None and batch.may_retry(check):
            batch.waiting.appendleft(check)
        else:
            batch.settle(check, verdict or "error")

    def _end(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.end()

    def _leave_parents_workers(self) -> None:
        """In a forked process, forgets the workers of the parent without touching them."""
        if os.getpid() != self._owner:
            self._foreign += self._workers
            self._workers = []
            self._owner = os.getpid()
            self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)


class _Batch:
    """Checks under way."""

    def __init__(self, checks: Sequence[Pairs]) -> None:
        self.checks = checks
        self.verdicts: dict[int, Verdict] = {}
        self.waiting = deque(range(len(checks)))
        self._retried: set[int] = set()

    @property
    def open(self) -> int:
        """Checks without a verdict."""
        return len(self.checks) - len(self.verdicts)

    def may_retry(self, check: int) -> bool:
        """Whether a check has a try left; asking uses it up."""
        has_try = check not in self._retried
        self._retried.add(check)
        return has_try

    def settle(self, check: int, verdict: object) -> None:
        self.verdicts[check] = next((known for known in VERDICTS if known == verdict), "error")


def _start(settings: WorkerSettings) -> _Worker:
    process = subprocess.Popen(
        _command(settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | _FIXED,
        start_new_session=True,  # Ctrl-C is for the run; workers end with it
    )
    return _Worker(process=process, deadline=time.monotonic() + _START_S)


def _command(settings: WorkerSettings) -> list[str]:
    limits = [str(settings.wall_s), str(settings.memory_bytes)]
    return [sys.executable, "-P", "-m", "effopd.rewards.worker", *limits]


def _reply(received: bytes) -> dict[str, Any]:
    """The JSON object of a line; empty for anything else."""
    try:
        reply = json.loads(received)
    except (ValueError, RecursionError):
        return {}
    return reply if isinstance(reply, dict) else {}


def _end_all(workers: list[_Worker], owner: int) -> None:
    """Ends the workers that this process started."""
    while workers and os.getpid() == owner:
        workers.pop().end()
