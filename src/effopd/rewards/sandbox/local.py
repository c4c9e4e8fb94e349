"""Sandboxes on this machine: fork servers, each inside a boundary, that run one test at a time."""

import contextlib
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effopd.errors import ConfigError
from effopd.rewards.sandbox.inside import values
from effopd.rewards.sandbox.outcomes import Ending, outcome_of, refused
from effopd.rewards.sandbox.program import (
    MAX_INPUT_BYTES,
    MAX_SOURCE_BYTES,
    Limits,
    Outcome,
    Program,
)
from effopd.rewards.sandbox.server_process import BrokenServerError, ServerProcess, StartPlan

_TRIES = 3
_GRACE_S = 10.0
"""How much longer than a test may take its answer is waited for."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One test, as bytes."""

    header: dict[str, Any]
    source: bytes
    given: bytes
    limits: Limits


class LocalSandbox:
    """Fork servers on this machine, started when there is work for them.

    Threads may share it; at most `processes` programs run at once. A process that was forked from
    this one starts servers of its own.
    """

    def __init__(self, kind: str, plan: StartPlan, processes: int) -> None:
        self.kind = kind
        self._plan = plan
        self._places = threading.BoundedSemaphore(processes)
        self._idle: list[ServerProcess] = []
        self._finalizer = weakref.finalize(self, _end_all, self._idle)

    def run(
        self, program: Program, inputs: Sequence[bytes | list[Any]], limits: Limits
    ) -> list[Outcome]:
        """One outcome per input; see `Sandbox.run`."""
        with self._places, contextlib.ExitStack() as held:
            server: ServerProcess | None = None
            outcomes = []
            for each in inputs:
                request = _request(program, each, limits)
                if isinstance(request, Outcome):
                    outcomes.append(request)
                    continue
                outcome, server = self._try(server, request, held)
                outcomes.append(outcome)
            if server is not None:
                held.pop_all()
                self._idle.append(server)
        return outcomes

    def adopt(self, server: ServerProcess) -> None:
        """Takes over a server that was started by the same plan."""
        self._idle.append(server)

    def close(self) -> None:
        """Ends the servers; the next run starts others."""
        _end_all(self._idle)

    def _try(
        self, server: ServerProcess | None, request: _Request, held: contextlib.ExitStack
    ) -> tuple[Outcome, ServerProcess | None]:
        """An outcome, from a fresh server where the one at hand fails."""
        detail = ""
        for _ in range(_TRIES):
            if server is None:
                server = self._lease()
                held.callback(server.end)
            try:
                ending = _ask(server, request)
            except BrokenServerError as error:
                detail = str(error)
                server.end()
                server = None
                continue
            return outcome_of(ending, request.limits, bool(request.header["entry_point"])), server
        return Outcome(status="sandbox_error", detail=detail), None

    def _lease(self) -> ServerProcess:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took it
                server = self._idle.pop()
                if server.is_usable:
                    return server
                server.end()
        return ServerProcess(self._plan)


def _ask(server: ServerProcess, request: _Request) -> Ending:
    """How a test ended.

    Raises:
        BrokenServerError: The server failed, not the program.
    """
    header, stdout, result = server.ask(
        request.header,
        request.source + request.given,
        wall_s=request.limits.wall_s + _GRACE_S,
        most_bytes=2 * (request.limits.output_bytes + 2**17),
    )
    ending = Ending.read(header, stdout, result)
    if not ending.is_shut_in:
        raise BrokenServerError(f"a test could not be shut in: {ending.detail[-300:]}")
    return ending


def _request(program: Program, given: bytes | list[Any], limits: Limits) -> _Request | Outcome:
    """The bytes of a test; the outcome of a program that is no text.

    Raises:
        ConfigError: The input is not of the kind that the program takes, or is too long.
    """
    if isinstance(given, bytes) == bool(program.entry_point):
        raise ConfigError("inputs must be bytes for a script and lists of arguments for a function")
    try:
        source = program.source.encode("utf-8")
    except UnicodeEncodeError:
        return refused("the program is not Unicode text")
    if len(source) > MAX_SOURCE_BYTES:
        return refused(f"the program has more than {MAX_SOURCE_BYTES} bytes")
    encoded = given if isinstance(given, bytes) else values.dump(given)
    if len(encoded) > MAX_INPUT_BYTES:
        raise ConfigError(f"an input must have at most {MAX_INPUT_BYTES} bytes")
    header = {
        "entry_point": program.entry_point,
        "source_bytes": len(source),
        "input_bytes": len(encoded),
        "wall_s": limits.wall_s,
        "cpu_s": max(1, -(-int(limits.cpu_s * 1000) // 1000)),
        "memory_bytes": limits.memory_bytes,
        "output_bytes": limits.output_bytes,
    }
    return _Request(header=header, source=source, given=encoded, limits=limits)


def _end_all(servers: list[ServerProcess]) -> None:
    while servers:
        servers.pop().end()
