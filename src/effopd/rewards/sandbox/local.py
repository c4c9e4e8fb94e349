"""The sandbox of this machine: fork servers behind the boundary, one job at a time each."""

import contextlib
import json
import math
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from effopd.errors import ConfigError
from effopd.rewards.sandbox.inside import values
from effopd.rewards.sandbox.program import (
    MAX_INPUT_BYTES,
    MAX_SOURCE_BYTES,
    MIXED_INPUTS,
    GoesOn,
    Limits,
    Outcome,
    Program,
    printable,
)
from effopd.rewards.sandbox.server_process import (
    BrokenServerError,
    Job,
    ServerProcess,
    file_of,
)

_TRIES = 3


class LocalSandbox:
    """Fork servers on this machine, started when needed; threads share them, forks start others."""

    def __init__(
        self, kind: str, processes: int, configuration: dict[str, Any], first: ServerProcess
    ) -> None:
        self.kind, self._configuration = kind, configuration
        self._places = threading.BoundedSemaphore(processes)
        self._idle = [first]  # others have the same configuration
        self._finalizer = weakref.finalize(self, _end_all, self._idle)

    def run(
        self,
        program: Program,
        inputs: Sequence[bytes | list[Any]],
        limits: Limits,
        goes_on: GoesOn | None = None,
    ) -> list[Outcome]:
        """One outcome per input; see `Sandbox.run`."""
        run = _Run(program, inputs, limits, goes_on)
        with self._places, file_of(run.request) as request, contextlib.ExitStack() as held:
            server: ServerProcess | None = None
            failures = 0
            while not run.is_over:
                try:
                    if server is None:
                        server = self._lease()
                        held.callback(server.end)
                    run.advance(server, request)
                    failures = 0
                except BrokenServerError as error:
                    if server is not None:
                        server.end()
                    server, failures = None, failures + 1
                    if failures == _TRIES:
                        run.add(Outcome(status="sandbox_error", detail=str(error)))
                        failures = 0
            if server is not None:
                held.pop_all()
                self._idle.append(server)
        return run.outcomes

    def close(self) -> None:
        """Ends the servers; the next run starts others."""
        _end_all(self._idle)

    def _lease(self) -> ServerProcess:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took it
                server = self._idle.pop()
                if server.is_usable:
                    return server
                server.end()
        return ServerProcess(self._configuration)


class _Run:
    """A program on its inputs: a script has a child an input; calls share one, but fail alone."""

    def __init__(
        self,
        program: Program,
        inputs: Sequence[bytes | list[Any]],
        limits: Limits,
        goes_on: GoesOn | None,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.request = b""
        self._inputs, self._limits, self._goes_on = inputs, limits, goes_on
        self._is_wanted, is_script = True, not program.entry_point
        if any(isinstance(each, bytes) != is_script for each in inputs):
            raise ConfigError(MIXED_INPUTS)
        arguments = [] if is_script else [values.dump(each) for each in inputs]
        if any(len(each) > MAX_INPUT_BYTES for each in (arguments or inputs)):
            raise ConfigError(f"an input must have at most {MAX_INPUT_BYTES} bytes")
        source = program.source.encode("utf-8", "replace")
        if len(source) > MAX_SOURCE_BYTES or source != program.source.encode("utf-8", "ignore"):
            refusal = f"the program has more than {MAX_SOURCE_BYTES} bytes, or is not Unicode text"
            while not self.is_over:
                self.add(Outcome(status="runtime_error", detail=refusal))
        lengths = [len(each) for each in arguments]
        header = json.dumps([program.entry_point, len(source), lengths]).encode("ascii")
        self.request = b"".join([len(header).to_bytes(8, "big"), header, source, *arguments])

    @property
    def is_over(self) -> bool:
        return not self._is_wanted or len(self.outcomes) == len(self._inputs)

    def add(self, outcome: Outcome) -> None:
        """The outcome of the next input."""
        self.outcomes.append(outcome)
        if self._goes_on is not None:
            self._is_wanted = self._goes_on(len(self.outcomes) - 1, outcome)

    def advance(self, server: ServerProcess, request: int) -> None:
        """Adds the outcome of at least one input, unless the server breaks."""
        first, limits = len(self.outcomes), self._limits
        given = self._inputs[first]
        is_script = isinstance(given, bytes)
        calls = 1 if is_script else len(self._inputs) - first
        numbers = {
            "first": len(self._inputs) - calls, "calls": calls, "wall_s": limits.wall_s,
            "cpu_s": limits.cpu_s, "cpu_limit_s": calls * math.ceil(limits.cpu_s),
            "memory_bytes": limits.memory_bytes,
        }  # fmt: skip
        began_s = time.monotonic()
        failed: Outcome | None = None

        def take(line: bytes) -> bool:
            nonlocal began_s, failed
            began_s, seconds = time.monotonic(), time.monotonic() - began_s
            try:
                self.add(Outcome(status="finished", value=values.load(line), seconds=seconds))
            except values.ValueRefusedError as error:
                failed = Outcome(status="runtime_error", detail=printable(f"no value: {error}"))
            return failed is None and not self.is_over

        with contextlib.ExitStack() as opened:
            if isinstance(given, bytes):
                file = opened.enter_context(file_of(given))
            else:
                file = opened.enter_context(open(os.devnull, "rb")).fileno()
            job = Job(
                request=request, given=file, numbers=numbers, output_bytes=limits.output_bytes,
                take=None if is_script else take,
            )  # fmt: skip
            ending = server.run(job)
        if is_script:
            self.add(ending.outcome(limits, is_call=False))
            return
        # a failure counts where no earlier call of this child can have caused it
        done = len(self.outcomes) - first
        is_certain = not done or (ending.stopped in {"wall", "cpu"} and ending.laps == done)
        if is_certain and not self.is_over:
            self.add(failed or ending.outcome(limits, is_call=True))


def _end_all(servers: list[ServerProcess]) -> None:
    while servers:
        servers.pop().end()
