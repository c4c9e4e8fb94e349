# ruff: noqa: E501
"""A sandbox behind a URL, against a real server on this machine that does everything wrong."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from effopd.errors import ConfigError
from effopd.rewards.sandbox import url
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rewards.sandbox.program import Limits, Outcome, Program, SandboxSettings

pytestmark = pytest.mark.enable_socket
LIMITS = Limits(wall_s=5.0, output_bytes=4096)
Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


class Server:
    """Serves `/run_code`; `answers` are used one a request, the last for all that follow."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [run_it]
        self.requests: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append({"path": self.path, **request})
                answer = outer.answers[min(len(outer.requests), len(outer.answers)) - 1]
                answer(self, request)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def run(self, program: Program, given: Any) -> Outcome:
        address = f"http://127.0.0.1:{self.http.server_port}"
        sandbox = open_sandbox(SandboxSettings(kind="url", url=address))
        return sandbox.run(program, [given], LIMITS)[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(url, "_PAUSE_S", 0.0)
    monkeypatch.setattr(url, "_GRACE_S", 0.5)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def result(**fields: Any) -> Answer:
    run = {
        "status": "Finished",
        "execution_time": 0.1,
        "return_code": 0,
        "stdout": "",
        "stderr": "",
    }
    reply = {"status": "Success", "message": "", "run_result": run | fields}
    return lambda handler, _: send(handler, json.dumps(reply).encode())


def run_it(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", request["code"]],
        input=request["stdin"],
        capture_output=True,
        text=True,
        check=False,
    )
    result(return_code=done.returncode, stdout=done.stdout, stderr=done.stderr)(handler, request)


def test_script(server: Server) -> None:
    outcome = server.run(Program(source="print(input() * 2)"), "\u00fc".encode())
    assert (outcome.status, outcome.stdout) == ("finished", "\u00fc\u00fc\n".encode())
    assert server.requests[0]["path"] == "/run_code"
    assert server.requests[0]["language"] == "python"
    assert server.requests[0]["run_timeout"] == 5.0


def test_script_is_main_and_has_integers_of_any_length(server: Server) -> None:
    source = "from __future__ import annotations\nif __name__ == '__main__': print(2**20000 > int(input()))"
    outcome = server.run(Program(source=source), b"9" * 5000)
    assert (outcome.status, outcome.stdout) == ("finished", b"True\n"), outcome


def test_call(server: Server) -> None:
    source = "print('noise')\ndef f(x, y):\n    print('more')\n    return (x, {y})"
    outcome = server.run(Program(source=source, entry_point="f"), [(1,), "\u00fc"])
    assert (outcome.status, outcome.value) == ("finished", ((1,), {"\u00fc"})), outcome


def test_errors_of_the_program(server: Server) -> None:
    outcome = server.run(Program(source="1 / 0"), b"")
    assert outcome.status == "runtime_error"
    assert "ZeroDivisionError" in outcome.detail


ENDINGS = {
    "timeout": (result(status="TimeLimitExceeded", return_code=None), "timeout"),
    "memory": (result(return_code=1, stderr="MemoryError\n"), "memory"),
    "output": (result(stdout="x" * 5000), "output_limit"),
}


@pytest.mark.parametrize(("answer", "status"), ENDINGS.values(), ids=ENDINGS)
def test_endings(server: Server, answer: Answer, status: str) -> None:
    server.answers = [answer]
    outcome = server.run(Program(source=""), b"")
    assert outcome.status == status
    assert len(outcome.stdout) <= LIMITS.output_bytes


def half(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"{")


def redirect(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:1/run_code")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


FAULTS: dict[str, Answer] = {
    "500": lambda handler, _: send(handler, b"oops", 500),
    "404": lambda handler, _: send(handler, b"", 404),
    "no JSON": lambda handler, _: send(handler, b"<html>"),
    "a list": lambda handler, _: send(handler, b"[]"),
    "deep": lambda handler, _: send(handler, b"[" * 50_000),
    "long": lambda handler, _: send(handler, b'"' + b"x" * 300_000 + b'"'),
    "empty object": lambda handler, _: send(handler, b"{}"),
    "its own error": lambda handler, _: send(handler, b'{"status": "SandboxError", "message": "full"}'),
    "no code": result(return_code=None),
    "odd output": result(stdout=[1]),
    "odd code": result(return_code="0"),
    "half": half,
    "redirect": redirect,
    "hangs up": lambda handler, _: None,
}  # fmt: skip


@pytest.mark.parametrize("answer", FAULTS.values(), ids=FAULTS)
def test_fault_of_the_server_is_no_verdict(server: Server, answer: Answer) -> None:
    server.answers = [answer]
    outcome = server.run(Program(source="print(1)"), b"")
    assert outcome.status == "sandbox_error"
    assert outcome.detail
    assert len(server.requests) == 3


@pytest.mark.parametrize("answer", FAULTS.values(), ids=FAULTS)
def test_fault_that_passes_changes_nothing(server: Server, answer: Answer) -> None:
    server.answers = [answer, result(stdout="1\n")]
    outcome = server.run(Program(source="print(1)"), b"")
    assert (outcome.status, outcome.stdout) == ("finished", b"1\n")


def test_nobody_listens() -> None:
    sandbox = open_sandbox(SandboxSettings(kind="url", url="http://127.0.0.1:9"))
    assert sandbox.run(Program(source=""), [b""], LIMITS)[0].status == "sandbox_error"


BAD_URLS = [
    "file:///etc", "ftp://x", "http://", "http://u:p@h", "http://h/?a=1", "http://h:99999", "x",
]  # fmt: skip


@pytest.mark.parametrize("address", BAD_URLS)
def test_bad_url_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="url must"):
        SandboxSettings(kind="url", url=address)
