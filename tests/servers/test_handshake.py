"""A server that is not what it should be is noticed at once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model
from tests.support.fake_server import FakeServer, serving, settings_of

from effopd.data.world import TinyWorld, make_tokenizer
from effopd.errors import ConfigError, ParameterMismatchError, ServerError
from effopd.servers.client import Client
from effopd.servers.handshake import PROBE_TOKENS, Identity, api_of, probe_ids, verify_server

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SIZE = len(TOKENIZER)


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with serving(tiny_model(), TOKENIZER, flavor=request.param) as found:
        yield found


def meet(server: FakeServer, longest: int = 64, **changes: Any) -> Identity:
    settings = settings_of(server, **changes)
    return verify_server(Client(settings), api_of(settings), TOKENIZER, SIZE, longest)


def test_the_probe_spans_the_vocabulary() -> None:
    for size in (2, 20, 151_669):
        found = probe_ids(size)
        assert (len(found), found[0], found[-1]) == (PROBE_TOKENS, 0, size - 1)
        assert sorted(found) == list(found)


def test_a_good_server_is_described(server: FakeServer) -> None:
    found = meet(server)
    assert found.context == server.context
    assert (found.repeat_nats, found.self_score_nats) == (0.0, pytest.approx(0.0, abs=1e-5))
    ids = torch.tensor([found.probe_ids])
    with torch.no_grad():
        log_probs = torch.log_softmax(server.model(ids).logits[0, :-1], -1)
    expected = log_probs.gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert found.log_probs == pytest.approx(expected, abs=1e-5)


def test_another_model_is_served(server: FakeServer) -> None:
    with pytest.raises(ServerError, match=r"other at http://.* is not served; served are 'tiny'"):
        meet(server, model="other")


def test_another_tokenizer_is_refused(server: FakeServer) -> None:
    server.tokenizer = make_tokenizer(TinyWorld(modulus=9))
    message = (
        r"another tokenizer than the student.* the first that differs, at \d+, is '[^']+' \(\d"
    )
    with pytest.raises(ParameterMismatchError, match=message):
        meet(server)


def test_a_short_context_is_refused(server: FakeServer) -> None:
    server.context = 64
    meet(server, longest=63)
    with pytest.raises(ServerError, match="takes 64 tokens, prompt and answer may have 64"):
        meet(server, longest=64)


def test_arithmetic_that_differs_each_time_is_refused(server: FakeServer) -> None:
    head, calls = server.model.lm_head, []

    def drift(module: Any, inputs: Any, logits: Any) -> Any:
        calls.append(1)
        return logits * (1 + 0.5 * (len(calls) % 2))

    hook = head.register_forward_hook(drift)
    with pytest.raises(ServerError, match="scores the same text twice differently, by "):
        meet(server)
    hook.remove()


def test_scores_that_are_not_those_of_writing_are_refused(server: FakeServer) -> None:
    server.shift_nats = 0.1
    with pytest.raises(ServerError, match=r"its own text, written and read, differently, by 0.1 "):
        meet(server)
    meet(server, tolerance_nats=0.2)


def test_a_fault_during_the_handshake_passes(server: FakeServer) -> None:
    server.strike({0: "500", 2: "nan", 4: "drop"})
    assert meet(server).repeat_nats == 0.0
    assert server.struck == ["500", "nan", "drop"]


# Likely tokens ------------------------------------------------------------------------------------


def test_likely_tokens_are_asked_for_at_the_start(server: FakeServer) -> None:
    assert meet(server, top_k=5).repeat_nats == 0.0
    with pytest.raises(ConfigError, match=f"top_k must be at most {SIZE}, the tokens that there"):
        meet(server, top_k=SIZE + 1)


@pytest.mark.parametrize("server", ["vllm"], indirect=True)
def test_more_likely_tokens_than_the_server_allows(server: FakeServer) -> None:
    server.most_likely = 4
    with pytest.raises(ServerError, match=r"max allowed: 4.*--max-logprobs 5, or lower top_k"):
        meet(server, top_k=5)


def test_logits_are_no_log_probabilities(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_probs = server._distributions
    monkeypatch.setattr(server, "_distributions", lambda ids: [row + 9.0 for row in log_probs(ids)])
    server.shift_nats = -9.0
    with pytest.raises(ServerError, match=r"have a probability of .* these are no log-prob"):
        meet(server, top_k=5)
