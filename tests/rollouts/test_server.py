"""The engine behind a server: what the contract does not say."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import EOS, TOKENIZER, ids, tiny_model
from tests.support.fake_server import FAULTS, FakeServer, serving, settings_of

from effopd.errors import ConfigError, ServerError
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.server import ServerEngine, WeightReload
from effopd.servers.client import Client
from effopd.servers.handshake import api_of

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SIZE = len(TOKENIZER)
ASKED = [Request(prompt_ids=ids("<bos> 3 + 4 =")[: 1 + i], seed=7 * i) for i in range(5)]
SHORT = Sampling(max_new_tokens=5)


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with serving(tiny_model(), TOKENIZER, flavor=request.param) as found:
        yield found


def engine_of(server: FakeServer, *, size: int = SIZE, **changes: Any) -> ServerEngine:
    settings = settings_of(server, **changes)
    return ServerEngine(
        Client(settings), api_of(settings), TOKENIZER, vocabulary_size=size, ends=(EOS,)
    )


def reload_of(server: FakeServer, student: Any, directory: Path, **changes: Any) -> WeightReload:
    settings = settings_of(server, **changes)
    api = api_of(settings)
    return WeightReload(student, Client(settings), api, directory, vocabulary_size=SIZE)


@pytest.mark.parametrize("fault", ["500", "half body", "wrong count", "wrong tokens", "nan"])
def test_faults_change_no_completion(server: FakeServer, fault: str) -> None:
    assert fault in FAULTS
    engine = engine_of(server)
    good = engine.generate(ASKED, SHORT)
    server.strike({1: fault, 2: fault})
    assert engine.generate(ASKED, SHORT) == good
    assert server.struck == [fault, fault]


def test_log_probabilities_at_other_temperatures_are_unknown(server: FakeServer) -> None:
    found = engine_of(server).generate(ASKED, Sampling(max_new_tokens=5, temperature=0.5))
    assert all(math.isnan(value) for completion in found for value in completion.log_probs)


def test_fixed_weights_cannot_follow_a_student(server: FakeServer) -> None:
    with pytest.raises(ConfigError, match=r"serves fixed weights, but a student is trained"):
        engine_of(server).sync_weights()


def test_tokens_beyond_the_vocabulary_are_refused(server: FakeServer) -> None:
    with pytest.raises(ServerError, match="the student's vocabulary has 1: serve the model"):
        engine_of(server, size=1).generate(ASKED, SHORT)


def test_weights_come_over_and_only_the_newest_stay_on_disk(
    server: FakeServer, tmp_path: Path
) -> None:
    student = copy.deepcopy(server.model)
    reload = reload_of(server, student, tmp_path)
    for _ in range(3):
        student.lm_head.weight.data.mul_(1.1)
        reload.sync()
        assert server.model.lm_head.weight.equal(student.lm_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["weights-3"]


def test_weights_that_did_not_arrive_are_noticed(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = copy.deepcopy(server.model)
    student.lm_head.weight.data.neg_()
    monkeypatch.setattr(server, "_load_", lambda directory: None)
    with pytest.raises(ServerError, match="does not have the student's weights after a reload"):
        reload_of(server, student, tmp_path).sync()


def test_a_server_that_cannot_reload_says_so(server: FakeServer, tmp_path: Path) -> None:
    server.can_reload = False
    with pytest.raises(ServerError, match="HTTP 404"):
        reload_of(server, server.model, tmp_path).sync()
