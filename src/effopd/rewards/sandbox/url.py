"""A sandbox behind a URL: SandboxFusion's `/run_code`, or a server that speaks the same.

The boundary is the server's. What it answers is read with caps; whatever it does wrong is a
"sandbox_error" after a few tries, never a verdict on a program.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from effopd.errors import ConfigError
from effopd.rewards.sandbox.inside import values
from effopd.rewards.sandbox.program import (
    MIXED_INPUTS,
    GoesOn,
    Limits,
    Outcome,
    Program,
    SandboxSettings,
    Status,
    printable,
)

_TRIES = 3
_PAUSE_S = 0.2
_GRACE_S = 30.0
"""Seconds that a request may take beyond the program's: a server may have others to run."""
_VALUES_SOURCE = (Path(__file__).parent / "inside" / "values.py").read_text(encoding="utf-8")
_ANY_DIGITS = "import sys; getattr(sys, 'set_int_max_str_digits', id)(0)\n"
"""Integers of any length can be printed and read, as in the sandboxes of this machine."""
_SCRIPT = "exec(compile(SOURCE, 'program.py', 'exec', dont_inherit=True))\n"
_HARNESS = """
def _effopd_call(source, name, arguments):
    import os, sys, types
    codec = types.ModuleType("_effopd_values")
    exec(compile(CODEC, "values.py", "exec"), codec.__dict__)
    result = os.dup(1)
    os.dup2(2, 1)
    program = types.ModuleType("program")
    sys.modules["program"] = program
    exec(compile(source, "program.py", "exec"), program.__dict__)
    function = program.__dict__.get(name)
    if function is None:
        function = getattr(program.__dict__["Solution"](), name)
    text = codec.dump(function(*codec.load(arguments)))
    while text:
        text = text[os.write(result, text):]
_effopd_call(SOURCE, NAME, ARGUMENTS)
"""
"""Calls the function and writes its value where standard output was."""


class _ServerFault(Exception):  # noqa: N818 - it never leaves this file
    """What the server did wrong."""


class UrlSandbox:
    """Asks a server; threads may share it, each request has a connection of its own."""

    def __init__(self, settings: SandboxSettings) -> None:
        self.kind = "url"
        url = settings.url.rstrip("/")
        self._url = url if url.endswith("/run_code") else f"{url}/run_code"

    def run(
        self,
        program: Program,
        inputs: Sequence[bytes | list[Any]],
        limits: Limits,
        goes_on: GoesOn | None = None,
    ) -> list[Outcome]:
        """One outcome per input; see `Sandbox.run`."""
        outcomes: list[Outcome] = []
        for place, each in enumerate(inputs):
            body = json.dumps(_request(program, each, limits)).encode("ascii")
            outcome = Outcome(status="sandbox_error")
            for attempt in range(_TRIES):
                if attempt:
                    time.sleep(_PAUSE_S * 2**attempt)
                try:
                    outcome = _outcome(self._post(body, limits), limits, bool(program.entry_point))
                    break
                except _ServerFault as error:
                    outcome = Outcome(status="sandbox_error", detail=printable(str(error)))
            outcomes.append(outcome)
            if goes_on is not None and not goes_on(place, outcome):
                break
        return outcomes

    def close(self) -> None:
        """Nothing to end: no connection outlives its request."""

    def _post(self, body: bytes, limits: Limits) -> dict[str, Any]:
        """The reply to a request, in one deadline, whatever trickles in."""
        deadline = time.monotonic() + limits.wall_s + _GRACE_S
        most_bytes, text = 12 * limits.output_bytes + 2**16, bytearray()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            with httpx2.stream(
                "POST", self._url, content=body, headers=headers,
                timeout=limits.wall_s + _GRACE_S, follow_redirects=False, trust_env=False,
            ) as response:  # fmt: skip
                if response.status_code != 200:  # a redirect as well: nobody else was named
                    raise _ServerFault(f"the server answered with status {response.status_code}")
                for chunk in response.iter_raw():
                    text += chunk
                    if len(text) > most_bytes:
                        raise _ServerFault(f"the server sent more than {most_bytes} bytes")
                    if time.monotonic() > deadline:
                        raise _ServerFault("the server was too slow")
            reply = json.loads(text)
        except (OSError, httpx2.HTTPError, ValueError, RecursionError) as error:
            raise _ServerFault(f"the server failed: {type(error).__name__} {error}") from error
        if not isinstance(reply, dict):
            raise _ServerFault("the server answered with something else than an object")
        return reply


def _request(program: Program, given: bytes | list[Any], limits: Limits) -> dict[str, Any]:
    """The request of a test."""
    if isinstance(given, bytes) == bool(program.entry_point):
        raise ConfigError(MIXED_INPUTS)
    stdin, code = "", f"{_ANY_DIGITS}SOURCE = {program.source!a}\n"
    if isinstance(given, bytes):
        try:
            stdin = given.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"a sandbox behind a URL takes UTF-8 alone: {error}") from error
        code += _SCRIPT
    else:
        names = _VALUES_SOURCE, program.entry_point, values.dump(given)
        code += f"CODEC, NAME, ARGUMENTS = {names!a}{_HARNESS}"
    return {
        "code": code,
        "language": "python",
        "stdin": stdin,
        "run_timeout": limits.wall_s,
        "compile_timeout": limits.wall_s,
        "memory_limit_MB": limits.memory_bytes // 1024**2,
    }


def _outcome(reply: dict[str, Any], limits: Limits, is_call: bool) -> Outcome:
    """What a reply says of the program, unless it says that the server failed, or nothing."""
    result = reply.get("run_result")
    if reply.get("status") not in ("Success", "Failed") or not isinstance(result, dict):
        raise _ServerFault(f"the server reports {str(reply.get('message', reply))[:300]}")
    printed, complaint = result.get("stdout") or "", result.get("stderr") or ""
    seconds, code = result.get("execution_time") or 0.0, result.get("return_code")
    kinds = (printed, str), (complaint, str), (seconds, int | float), (code, int | None)
    is_over = result.get("status") == "TimeLimitExceeded"
    is_known = is_over or (result.get("status") == "Finished" and code is not None)
    if not is_known or not all(isinstance(each, kind) for each, kind in kinds):
        raise _ServerFault(f"the server reports of a program {str(result)[:200]}")
    status: Status = "timeout" if is_over else "finished"
    if code and not is_over:
        status = "memory" if "MemoryError" in complaint[-300:] else "runtime_error"
    stdout = printed.encode("utf-8", "surrogatepass")
    if len(stdout) > limits.output_bytes and status == "finished":
        status = "output_limit"
    value = None
    if status == "finished" and is_call:
        try:
            value, stdout = values.load(stdout), b""
        except values.ValueRefusedError as error:
            status, complaint = "runtime_error", f"no value: {error}"
    stdout, detail = stdout[: limits.output_bytes], printable(complaint)
    return Outcome(status=status, stdout=stdout, value=value, seconds=float(seconds), detail=detail)
