"""One client, one server, and what can go wrong between them."""

import random
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import TOKENIZER, tiny_model
from tests.support.fake_server import FAULTS, FakeServer, patience_s, serving, settings_of

from effopd.errors import ConfigError, NonFiniteError, ServerError
from effopd.servers.client import Client, ServerRequest
from effopd.servers.handshake import api_of

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SECRET = "sk-canary-7731"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(params=["vllm", "sglang"])
def server(model: Any, request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with serving(model, TOKENIZER, flavor=request.param) as found:
        yield found


@pytest.fixture
def vllm(model: Any) -> Iterator[FakeServer]:
    with serving(model, TOKENIZER) as found:
        yield found


SEQUENCES = [tuple(random.Random(i).choices(range(len(TOKENIZER)), k=4 + i)) for i in range(10)]


def scores(server: FakeServer, **changes: Any) -> list[tuple[float, ...]]:
    settings = settings_of(server, **changes)
    client, api = Client(settings), api_of(settings)
    requests = [api.score_request(ids) for ids in SEQUENCES]
    reads = [lambda a, ids=ids: api.read_scores(a, ids, 2) for ids in SEQUENCES]
    return client.ask_all(requests, reads, client.deadline())


def refusal(server: FakeServer, **changes: Any) -> str:
    with pytest.raises((ServerError, NonFiniteError)) as error:
        scores(server, **({"retries": 2} | changes))
    return str(error.value)


# Good answers -------------------------------------------------------------------------------------


def test_answers_come_in_order_and_so_many_at_a_time(server: FakeServer) -> None:
    one_by_one = scores(server, concurrency=1)
    assert server.most_at_a_time == 1
    assert [len(row) for row in one_by_one] == [len(ids) - 2 for ids in SEQUENCES]
    assert scores(server, concurrency=3) == one_by_one
    assert server.most_at_a_time <= 3


def test_nothing_asked_nothing_sent(vllm: FakeServer) -> None:
    client = Client(settings_of(vllm))
    assert client.ask_all([], [], client.deadline()) == []
    assert vllm.requests == []


# Failures that pass -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_nothing(server: FakeServer, fault: str) -> None:
    good = scores(server)
    server.strike({1: fault, 5: fault})
    assert scores(server, request_s=patience_s(fault)) == good
    assert fault in server.struck


def test_many_faults_at_once_change_nothing(server: FakeServer) -> None:
    good = scores(server)
    rng = random.Random(0)
    quick = [fault for fault in FAULTS if fault not in {"stall", "slow body", "restart"}]
    server.strike(lambda number: rng.choice(quick) if rng.random() < 0.5 else None)
    assert scores(server, retries=30, backoff_s=0.001) == good
    assert len(server.struck) > 5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", "3 tries failed, the last: .*HTTP 500"),
        ("drop", "3 tries failed, the last: "),
        ("stall", "no answer in 0.2 s"),
        ("slow body", "no answer in 0.2 s"),
        ("half body", "without sending complete message body"),
        ("truncated", "that is no JSON"),
        ("wrong count", "log-probabilities for"),
        ("deep", "an answer without|that is no JSON"),
        ("nan", "is nan"),
        ("null", "is None|no log-probability"),
    ],
)
def test_what_does_not_pass_is_an_error_that_says_it(
    server: FakeServer, fault: str, message: str
) -> None:
    server.strike(lambda number: fault)
    request_s = min(patience_s(fault) / 5, 60.0)  # every answer is bad: none can be late
    found = refusal(server, request_s=request_s, concurrency=1, backoff_s=0.001)
    assert re.search(message, found), found
    assert server.struck == [fault] * 3


@pytest.mark.parametrize("fault", ["wrong tokens", "wrong vocabulary"])
def test_other_tokens_are_an_error(server: FakeServer, fault: str) -> None:
    server.strike(lambda number: fault)
    assert "log-probabilities" in refusal(server, backoff_s=0.001)


def test_nan_that_stays_is_not_finite(vllm: FakeServer) -> None:
    vllm.strike(lambda number: "nan")
    with pytest.raises(NonFiniteError, match="2 tries failed"):
        scores(vllm, retries=1)


def test_a_server_that_is_away_is_an_error(model: Any) -> None:
    with serving(model, TOKENIZER) as server:
        settings = settings_of(server, retries=1)
    client = Client(settings)
    with pytest.raises(ServerError, match=r"2 tries failed, the last: .*refused"):
        client.ask(ServerRequest(path="/v1/models"), lambda answer: answer, client.deadline())
    assert client.disturbances == 2


# Failures that do not pass ------------------------------------------------------------------------


def test_redirects_are_not_followed(server: FakeServer) -> None:
    server.strike(lambda number: "redirect")
    assert "a redirect, which is not followed" in refusal(server, concurrency=1)
    assert server.struck == ["redirect"]


def test_long_answers_are_cut_off(server: FakeServer) -> None:
    server.strike(lambda number: "endless")
    assert "allowed are 100000" in refusal(server, concurrency=1, response_bytes=100_000)
    assert server.struck == ["endless"]


def test_one_failure_for_good_ends_all(vllm: FakeServer) -> None:
    vllm.strike({3: "redirect"})
    assert "a redirect" in refusal(vllm, concurrency=1)
    assert len(vllm.requests) == 3


def test_a_mistake_of_ours_is_shown_once(vllm: FakeServer) -> None:
    client = Client(settings_of(vllm))
    with pytest.raises(ServerError, match=r"HTTP 404: .*Not Found"):
        client.ask(
            ServerRequest(path="/nowhere", payload={}), lambda answer: answer, client.deadline()
        )
    assert len(vllm.requests) == 1


# Time ---------------------------------------------------------------------------------------------


def test_a_step_ends_at_its_deadline(vllm: FakeServer) -> None:
    vllm.strike(lambda number: "500")
    found = refusal(vllm, step_s=0.3, retries=10**6, backoff_s=0.01)
    assert "the 0.3 s of a step (step_s) are over; the last failure: " in found


def test_waits_double_with_jitter_from_the_seed(vllm: FakeServer) -> None:
    settings = settings_of(vllm, backoff_s=1.0)
    waits = {
        seed: [
            Client(settings, seed)._backoff_s(k, random.Random(f"{seed}/0")) for k in range(1, 9)
        ]
        for seed in (0, 1)
    }
    for found in waits.values():
        for k, wait in enumerate(found):
            assert 0.5 <= wait / min(30.0, 2.0**k) <= 1.0
    assert waits[0] != waits[1]


def test_giving_up_ends_waits_at_once(vllm: FakeServer) -> None:
    deadline = Client(settings_of(vllm)).deadline()
    threading.Timer(0.05, deadline.give_up).start()
    deadline.wait(10**6)  # longer than a test may take
    assert deadline.left_s == 0


# Secrets ------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_shown(
    model: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    with serving(model, TOKENIZER, key=SECRET) as server:
        assert scores(server, api_key_env="TEACHER_KEY")
        without = refusal(server)
        assert "HTTP 401: name the variable that holds the key in api_key_env" in without
        client = Client(settings_of(server, api_key_env="TEACHER_KEY"))
        with pytest.raises(ServerError) as error:
            client.ask(
                ServerRequest(path="/" + "x", payload={"a": 1}), lambda a: a, client.deadline()
            )
        shown = client._shown(f"bad key {SECRET}\x1b[2J")
    assert shown == ascii("bad key (the key)\x1b[2J")
    everything = [without, str(error.value), repr(error.value), str(client), *capfd.readouterr()]
    assert not [text for text in everything if SECRET in text]


def test_a_missing_key_is_noticed_before_anything_is_sent(vllm: FakeServer) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE is not set"):
        Client(settings_of(vllm, api_key_env="NO_SUCH_VARIABLE"))


def test_control_is_asked_once_and_believed(vllm: FakeServer) -> None:
    client = Client(settings_of(vllm))
    client.control(ServerRequest(path="/reset_prefix_cache", payload={}), 1.0)
    vllm.can_reload = False
    with pytest.raises(ServerError, match="HTTP 404"):
        client.control(ServerRequest(path="/reset_prefix_cache", payload={}), 1.0)
    assert [path for path, _ in vllm.requests] == ["/reset_prefix_cache"] * 2


# Roads --------------------------------------------------------------------------------------------


def test_proxies_of_the_environment_are_not_used(
    vllm: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert scores(vllm, retries=0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_only_trusted_certificates_are_accepted(
    vllm: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = vllm._http
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    url = vllm.url.replace("http:", "https:")
    assert "its certificate is not trusted" in refusal(vllm, url=url, concurrency=1)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert len(scores(vllm, url=url)) == len(SEQUENCES)
