"""Dense losses and scores with a teacher behind a server equal those with the same one here."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, WORLD, policy_writer, tiny_model, tiny_policy
from tests.support.architectures import make
from tests.support.fake_server import FakeServer, serving, settings_of
from tests.support.learning import accumulate, batch, gradient, rollouts
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.evaluator import EvaluationResult
from effopd.evaluation.importance_kl import (
    ImportanceKLValidation,
    ImportanceWeightedKLValidator,
    weighted_kl,
)
from effopd.evaluation.kept_states import KeptStates
from effopd.evaluation.rollout_sources import FreshRollouts
from effopd.evaluation.routing import Teachers, routed_log_probs, routed_reverse_kl
from effopd.evaluation.served_teacher import ServedTeacher, likely_bytes
from effopd.evaluation.validators import teacher_kl_measure
from effopd.methods import FullVocabularyKL, Learner, Resources, SampledTokenOPD
from effopd.models.policy import Policy
from effopd.rollouts.rollout import total_tokens
from effopd.search.validation import Draw, Score
from effopd.training.rows import rollout_rows

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

V = len(TOKENIZER)
ANSWERS = rollouts(6, 2)
EVERYTHING = list(range(len(ANSWERS)))
LENGTHS = [len(each.completion.token_ids) for each in ANSWERS]
TOKENS = total_tokens(ANSWERS)
STUDENT = tiny_policy(0)
PATHS = {"effopd": "/v1/states", "vllm": "/v1/completions", "sglang": "/generate"}
DIVERGENCES: list[dict[str, Any]] = [
    {"divergence": "reverse"}, {"divergence": "forward"}, {"divergence": "jsd", "beta": 0.3},
]  # fmt: skip


@pytest.fixture(params=["effopd", "vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with serving(tiny_model(1), TOKENIZER, flavor=request.param, most_likely=V) as found:
        yield found


def of(*flavors: str) -> Any:
    return pytest.mark.parametrize("server", flavors, indirect=True)


def teacher_of(server: FakeServer, top_k: int = V, **changes: Any) -> ServedTeacher:
    """It names every token, where it names tokens."""
    likely = {} if server.flavor == "effopd" else {"top_k": top_k}
    settings = settings_of(server, **(likely | changes))
    return ServedTeacher(settings, TOKENIZER, vocabulary_size=V, longest=64)


def teachers_of(teacher: Policy | ServedTeacher, gigabytes: float = 1.0) -> Teachers:
    return Teachers(policies={"": teacher}, kept=KeptStates(gigabytes))


def learned(
    teachers: Teachers, student: Policy = STUDENT, **settings: Any
) -> tuple[Learner, list[float], list[float], Tensor]:
    """Losses, sums and gradient of a batch in three micro-batches."""
    reference = tiny_policy(3) if "reward_scale" in settings else None
    resources = Resources(student=student, teachers=teachers, reference=reference)
    learner = FullVocabularyKL(**settings).learner(resources)
    assert learner.prepare(batch(ANSWERS)) >= TOKENS
    parts = accumulate(learner, ANSWERS, EVERYTHING, (3, 5))
    losses = [part.loss.item() for part in parts]
    sums = [float(part.sums.get("reverse_kl", 0.0)) for part in parts]
    return learner, losses, sums, gradient(student.model.parameters())


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).norm() <= 2e-5 * expected.norm()


# The loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
@pytest.mark.parametrize("settings", DIVERGENCES)
def test_a_loss_is_that_of_the_local_teacher(
    server: FakeServer, settings: dict[str, Any], gigabytes: float
) -> None:
    _, losses, sums, found = learned(teachers_of(teacher_of(server), gigabytes), **settings)
    _, expected_losses, expected_sums, expected = learned(teachers_of(tiny_policy(1)), **settings)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert sums == pytest.approx(expected_sums, rel=1e-4)
    assert_near(found, expected)


@of("effopd")
def test_temperature_and_reference_take_hidden_states(server: FakeServer) -> None:
    settings = {"teacher_temperature": 0.7, "reward_scale": 1.25}
    _, losses, _, found = learned(teachers_of(teacher_of(server)), **settings)
    _, expected_losses, _, expected = learned(teachers_of(tiny_policy(1)), **settings)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert_near(found, expected)


@of("vllm")
def test_likely_tokens_alone_do_not_mix_with_a_reference(server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="reward_scale other than 1 in full_kl mixes the logits"):
        learned(teachers_of(teacher_of(server)), reward_scale=1.25)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("granite", {"logits_scaling": 4.0}), ("gemma2", {"final_logit_softcapping": 0.5})],
)
@pytest.mark.parametrize("flavor", list(PATHS))
def test_scaled_and_capped_logits_arrive(flavor: str, kind: str, settings: dict[str, Any]) -> None:
    model = make(kind, seed=1, rows=V, **settings).eval()
    local = Policy(model, TOKENIZER)
    assert (local.logit_factor != 1.0) == (kind == "granite")
    assert (local.head_cap is not None) == (kind == "gemma2")
    _, expected_losses, _, expected = learned(teachers_of(local))
    with serving(model, TOKENIZER, flavor=flavor, most_likely=V) as server:
        served = teachers_of(teacher_of(server))
        _, losses, _, found = learned(served)
        nats = routed_reverse_kl(STUDENT, served, ANSWERS)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert_near(found, expected)
    for row, other in zip(
        nats, routed_reverse_kl(STUDENT, teachers_of(local), ANSWERS), strict=True
    ):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)


@of("vllm", "sglang")
def test_fewer_tokens_are_a_lower_bound(server: FakeServer) -> None:
    whole = routed_reverse_kl(STUDENT, teachers_of(tiny_policy(1)), ANSWERS)
    before, shares = [0.0] * TOKENS, []
    for k in (1, 4, 12):
        teachers = teachers_of(teacher_of(server, k))
        found = [v for row in routed_reverse_kl(STUDENT, teachers, ANSWERS) for v in row]
        highest = [value for row in whole for value in row]
        assert all(0 <= v <= w + 1e-5 for v, w in zip(found, highest, strict=True))
        assert sum(found) > sum(before)
        before = found
        learner, _, _, _ = learned(teachers)
        shares.append(learner.metrics()["teacher_covered"])
    # The share of the mass is that of the model itself.
    top = torch.cat([each.log_probs_NK.exp().sum(-1) for each in teacher_of(server, 12).read(
        [answer.sample for answer in ANSWERS])])  # fmt: skip
    assert shares[-1] == pytest.approx(top.mean().item(), rel=1e-5)
    assert shares == sorted(shares)


def test_a_run_without_likely_tokens_has_no_share() -> None:
    learner, _, _, _ = learned(teachers_of(tiny_policy(1)))
    assert learner.metrics().get("teacher_covered") is None


# One request an answer ----------------------------------------------------------------------------


def asked(server: FakeServer) -> int:
    """Requests for answers, without the fixed texts."""
    bodies = [body for path, body in server.requests if path == PATHS[server.flavor]]
    if server.flavor == "sglang":
        return sum(bool(body.get("top_logprobs_num")) for body in bodies)
    return (
        sum(body.get("prompt_logprobs") == V for body in bodies)
        if "v" in server.flavor
        else len(bodies)
    )


def test_a_batch_is_asked_for_once(server: FakeServer) -> None:
    teacher = teacher_of(server)
    teachers, before = teachers_of(teacher), asked(server)
    teachers.hold(ANSWERS)
    teachers.read(ANSWERS)
    routed_reverse_kl(STUDENT, teachers, ANSWERS)
    routed_reverse_kl(STUDENT, teachers, ANSWERS)
    resources = Resources(student=STUDENT, teachers=teachers, epochs=3)
    learner = FullVocabularyKL().learner(resources)
    assert learner.prepare(batch(ANSWERS)) == 0  # the search has had it read
    for _ in range(3):
        accumulate(learner, ANSWERS, EVERYTHING, (3, 5))
    gradient(STUDENT.model.parameters())
    assert asked(server) - before == len(ANSWERS)
    assert teachers.tokens_read == TOKENS
    width = 32 * 4 if teacher.gives_states else likely_bytes(V)
    assert teachers.kept.bytes == TOKENS * width == TOKENS * teacher.token_bytes
    learner.release()
    assert teachers.kept.bytes == 0


def test_log_probs_come_from_what_is_kept(server: FakeServer) -> None:
    """After a search on the batch a loss on sampled tokens asks for nothing, and counts nothing."""
    teachers = teachers_of(teacher_of(server, top_k=3))
    teachers.hold(ANSWERS)
    teachers.read(ANSWERS)
    before = len(server.requests)
    found = routed_log_probs(teachers, ANSWERS)
    learner = SampledTokenOPD().learner(Resources(student=STUDENT, teachers=teachers))
    assert learner.prepare(batch(ANSWERS)) == 0
    assert len(server.requests) == before
    expected = routed_log_probs(teachers_of(tiny_policy(1)), ANSWERS)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@of("vllm", "sglang")
def test_a_missing_value_of_a_kept_answer_is_missing(server: FakeServer) -> None:
    """An answer of which nothing came has no likely tokens, and no value for a loss."""
    teacher = teacher_of(server, top_k=3, concurrency=1, missing_retries=0, missing_share=0.9)
    teachers = teachers_of(teacher)
    teachers.hold(ANSWERS)
    server.strike({2: "empty"})
    teachers.read(ANSWERS)
    found = [all(map(math.isnan, row)) for row in routed_log_probs(teachers, ANSWERS)]
    assert found == [i == 1 for i in EVERYTHING]
    assert teacher.missing[1:] == (LENGTHS[1], 1)


def test_a_resumed_learner_knows_its_teacher(server: FakeServer) -> None:
    learner, _, _, _ = learned(teachers_of(teacher_of(server)))
    assert list(learner.state()) == ["served_teacher."]
    learner.load_state(learner.state())


# Scores -------------------------------------------------------------------------------------------


def searched(teachers: Teachers, settings: ImportanceKLValidation) -> list[Score]:
    """A tip and one candidate on its answers."""
    student = tiny_policy(0)
    source = FreshRollouts(
        writer=policy_writer(student), problems=list(WORLD.load().train), prompts=8, resample=True,
        seed=0,
    )  # fmt: skip
    validate = ImportanceWeightedKLValidator(source, student, teachers, settings)
    found = [validate(Draw(step=1))]
    with torch.no_grad():
        student.model.lm_head.weight.mul_(1.05)
    return [*found, validate(Draw(step=1, scale=2.0))]


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_scores_are_those_of_the_local_teacher(server: FakeServer, reduce: Any) -> None:
    settings = ImportanceKLValidation(reduce=reduce, trust_nats=10.0, trust_share=0.0)
    served, local = teachers_of(teacher_of(server)), teachers_of(tiny_policy(1))
    for ours, theirs in zip(searched(served, settings), searched(local, settings), strict=True):
        assert ours.per_prompt == pytest.approx(theirs.per_prompt, rel=1e-4)
        assert ours.teacher_tokens == theirs.teacher_tokens
    measured = [teacher_kl_measure(STUDENT, each, reduce)(ANSWERS) for each in (served, local)]
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)


# What is missing ----------------------------------------------------------------------------------


def test_a_missing_token_has_weight_0_in_loss_and_scores(server: FakeServer) -> None:
    server.only_one_at_a_time()
    teacher = teacher_of(server, concurrency=1, missing_retries=0, missing_share=0.9)
    fault = "nan" if server.flavor == "effopd" else "null"
    plan = {1: fault, 4: "empty"}
    gone = [[(i == 0 and t == n - 1) or i == 3 for t in range(n)] for i, n in enumerate(LENGTHS)]
    local = teachers_of(tiny_policy(1))
    whole = routed_reverse_kl(STUDENT, local, ANSWERS)

    server.strike(plan)
    found = routed_reverse_kl(STUDENT, teachers_of(teacher), ANSWERS)
    for row, other, lost in zip(found, whole, gone, strict=True):
        for value, expected, is_lost in zip(row, other, lost, strict=True):
            assert (
                math.isnan(value)
                if is_lost
                else value == pytest.approx(expected, rel=1e-3, abs=1e-5)
            )

    server.strike(plan)
    known = [
        [v for v, lost in zip(*pair, strict=True) if not lost]
        for pair in zip(whole, gone, strict=True)
    ]
    means = [-sum(row) / len(row) for row in known if row]
    means.insert(3, sum(means) / len(means))
    measured = teacher_kl_measure(STUDENT, teachers_of(teacher), "token")(ANSWERS)
    assert measured == pytest.approx(means, rel=1e-3)

    server.strike(plan)
    _, losses, sums, slope = learned(teachers_of(teacher))
    assert sum(losses) == pytest.approx(sum(map(sum, known)) / TOKENS, rel=1e-3)
    assert sum(sums) == pytest.approx(sum(map(sum, known)), rel=1e-3)
    assert slope.isfinite().all()

    result = EvaluationResult(rollouts=tuple(ANSWERS), rewards=(), kl_nats=tuple(found))
    tokens = [value for row in known for value in row]
    assert result.row()["reverse_kl"] == pytest.approx(sum(tokens) / len(tokens), rel=1e-3)
    assert rollout_rows(result, 1, TOKENIZER)[0]["kl_nats"][-1] is None


def test_a_teacher_that_says_nothing_is_no_score(server: FakeServer) -> None:
    teacher = teacher_of(server, missing_retries=0)
    server.strike(dict.fromkeys(range(1, 1 + len(ANSWERS)), "empty"))
    with pytest.raises(NonFiniteError, match="gave no finite value"):
        teacher_kl_measure(STUDENT, teachers_of(teacher), "token")(ANSWERS)


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_unknown_values_have_weight_0_in_a_weighted_divergence(reduce: str) -> None:
    behaviour: Sequence[Sequence[float]] = [[-1.0, -2.0], [-0.5, -0.2]]
    nats = [[0.3, math.nan], [0.1, 0.4]]
    found = weighted_kl(behaviour, behaviour, nats, reduce)
    estimate = sum(found.per_answer_nats) / 2
    assert estimate == pytest.approx(0.8 / (3 if reduce == "token" else 2))
    assert found.lengths == pytest.approx((2.0, 2.0))
