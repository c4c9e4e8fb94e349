"""Evaluations on fixed problems with fixed random numbers."""

from dataclasses import replace

import pytest
from tests.fakes import (
    TOKENIZER,
    WORLD,
    FakeEngine,
    bigram_table,
    policy_writer,
    script,
    tiny_policy,
    writer,
)
from tests.reference.kl_twin import reverse_kl

from effopd.data.problem import Problem
from effopd.evaluation.evaluator import Evaluator
from effopd.evaluation.routing import Teachers
from effopd.rollouts.engine import derive_seed

TASK = WORLD.load()
PROBLEMS = [Problem(id=f"p-{i}", prompt="3 + 4 =", answer=str(i % 4)) for i in range(8)]


def evaluator(**settings: object) -> Evaluator:
    arguments = {"problems": PROBLEMS, "verifier": WORLD.verifier, "seed": 5} | settings
    return Evaluator(**arguments)  # type: ignore[arg-type]


def test_row_of_a_known_evaluation() -> None:
    evaluation = evaluator().evaluate(writer(FakeEngine(script("# 3"))))
    assert evaluation.rewards == (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert evaluation.row() == {
        "accuracy": 0.25,
        "accuracy_se": pytest.approx((0.25 * 0.75 / 7) ** 0.5),
        "reverse_kl": None,
        "mean_length": 3.0,
        "truncated_share": 0.0,
        "n": 8,
        "verdicts": None,
    }


def test_row_without_verifier_and_with_truncation() -> None:
    engine = FakeEngine(script("1 2 3 4 5"))
    row = evaluator(verifier=None).evaluate(writer(engine, max_new_tokens=2)).row()
    assert row["accuracy"] is row["accuracy_se"] is row["reverse_kl"] is None
    assert (row["mean_length"], row["truncated_share"], row["n"]) == (2.0, 1.0, 8)


def test_seeds_depend_on_the_evaluator_and_the_place_alone() -> None:
    engine = FakeEngine(bigram_table())
    evaluator(seed=5).evaluate(writer(engine))
    assert [r.seed for r in engine.requests] == [derive_seed(5, "evaluate", i) for i in range(8)]
    first, second = (evaluator(seed=s).evaluate(writer(engine)) for s in (5, 6))
    assert first != second
    assert first == evaluator(seed=5).evaluate(writer(engine))


def test_divergence_of_the_students_answers_to_the_teacher_of_each_problem() -> None:
    student = tiny_policy(0)
    teachers = Teachers(policies={"one": tiny_policy(1), "other": tiny_policy(2)})
    names = ("one", "other", "one")
    problems = [replace(p, teacher=name) for p, name in zip(TASK.test, names, strict=False)]
    measured = evaluator(problems=problems)
    evaluation = measured.evaluate(policy_writer(student), student=student, teachers=teachers)
    assert measured.evaluate(policy_writer(student)).kl_nats == ()
    expected = [
        reverse_kl(student.model, teachers.policies[name].model, rollout.sample, len(TOKENIZER))
        for name, rollout in zip(names, evaluation.rollouts, strict=True)
    ]
    for found, twin in zip(evaluation.kl_nats, expected, strict=True):
        assert found == pytest.approx(twin, rel=1e-4, abs=1e-6)
    tokens = [value for row in expected for value in row]
    assert evaluation.row()["reverse_kl"] == pytest.approx(sum(tokens) / len(tokens), rel=1e-4)
