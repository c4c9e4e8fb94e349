"""Jobs over a few processes that stay: each imports PyTorch once and does many jobs."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from effopd.errors import ConfigError
from effopd.training.signals import StopRequest

Settings = Mapping[str, Any]

SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What keeps the libraries of a process from starting threads of their own."""

LOOK_EVERY_S = 0.2
"""How often to look for a wish to stop, and to move the clock on display."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something for a process to do.

    Attributes:
        name: Name in messages.
        kind: "world" makes the models of a world, "cell" trains.
        settings: Settings of a run, unresolved.
        out: Run directory of a cell.
    """

    name: str
    kind: Literal["world", "cell"]
    settings: Settings
    out: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        ending: "finished", "stopped" (saved, can go on) or "failed".
        error: Why it failed.
    """

    job: Job
    ending: Literal["finished", "stopped", "failed"]
    error: str = ""


class _Process:
    """One process and the job it is doing."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._pending = b""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "effopd.comparison.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | SINGLE_THREADED,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._input, self.output = self._child.stdin, self._child.stdout

    def send(self, message: Mapping[str, Any]) -> None:
        """Writes a line; a process that is gone is noticed when it is read from."""
        with suppress(BrokenPipeError):
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come in; None once the process is gone."""
        data = os.read(self.output.fileno(), 1 << 16)
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

    def end(self, *, at_once: bool) -> int:
        """Ends the process and returns its exit status."""
        if at_once:
            self._child.kill()
        self.send({"kind": "end"})
        status = self._child.wait()
        for pipe in (self._input, self.output):
            with suppress(BrokenPipeError):
                pipe.close()
        return status


class Pool:
    """Processes that do jobs; use it as a context manager.

    Args:
        size: Most processes at a time.
        debug: Whether they print the traceback of an expected error.
        on_message: Receives (name of the job, sentence).

    Raises:
        ConfigError: `size` is below 1.
    """

    def __init__(self, size: int, *, debug: bool, on_message: Callable[[str, str], None]) -> None:
        if size < 1:
            raise ConfigError(f"at least 1 worker is needed, got {size}")
        self._size, self._debug, self._on_message = size, debug, on_message
        self._processes: list[_Process] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.end(at_once=kind is not None or process.job is not None)

    def run(
        self,
        jobs: Sequence[Job],
        stop: StopRequest,
        on_outcome: Callable[[Outcome], None],
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        """Does the jobs in order, as many at a time as there are processes.

        Args:
            jobs: What to do.
            stop: Asked several times a second; cells then finish their step and save, the making
                of a world is given up, and nothing new is started.
            on_outcome: Receives how each job that was started ended.
            on_look: Called several times a second.
        """
        waiting, told = deque(jobs), False
        while waiting or any(process.job for process in self._processes):
            on_look()
            if stop and not told:
                waiting.clear()
                self._stop()
                told = True
            self._hand_out(waiting)
            for process in self._readable():
                for outcome in self._read(process):
                    process.job = None
                    on_outcome(outcome)

    def _hand_out(self, waiting: deque[Job]) -> None:
        """Gives waiting jobs to idle processes, starting processes up to the limit."""
        while waiting:
            process = next((p for p in self._processes if p.job is None), None)
            if process is None:
                if len(self._processes) == self._size:
                    return
                process = _Process()
                self._processes.append(process)
            process.job = job = waiting.popleft()
            what = {"kind": job.kind, "settings": job.settings, "out": job.out}
            process.send(what | {"debug": self._debug})

    def _readable(self) -> list[_Process]:
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.output, selectors.EVENT_READ, process)
            return [key.data for key, _ in selector.select(LOOK_EVERY_S)]

    def _read(self, process: _Process) -> list[Outcome]:
        """How the job of a process ended, if it did."""
        messages, job = process.receive(), process.job
        if messages is None:
            self._processes.remove(process)
            status = process.end(at_once=False)
            return [] if job is None else [_died(job, status)]
        outcomes = []
        for message in messages:
            assert job is not None
            if "message" in message:
                self._on_message(job.name, message["message"])
            elif "error" in message:
                outcomes.append(Outcome(job=job, ending="failed", error=message["error"]))
            else:
                ending: Any = "finished" if message["finished"] else "stopped"
                outcomes.append(Outcome(job=job, ending=ending))
        return outcomes

    def _stop(self) -> None:
        for process in self._processes:
            if process.job is not None and process.job.kind == "world":
                process.end(at_once=True)
                self._processes = [p for p in self._processes if p is not process]
            elif process.job is not None:
                process.send({"kind": "stop"})


def _died(job: Job, status: int) -> Outcome:
    cause = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
    error = f"its process ended with {cause}, see above; memory may have run out"
    return Outcome(job=job, ending="failed", error=error)
