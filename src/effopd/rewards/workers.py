"""A few long-lived processes that compare formulas, each check within a hard wall.

They are started with `subprocess`: a fork would copy the trainer's address space, which the limit
on memory counts, and multiprocessing's spawn would run the user's script once more in each.
"""

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from effopd.errors import ConfigError
from effopd.rewards.mathematics.decide import VERDICTS, Pairs, Verdict

_START_S = 120.0
_GRACE_S = 0.5
_MAX_REPLY_BYTES = 4096
_CLOCKS = {-signal.SIGALRM, -signal.SIGXCPU}
"""Exit statuses of a worker that its own clock or its processor limit ended."""
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "LANG")
_FIXED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""SymPy's order of terms must not depend on the process."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How answers are compared."""

    processes: int = 2  # each takes about 100 MB
    wall_s: float = 2.0  # seconds that one check may take
    memory_bytes: int = 1024**3  # address space of a process

    def __post_init__(self) -> None:
        for name, least, most in (
            ("processes", 1, 1024), ("wall_s", 1e-3, 3600), ("memory_bytes", 2**28, 2**40),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must be {least} to {most}, got {getattr(self, name)}")


class WorkerPool:
    """Worker processes, started when the first check needs them; threads may share a pool."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._places = threading.BoundedSemaphore(settings.processes)
        self._owner = os.getpid()
        self._idle: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _end_all, self._idle, self._owner)

    def verdicts(self, checks: Sequence[Pairs]) -> list[Verdict]:
        """One verdict per check, correct if a pair is equal; tried again if its process dies."""
        if self._owner != os.getpid():  # leave the workers of the parent to it
            self._finalizer.detach()
            self.__init__(self.settings)  # type: ignore[misc]
        if not checks:
            return []
        with ThreadPoolExecutor(min(self.settings.processes, len(checks))) as threads:
            return list(threads.map(self._verdict, checks))

    def close(self) -> None:
        """Ends the processes; the next check starts others."""
        _end_all(self._idle, self._owner)

    def _verdict(self, pairs: Pairs) -> Verdict:
        request = json.dumps(pairs, ensure_ascii=False).encode() + b"\n"
        with self._places:
            for _ in range(2):
                worker = self._lease()
                try:
                    reply = worker.ask(request, self.settings.wall_s + _GRACE_S)
                    verdict, is_last = json.loads(reply) if reply else (None, True)
                except TimeoutError:
                    worker.end()
                    return "timeout"
                except (ValueError, TypeError, RecursionError):
                    verdict, is_last = "error", True
                except BaseException:
                    worker.end()
                    raise
                if not is_last:
                    self._idle.append(worker)
                elif worker.end() in _CLOCKS:
                    return "timeout"
                if verdict is not None:
                    return next((known for known in VERDICTS if known == verdict), "error")
        return "error"

    def _lease(self) -> "_Worker":
        """An idle worker that lives, else a new one that has said that it is ready."""
        with contextlib.suppress(IndexError):
            while True:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                worker.end()
        worker = _Worker(self.settings)
        try:
            is_ready = worker.ask(b"", _START_S) == b'"ready"\n'
        except TimeoutError:
            is_ready = False
        if not is_ready:
            raise ConfigError(
                f"a process that compares answers did not start within {_START_S:.0f} s (exit "
                f"status {worker.end()}); `{shlex.join(_command(self.settings))}` shows why"
            )
        return worker


class _Worker:
    """One process, which answers a line by a line."""

    def __init__(self, settings: WorkerSettings) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self.process = subprocess.Popen(
            _command(settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment | _FIXED, bufsize=0,
            start_new_session=True,  # Ctrl-C is for the run; workers end with it
        )  # fmt: skip

    def ask(self, request: bytes, wait_s: float) -> bytes:
        """The line of a reply; b"" when the process has ended. Raises TimeoutError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        deadline, reply = time.monotonic() + wait_s, b""
        with contextlib.suppress(BrokenPipeError):  # it has died meanwhile, and says nothing
            self.process.stdin.write(request)
        while not reply.endswith(b"\n") and len(reply) <= _MAX_REPLY_BYTES:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left_s)[0]:
                raise TimeoutError
            chunk = os.read(self.process.stdout.fileno(), _MAX_REPLY_BYTES)
            if not chunk:
                return b""
            reply += chunk
        return reply

    def end(self) -> int:
        """Its exit status; it is killed unless it ends by itself, as one that closed its output."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            if select.select([self.process.stdout], [], [], 0)[0]:
                self.process.wait(_GRACE_S)
        self.process.kill()
        status = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        return status


def _command(settings: WorkerSettings) -> list[str]:
    limits = str(settings.wall_s), str(settings.memory_bytes)
    return [sys.executable, "-P", "-m", "effopd.rewards.worker", *limits]


def _end_all(workers: list[_Worker], owner: int) -> None:
    """Ends the workers that this process started."""
    while workers and os.getpid() == owner:
        workers.pop().end()
