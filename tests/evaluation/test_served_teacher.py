"""K9: a teacher behind a server that fails in every way it can; the scores are the same."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from tests.fakes import TOKENIZER, tiny_model, tiny_policy
from tests.support.fake_server import FAULTS, FakeServer, patience_s, serving, settings_of
from tests.support.learning import rollouts

from effopd.errors import ConfigError, NonFiniteError, ServerError
from effopd.evaluation.logprobs import completion_log_probs
from effopd.evaluation.routing import Teachers, routed_log_probs, routed_reverse_kl
from effopd.evaluation.served_teacher import ServedTeacher

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

ANSWERS = rollouts(4, 2)
SAMPLES = [rollout.sample for rollout in ANSWERS]


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with serving(tiny_model(1), TOKENIZER, flavor=request.param) as found:
        yield found


def teacher_of(server: FakeServer, **changes: Any) -> ServedTeacher:
    return ServedTeacher(
        settings_of(server, **changes), TOKENIZER, vocabulary_size=len(TOKENIZER), longest=64
    )


def test_scores_are_those_of_the_model(server: FakeServer) -> None:
    found = teacher_of(server).log_probs(SAMPLES)
    expected = completion_log_probs(tiny_policy(1), SAMPLES)
    assert [len(row) for row in found] == [len(s.completion_ids) for s in SAMPLES]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("server", ["vllm"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_no_score(server: FakeServer, fault: str) -> None:
    teacher = teacher_of(server, request_s=patience_s(fault))
    good = teacher.log_probs(SAMPLES)
    server.strike({0: fault, 3: fault, 7: fault} if fault != "restart" else {3: fault})
    assert teacher.log_probs(SAMPLES) == good
    assert fault in server.struck


def test_another_model_after_a_restart_is_noticed(server: FakeServer) -> None:
    teacher = teacher_of(server)
    server.next_model = tiny_model(2)
    server.strike({3: "restart"})
    with pytest.raises(ServerError, match="is not one model: it scores a fixed text by "):
        teacher.log_probs(SAMPLES)


def test_another_model_between_steps_is_noticed(server: FakeServer) -> None:
    teacher = teacher_of(server)
    good = teacher.log_probs(SAMPLES)
    first, server.model = server.model, tiny_model(2)
    with pytest.raises(ServerError, match="Serve the first model again, then resume"):
        teacher.log_probs(SAMPLES)
    server.model = first
    assert teacher.log_probs(SAMPLES) == good


def test_another_model_without_a_failure_is_noticed(server: FakeServer) -> None:
    teacher = teacher_of(server, concurrency=1)
    other = tiny_model(2)

    def swap(number: int) -> None:
        if number == 4:
            server.model = other

    server.strike(swap)
    with pytest.raises(ServerError, match="is not one model"):
        teacher.log_probs(SAMPLES)


def test_a_restart_with_the_same_model_is_verified_once(server: FakeServer) -> None:
    teacher = teacher_of(server, concurrency=1)
    server.requests.clear()
    server.strike({3: "restart"})
    teacher.log_probs(SAMPLES)
    # Before and after the step, and once after the restart.
    assert len([path for path, _ in server.requests]) == len(SAMPLES) + 3


def test_a_teacher_that_stays_away_is_an_error(server: FakeServer) -> None:
    teacher = teacher_of(server, retries=2)
    server.strike(lambda number: "502")
    with pytest.raises(ServerError, match=r"3 tries failed, the last: .*HTTP 502"):
        teacher.log_probs(SAMPLES)


def test_nan_that_stays_is_the_teachers_nan(server: FakeServer) -> None:
    teacher = teacher_of(server, retries=1)
    server.strike(lambda number: "nan")
    with pytest.raises(NonFiniteError, match="2 tries failed"):
        teacher.log_probs(SAMPLES)


def test_only_temperature_one_is_served(server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="teacher_temperature must be 1 with teacher_server"):
        teacher_of(server).log_probs(SAMPLES, temperature=0.9)


def test_the_teacher_of_a_run_is_recognised(server: FakeServer) -> None:
    teacher = teacher_of(server)
    teacher.expect(teacher.identity.log_probs)
    with pytest.raises(ServerError, match="differently when the run was started than at the"):
        teacher.expect([value - 0.5 for value in teacher.identity.log_probs])
    with pytest.raises(ServerError, match="another vocabulary"):
        teacher.expect([0.0])


# Among other teachers -----------------------------------------------------------------------------


def test_answers_are_routed_to_servers_and_local_teachers(server: FakeServer) -> None:
    local = tiny_policy(3)
    teachers = Teachers(policies={"": teacher_of(server), "local": local})
    answers = rollouts(4, 1, teachers=("", "local"))
    found = routed_log_probs(teachers, answers)
    for row, answer in zip(found, answers, strict=True):
        policy = local if answer.problem.teacher else tiny_policy(1)
        expected = completion_log_probs(policy, [answer.sample])[0]
        assert row == pytest.approx(expected, abs=1e-5)
    assert list(teachers.served) == [""]


def test_a_divergence_needs_a_local_teacher(server: FakeServer) -> None:
    teachers = Teachers.single(teacher_of(server))
    with pytest.raises(ConfigError, match="gives log-probabilities of given tokens only"):
        routed_reverse_kl(tiny_policy(), teachers, ANSWERS)
    with pytest.raises(ConfigError, match=r"objective.type = 'sampled_token' or 'exopd'"):
        teachers.split_local(ANSWERS)


def test_jitter_does_not_depend_on_global_generators(server: FakeServer) -> None:
    teacher = teacher_of(server)
    before = random.getstate()
    server.strike({1: "500"})
    teacher.log_probs(SAMPLES)
    assert random.getstate() == before
