"""`effopd serve-teacher` over real HTTP: who is answered, with what, and who is not."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model, tiny_policy
from tests.support import processes
from tests.support.learning import rollouts

from effopd.cli.main import app
from effopd.errors import ConfigError, ServerError
from effopd.evaluation.logprobs import completion_log_probs
from effopd.evaluation.served_teacher import ServedTeacher
from effopd.models.policy import Policy
from effopd.servers.hidden_states import HEALTH, LOG_PROBS, STATES, TEACHER, read_tensors
from effopd.servers.served_model import TeacherServerSettings, fingerprint_of
from effopd.servers.settings import ServerSettings
from effopd.servers.teacher_server import TeacherServer

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SIZE = len(TOKENIZER)
SAMPLES = [rollout.sample for rollout in rollouts(4, 2)]
KEY = "sk-canary-4417"
FREE = TeacherServerSettings(port=0, max_tokens=64)
BODY = {"token_ids": [1, 2, 3, 4], "start": 2}


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer(tiny_policy(1), FREE) as found:
        yield found


def teacher_of(server: TeacherServer, **changes: Any) -> ServedTeacher:
    plain: dict[str, Any] = {
        "url": server.url, "model": "teacher", "flavor": "effopd", "backoff_s": 0.02,
        "concurrency": 4, "request_s": 600.0, "tolerance_nats": 1e-3,
    }  # fmt: skip
    settings = ServerSettings(**(plain | changes))
    return ServedTeacher(settings, TOKENIZER, vocabulary_size=SIZE, longest=64)


def ask(
    server: TeacherServer, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers of one raw request."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET" if body is None else "POST", path, body, headers)
    reply = connection.getresponse()
    found = reply.status, reply.read(), dict(reply.getheaders())
    connection.close()
    return found


def post(server: TeacherServer, path: str, **changes: Any) -> tuple[int, Any]:
    status, content, _ = ask(server, path, json.dumps(BODY | changes).encode())
    return status, content if path == STATES and status == 200 else json.loads(content)


# Good answers -------------------------------------------------------------------------------------


def test_a_served_teacher_is_the_local_one(server: TeacherServer) -> None:
    local, teacher = tiny_policy(1), teacher_of(server)
    with torch.no_grad():
        for hidden_ND, sample in zip(teacher.states(SAMPLES), SAMPLES, strict=True):
            assert torch.allclose(hidden_ND, local.states([sample]).hidden_ND, atol=1e-5)
    expected = completion_log_probs(local, SAMPLES)
    for row, other in zip(teacher.log_probs(SAMPLES), expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    assert torch.equal(teacher.head.weight_VD, local.head_weight_VD)


def test_what_is_left_of_the_head_normalizes(server: TeacherServer) -> None:
    status, answer = post(server, LOG_PROBS, vocabulary_size=5)
    expected = completion_log_probs(
        Policy(tiny_model(1), TOKENIZER, vocabulary_size=5),
        [replace(SAMPLES[0], prompt_ids=(1, 2), completion_ids=(3, 4))],
    )
    assert status == 200
    assert answer["log_probs"] == pytest.approx(expected[0], abs=1e-5)


def test_a_model_in_bfloat16_with_a_factor_and_a_bias_is_sent_as_it_is() -> None:
    model = tiny_model(1).to(torch.bfloat16)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, SIZE).bfloat16())
    local = Policy(model, TOKENIZER)
    with TeacherServer(local, FREE) as server:
        teacher = teacher_of(server, tolerance_nats=0.2)
        hidden_ND = teacher.states(SAMPLES[:1])[0]
        assert hidden_ND.dtype == torch.bfloat16
        assert torch.equal(hidden_ND, local.states(SAMPLES[:1]).hidden_ND)
        assert teacher.head.bias_V is not None
        assert torch.equal(teacher.head.bias_V, local.head_bias_V)


def test_the_description_names_model_and_vocabulary(server: TeacherServer) -> None:
    status, content, _ = ask(server, TEACHER)
    found = json.loads(content)
    assert status == 200
    assert found["fingerprint"] == fingerprint_of(tiny_policy(1)) != fingerprint_of(tiny_policy(2))
    assert (found["rows"], found["width"], found["dtype"]) == (SIZE, 32, "float32")
    assert (found["logit_factor"], found["context"]) == (1.0, 64)
    assert found["end_ids"] == [TOKENIZER.eos_token_id]
    assert read_tensors(post(server, STATES)[1])[1] == found["fingerprint"]


class Gated(Policy):
    """Waits with every forward pass after the first, until the gate is opened."""

    def __init__(self, seed: int) -> None:
        super().__init__(tiny_model(seed), TOKENIZER)
        self.started, self.gate = threading.Event(), threading.Event()

    def states(self, samples: Any) -> Any:
        self.started.set()
        self.gate.wait()
        return super().states(samples)


def waiting(server: TeacherServer, requests: int) -> None:
    """Until so many wait for their answers."""
    while json.loads(ask(server, HEALTH)[1])["waiting"] < requests:
        pass


def test_requests_that_wait_are_answered_by_one_pass() -> None:
    policy = Gated(1)
    settings = replace(FREE, waiting=6)
    with TeacherServer(policy, settings) as server, ThreadPoolExecutor(6) as pool:
        first = pool.submit(post, server, LOG_PROBS)
        policy.started.wait()
        others = [pool.submit(post, server, LOG_PROBS, start=1) for _ in range(5)]
        waiting(server, 6)
        status, _, headers = ask(server, LOG_PROBS, json.dumps(BODY).encode())
        assert (status, headers["Retry-After"]) == (503, "1")
        policy.gate.set()
        assert first.result()[0] == 200
        assert {len(each.result()[1]["log_probs"]) for each in others} == {3}
        assert server.model.batches == [1, 5]


def test_a_pass_holds_as_many_tokens_as_allowed() -> None:
    policy = Gated(1)
    with (
        TeacherServer(policy, replace(FREE, batch_tokens=8)) as server,
        ThreadPoolExecutor(6) as pool,
    ):
        answers = [pool.submit(post, server, LOG_PROBS)]
        policy.started.wait()
        answers += [pool.submit(post, server, LOG_PROBS) for _ in range(5)]
        waiting(server, 6)
        policy.gate.set()
        assert [each.result()[0] for each in answers] == [200] * 6
        assert server.model.batches == [1, 2, 2, 1]


def test_several_students_are_answered_at_once() -> None:
    local = tiny_policy(1)
    expected = completion_log_probs(local, SAMPLES)
    with TeacherServer(local, replace(FREE, waiting=3)) as server, ThreadPoolExecutor(4) as pool:

        def student(number: int) -> list[tuple[float, ...]]:
            teacher = teacher_of(server, retries=1000, backoff_s=0.001)
            return teacher.log_probs(SAMPLES)

        for found in pool.map(student, range(4)):
            for row, other in zip(found, expected, strict=True):
                assert row == pytest.approx(other, abs=1e-5)


# Restarts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_a_server_that_comes_back_is_known_by_its_model(seed: int) -> None:
    """While it is away, a student asks; the answer comes from the same model, or is an error."""
    with TeacherServer(tiny_policy(1), FREE) as server:
        teacher = teacher_of(server, retries=10**6, concurrency=1)
        good = teacher.log_probs(SAMPLES)
        port = int(server.url.rpartition(":")[2])
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(teacher.log_probs, SAMPLES)
        while teacher.client.disturbances == 0:
            pass
        with TeacherServer(tiny_policy(seed), replace(FREE, port=port)):
            if seed == 1:
                assert found.result() == good
                return
            with pytest.raises(ServerError, match="is not one model: its fingerprint is"):
                found.result()


def test_what_waits_is_answered_before_the_end() -> None:
    policy = Gated(1)
    server = TeacherServer(policy, FREE)
    with ThreadPoolExecutor(2) as pool:
        with server:
            answer = pool.submit(post, server, LOG_PROBS)
            policy.started.wait()
            stopping = pool.submit(policy.gate.set)
        assert answer.result()[0] == 200
        stopping.result()
    with pytest.raises(ConnectionRefusedError):
        ask(server, HEALTH)


def test_a_pass_that_fails_is_an_error_of_its_requests_alone() -> None:
    class Failing(Policy):
        fails = True

        def states(self, samples: Any) -> Any:
            if self.fails:
                self.fails = False
                raise RuntimeError("out of memory")
            return super().states(samples)

    with TeacherServer(Failing(tiny_model(1), TOKENIZER), FREE) as server:
        assert post(server, LOG_PROBS) == (500, {"error": "the model failed: out of memory"})
        assert post(server, LOG_PROBS)[0] == 200


# Who is not answered ------------------------------------------------------------------------------


def test_the_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with TeacherServer(tiny_policy(1), replace(FREE, key=KEY)) as server:
        body = json.dumps(BODY).encode()
        for given in ({}, {"Authorization": "Bearer sk"}, {"Authorization": f"bearer {KEY}"},
                      {"Authorization": KEY}, {"Authorization": "Bearer \u00e9"}):  # fmt: skip
            for path in (LOG_PROBS, STATES, "/tokenize"):
                status, content, _ = ask(server, path, body, **given)
                assert (status, KEY.encode() in content) == (401, False)
            assert ask(server, TEACHER, **given)[0] == 401
            assert ask(server, "/v1/head", **given)[0] == 401
        assert ask(server, HEALTH)[0] == 200
        assert server.model.batches == []
        with pytest.raises(ServerError, match="HTTP 401: name the variable"):
            teacher_of(server)
        monkeypatch.setenv("TEACHER_KEY", KEY)
        assert teacher_of(server, api_key_env="TEACHER_KEY").log_probs(SAMPLES[:1])


def test_a_page_of_a_browser_is_refused(server: TeacherServer) -> None:
    assert ask(server, TEACHER, Host="rebound.example.org")[0] == 403
    status, _, headers = ask(server, TEACHER, Origin="http://example.org")
    assert status == 200
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": "1 2"}, "token_ids must be a list of numbers from 0 to"),
        ({"token_ids": [1, SIZE]}, "token_ids must be a list of numbers from 0 to"),
        ({"token_ids": [1, -1]}, "token_ids must be a list of numbers from 0 to"),
        ({"token_ids": [1, True]}, "token_ids must be a list of numbers from 0 to"),
        ({"token_ids": [1]}, "token_ids must be 2 to 64 tokens, got 1"),
        ({"token_ids": [1] * 65}, "token_ids must be 2 to 64 tokens, got 65"),
        ({"start": 0}, "start must be 1 to 3, got 0"),
        ({"start": 4}, "start must be 1 to 3, got 4"),
        ({"start": None}, "start must be 1 to 3, got None"),
        ({"vocabulary_size": SIZE + 1}, "vocabulary_size must be 1 to"),
        ({"vocabulary_size": 0}, "vocabulary_size must be 1 to"),
    ],
)
def test_wrong_requests_are_refused(
    server: TeacherServer, changes: dict[str, Any], message: str
) -> None:
    for path in (LOG_PROBS, STATES):
        status, answer = post(server, path, **changes)
        assert status == 400
        assert message in answer["error"]
    assert server.model.batches == []


def test_other_bodies_are_refused(server: TeacherServer) -> None:
    for body in (b"", b"{", b"[1]", b"null", b"[" * 10_000, b"\xff", b"NaN"):
        assert ask(server, LOG_PROBS, body)[0] == 400
    assert ask(server, "/nowhere", b"{}")[0] == ask(server, "/nowhere")[0] == 404
    assert ask(server, "/tokenize", b"{}")[0] == 400
    for size in ("0", str(SIZE + 1)):
        assert ask(server, f"/v1/head?vocabulary_size={size}")[0] == 400


@pytest.mark.parametrize("length", ["2000000", "999999999999", "9" * 30, "-1", "x"])
def test_long_requests_are_refused_before_they_are_read(server: TeacherServer, length: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        head = f"POST {LOG_PROBS} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}"
        line.sendall(f"{head}\r\n\r\n".encode())
        line.shutdown(socket.SHUT_WR)
        found = line.makefile("rb").read()
    assert found.split()[1] in (b"413", b"411")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines: give a key"),
        ({"host": "example.org"}, "can be reached from other machines: give a key"),
        ({"key": "a\nb"}, "the key must be printable ASCII"),
        ({"name": ""}, "name must be what students ask for"),
        ({"port": 70_000}, "port must be 0 to 65535"),
        ({"max_tokens": 1}, "max_tokens must be at least 2"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"waiting": 0}, "waiting must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TeacherServerSettings(**changes)
    assert TeacherServerSettings(host="0.0.0.0", key=KEY).host == "0.0.0.0"


# The command --------------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_asked_to_stop(tmp_path: Path) -> None:
    model, output = tiny_model(1), tmp_path / "said"
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    options = ["--port", "0", "--dtype", "float32", "--device", "cpu", "--key-env", "TEACHER_KEY"]

    def body() -> None:
        os.environ["TEACHER_KEY"] = KEY
        app(["serve-teacher", str(tmp_path), *options])

    child = processes.fork(body, output)
    while not output.exists() or not output.read_text().endswith("\n"):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), output.read_text()
        time.sleep(0.001)
    said = output.read_text()
    url = next(word.rstrip(",") for word in said.split() if word.startswith("http://"))
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", TEACHER, headers={"Authorization": f"Bearer {KEY}"})
    found = json.loads(connection.getresponse().read())
    os.kill(child, signal.SIGTERM)
    assert processes.wait(child) == 0
    assert output.read_text() == f"{said}stopping: what waits is answered\n"
    assert found["fingerprint"] == fingerprint_of(tiny_policy(1))
    assert KEY not in said
