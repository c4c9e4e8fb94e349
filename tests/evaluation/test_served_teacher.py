"""K9: a teacher behind a server that fails in every way it can; the scores are the same."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model, tiny_policy
from tests.support.fake_server import FAULTS, FakeServer, patience_s, serving, settings_of
from tests.support.learning import rollouts
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ServerError
from effopd.evaluation.logprobs import completion_log_probs
from effopd.evaluation.routing import Teachers, routed_log_probs, routed_reverse_kl
from effopd.evaluation.served_teacher import ServedTeacher

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

ANSWERS = rollouts(4, 2)
SAMPLES = [rollout.sample for rollout in ANSWERS]


@pytest.fixture(params=["vllm", "sglang", "effopd"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with serving(tiny_model(1), TOKENIZER, flavor=request.param) as found:
        yield found


def teacher_of(server: FakeServer, **changes: Any) -> ServedTeacher:
    return ServedTeacher(
        settings_of(server, **changes), TOKENIZER, vocabulary_size=len(TOKENIZER), longest=64
    )


def of(flavor: str, *others: str) -> Any:
    return pytest.mark.parametrize("server", [flavor, *others], indirect=True)


def distributions(model: Any, sample: Any) -> Tensor:
    """Log-probabilities [n, V] in the places of a sample's completion tokens."""
    ids, start = sample.prompt_ids + sample.completion_ids, len(sample.prompt_ids)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)


def test_values_are_those_of_learned_tokens(server: FakeServer) -> None:
    sample = next(s for s in SAMPLES if len(s.completion_ids) > 3)
    marks = tuple(i % 2 == 1 for i in range(len(sample.completion_ids)))
    masked, teacher = replace(sample, learned=marks), teacher_of(server)
    rows = [i for i, mark in enumerate(marks) if mark]
    whole, found = (teacher.log_probs([each])[0] for each in (sample, masked))
    assert found == tuple(whole[i] for i in rows)
    if teacher.gives_states:
        whole_ND, found_ND = (teacher.states([each])[0] for each in (sample, masked))
        assert torch.equal(found_ND, whole_ND[rows])
    else:
        top, found_top = (teacher.likely([each], 3)[0] for each in (sample, masked))
        assert torch.equal(found_top.ids_NK, top.ids_NK[rows])
        assert torch.equal(found_top.log_probs_NK, top.log_probs_NK[rows])
    assert teacher.missing == (2 * (len(marks) + len(rows)), 0, 0)


def test_scores_are_those_of_the_model(server: FakeServer) -> None:
    found = teacher_of(server).log_probs(SAMPLES)
    expected = completion_log_probs(tiny_policy(1), SAMPLES)
    assert [len(row) for row in found] == [len(s.completion_ids) for s in SAMPLES]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@of("vllm")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_no_score(server: FakeServer, fault: str) -> None:
    undisturbed_by(fault, server, lambda teacher: teacher.log_probs(SAMPLES))


@of("vllm", "sglang")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_no_likely_token(server: FakeServer, fault: str) -> None:
    undisturbed_by(
        fault,
        server,
        lambda teacher: [[t.tolist() for t in found] for found in teacher.likely(SAMPLES, 3)],
    )


@of("effopd")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_no_hidden_state(server: FakeServer, fault: str) -> None:
    server.only_one_at_a_time()
    undisturbed_by(
        fault, server, lambda teacher: [hidden.tolist() for hidden in teacher.states(SAMPLES)]
    )


def undisturbed_by(fault: str, server: FakeServer, ask: Callable[[ServedTeacher], Any]) -> None:
    teacher = teacher_of(server, request_s=patience_s(fault))
    good = ask(teacher)
    server.strike({0: fault, 3: fault, 7: fault} if fault != "restart" else {3: fault})
    assert ask(teacher) == good
    assert fault in server.struck
    assert teacher.missing[1:] == (0, 0)


@pytest.mark.parametrize(
    ("server", "what"),
    [
        ("vllm", "log_probs"), ("vllm", "likely"), ("sglang", "log_probs"), ("sglang", "likely"),
        ("effopd", "log_probs"), ("effopd", "states"),
    ],
    indirect=["server"],
)  # fmt: skip
def test_another_model_after_a_restart_is_noticed(server: FakeServer, what: str) -> None:
    teacher = teacher_of(server)
    server.next_model = tiny_model(2)
    server.strike({3: "restart"})
    asked = {"likely": (SAMPLES, 3)}.get(what, (SAMPLES,))
    with pytest.raises(ServerError, match="is not one model"):
        getattr(teacher, what)(*asked)


def test_another_model_between_steps_is_noticed(server: FakeServer) -> None:
    server.only_one_at_a_time()
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


# What a server does not give ----------------------------------------------------------------------


def persistent(fault: str, times: int = 100) -> Callable[[int], str | None]:
    """Strikes the first answer of a step, behind the probe, however often it is asked for."""
    return lambda number: fault if 1 <= number <= times else None


def is_nan(value: float) -> bool:
    return math.isnan(value)


@pytest.mark.parametrize("fault", ["nan", "null"])
def test_a_missing_value_costs_one_token(server: FakeServer, fault: str) -> None:
    teacher = teacher_of(server, concurrency=1, missing_retries=2)
    good = teacher.log_probs(SAMPLES)
    server.strike(persistent(fault, 3))
    found = teacher.log_probs(SAMPLES)
    assert server.struck == [fault] * 3
    assert found[1:] == good[1:]
    assert found[0][:-1] == good[0][:-1]
    assert is_nan(found[0][-1])
    asked = sum(map(len, good))
    assert teacher.missing == (2 * asked, 1, 0)


def test_an_empty_answer_costs_one_answer(server: FakeServer) -> None:
    teacher = teacher_of(server, concurrency=1, missing_retries=0)
    good = teacher.log_probs(SAMPLES)
    server.strike({2: "empty"})
    found = teacher.log_probs(SAMPLES)
    assert len(found[1]) == len(good[1])
    assert all(map(is_nan, found[1]))
    assert [found[0], *found[2:]] == [good[0], *good[2:]]
    assert teacher.missing[1:] == (len(good[1]), 1)


@of("vllm", "sglang")
def test_a_missing_place_costs_its_likely_tokens(server: FakeServer) -> None:
    teacher = teacher_of(server, concurrency=1, missing_retries=0, missing_share=0.5)
    good = teacher.likely(SAMPLES, 3)
    server.strike({1: "null", 4: "empty"})
    found = teacher.likely(SAMPLES, 3)
    for i, (ours, theirs) in enumerate(zip(found, good, strict=True)):
        gone = {0: range(len(theirs.ids_NK) - 1, len(theirs.ids_NK)), 3: range(99)}.get(i, ())
        for row in range(len(theirs.ids_NK)):
            assert ours.log_probs_NK[row].isnan().all() == (row in gone)
            if row not in gone:
                assert torch.equal(ours.log_probs_NK[row], theirs.log_probs_NK[row])
                assert torch.equal(ours.ids_NK[row], theirs.ids_NK[row])
    assert teacher.missing[1:] == (1 + len(good[3].ids_NK), 1)


@of("effopd")
def test_a_missing_hidden_state_costs_one_token(server: FakeServer) -> None:
    server.only_one_at_a_time()
    teacher = teacher_of(server, concurrency=1, missing_retries=0, missing_share=0.5)
    good = teacher.states(SAMPLES)
    server.strike({1: "nan", 4: "empty"})
    found = teacher.states(SAMPLES)
    assert found[0][-1].isnan().all()
    assert torch.equal(found[0][:-1], good[0][:-1])
    assert found[3].shape == good[3].shape
    assert found[3].isnan().all()
    assert teacher.missing[1:] == (1 + len(good[3]), 1)


def test_more_than_the_share_is_an_error(server: FakeServer) -> None:
    teacher = teacher_of(server, concurrency=1, missing_retries=0, missing_share=0.0)
    server.strike({1: "nan", 3: "nan"})
    message = r"no finite value for 2 of \d+ tokens, in 2 of 8 answers \(0 empty\)"
    with pytest.raises(NonFiniteError, match=message):
        teacher.log_probs(SAMPLES)
    server.strike({1: "empty"})
    with pytest.raises(NonFiniteError, match="for 4 of 4 tokens, in 1 of 1 answers"):
        teacher.log_probs([next(s for s in SAMPLES if len(s.completion_ids) == 4)])
    server.strike({1: "nan"})  # of one answer alone is never too much
    assert is_nan(teacher.log_probs(SAMPLES)[0][-1])


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


# Likely tokens ------------------------------------------------------------------------------------


@of("vllm", "sglang")
def test_the_likely_tokens_are_those_of_the_model(server: FakeServer) -> None:
    teacher = teacher_of(server, top_k=5)
    for found, sample in zip(teacher.likely(SAMPLES, 5), SAMPLES, strict=True):
        expected = distributions(server.model, sample).topk(5)
        assert found.ids_NK.dtype == torch.int64
        assert found.log_probs_NK.dtype == torch.float32
        assert torch.equal(found.ids_NK, expected.indices)
        assert torch.allclose(found.log_probs_NK, expected.values, atol=1e-6)


@of("effopd")
def test_who_gives_hidden_states_names_no_likely_tokens(server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="gives hidden states, not likely tokens"):
        teacher_of(server).likely(SAMPLES, 3)


# Hidden states ------------------------------------------------------------------------------------


@of("effopd")
def test_hidden_states_and_head_are_those_of_the_model(server: FakeServer) -> None:
    teacher, local = teacher_of(server), tiny_policy(1)
    assert teacher.gives_states
    found = teacher.states(SAMPLES)
    with torch.no_grad():
        for hidden_ND, sample in zip(found, SAMPLES, strict=True):
            assert torch.allclose(hidden_ND, local.states([sample]).hidden_ND, atol=1e-5)
            logits_NV = hidden_ND @ teacher.head.weight_VD.T
            expected = distributions(server.model, sample)
            assert torch.allclose(logits_NV.log_softmax(-1), expected, atol=1e-5)
    assert torch.equal(teacher.head.weight_VD, local.head_weight_VD)
    assert teacher.head.bias_V is None
    asked = [path for path, _ in server.requests if path.startswith("/v1/head")]
    assert asked == [f"/v1/head?vocabulary_size={len(TOKENIZER)}"]


@of("vllm")
def test_hidden_states_need_the_teacher_server(server: FakeServer) -> None:
    teacher = teacher_of(server)
    assert not teacher.gives_states
    with pytest.raises(ConfigError, match="effopd serve-teacher"):
        teacher.states(SAMPLES)
    with pytest.raises(ConfigError, match="flavor = 'effopd'"):
        _ = teacher.head


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


@of("vllm", "sglang")
def test_a_divergence_needs_distributions(server: FakeServer) -> None:
    teachers = Teachers.single(teacher_of(server))
    with pytest.raises(ConfigError, match="gives log-probabilities of given tokens only"):
        routed_reverse_kl(tiny_policy(), teachers, ANSWERS)
    with pytest.raises(ConfigError, match=r"is needed: set teacher_server\.top_k"):
        teachers.read(ANSWERS)


def test_logits_need_a_local_teacher(server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="is behind a server, and logits of a model"):
        Teachers.single(teacher_of(server)).split_local(ANSWERS)


def test_jitter_does_not_depend_on_global_generators(server: FakeServer) -> None:
    teacher = teacher_of(server)
    before = random.getstate()
    server.strike({1: "500"})
    teacher.log_probs(SAMPLES)
    assert random.getstate() == before
