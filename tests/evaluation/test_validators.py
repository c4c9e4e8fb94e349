"""Scores of candidates: closed forms, the paper's draw rules, and counts."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
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
from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.importance_kl import ImportanceKLValidation
from effopd.evaluation.rollout_sources import FreshRollouts
from effopd.evaluation.routing import Teachers
from effopd.evaluation.validators import (
    AccuracyValidation,
    RolloutValidator,
    TeacherKLValidation,
    accuracy_measure,
    teacher_kl_measure,
)
from effopd.rollouts.rollout import Rollout, mean_length, total_tokens
from effopd.search.validation import Draw

PROBLEMS = list(WORLD.load().train)
THREES = [Problem(id=f"p-{i}", prompt=f"{i % 7} + 0 =", answer="3") for i in range(30)]
ACCURACY = accuracy_measure(WORLD.verifier)
SETTINGS = [AccuracyValidation, TeacherKLValidation, ImportanceKLValidation]


def validator(engine: FakeEngine, **settings: Any) -> RolloutValidator:
    arguments: dict[str, Any] = {
        "writer": writer(engine),
        "problems": PROBLEMS,
        "prompts": 10,
        "resample": True,
        "seed": 1,
    }
    chosen = {name: settings.pop(name) for name in arguments.keys() & settings.keys()}
    return RolloutValidator(
        source=FreshRollouts(**(arguments | chosen)),
        **({"measure": ACCURACY, "scores_with_teacher": False} | settings),
    )


# What a score holds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "accuracy", "length"), [("# 3", 1.0, 3), ("# 4", 0.0, 3), ("1 ; # 3", 1.0, 5)]
)
def test_perfect_and_hopeless_policies(text: str, accuracy: float, length: int) -> None:
    score = validator(FakeEngine(script(text)), problems=THREES)(Draw(step=4))
    assert score.value == accuracy
    assert score.per_prompt == (accuracy,) * 10
    assert (score.tokens, score.teacher_tokens, score.mean_length) == (10 * length, 0, length)
    assert score.truncated_share == 0.0


def test_truncation_and_tokens_are_counted() -> None:
    engine = FakeEngine(bigram_table())
    score = validator(engine)(Draw(step=1))
    rollouts = writer(FakeEngine(bigram_table())).answer(
        validator(engine).source.problems_of(Draw(step=1)), [r.seed for r in engine.requests]
    )
    cut = [r.completion.finish_reason for r in rollouts].count("length")
    assert 0 < cut < 10
    assert score.truncated_share == cut / 10
    assert score.tokens == total_tokens(rollouts)
    assert score.mean_length == mean_length(rollouts)


def test_teacher_tokens_are_those_of_the_student_where_the_teacher_scores() -> None:
    score = validator(FakeEngine(bigram_table()), scores_with_teacher=True)(Draw(step=1))
    assert score.teacher_tokens == score.tokens > 0


def test_per_prompt_values_follow_the_drawn_problems() -> None:
    def number_of_the_problem(rollouts: Any) -> list[float]:
        return [float(r.problem.id.removeprefix("chain-")) for r in rollouts]

    scored = validator(FakeEngine(script("# 3")), measure=number_of_the_problem)
    drawn = scored.source.problems_of(Draw(step=2))
    assert scored(Draw(step=2)).per_prompt == tuple(
        float(problem.id.removeprefix("chain-")) for problem in drawn
    )


def test_weights_are_synced_before_every_score() -> None:
    engine = FakeEngine(script("# 4"))
    scored = validator(engine, problems=THREES)
    assert scored(Draw(step=1)).value == 0.0
    engine.table[:] = script("# 3")
    assert scored(Draw(step=1)).value == 1.0
    assert engine.syncs == 2


def test_nan_weights_are_a_score_that_is_not_finite() -> None:
    table = bigram_table()
    table[TOKENIZER.convert_tokens_to_ids("=")][4] = math.nan
    score = validator(FakeEngine(table))(Draw(step=1))
    assert not score.is_finite


def test_a_measure_that_meets_nan_is_a_score_that_is_not_finite() -> None:
    def broken(rollouts: Any) -> list[float]:
        raise NonFiniteError("NaN in the teacher")

    assert not validator(FakeEngine(bigram_table()), measure=broken)(Draw(step=1)).is_finite


# Which prompts and which random numbers -----------------------------------------------------------


def drawn(scored: RolloutValidator, step: int) -> list[str]:
    return [problem.id for problem in scored.source.problems_of(Draw(step=step))]


def test_a_draw_holds_distinct_problems_of_the_right_number() -> None:
    scored = validator(FakeEngine(script("# 3")))
    assert len(set(drawn(scored, 1))) == 10
    everything = validator(FakeEngine(script("# 3")), prompts=1000)
    assert sorted(drawn(everything, 1)) == sorted(p.id for p in PROBLEMS)


def test_prompts_are_new_for_every_search_or_always_the_same() -> None:
    scored = validator(FakeEngine(script("# 3")), resample=True)
    assert drawn(scored, 1) == drawn(scored, 1) != drawn(scored, 2)
    scored = validator(FakeEngine(script("# 3")), resample=False)
    assert all(drawn(scored, step) == drawn(scored, 1) for step in (2, 4, 1024))


@pytest.mark.parametrize("resample", [True, False])
def test_random_numbers_are_new_for_every_search_but_not_within_one(resample: bool) -> None:
    engine = FakeEngine(bigram_table())
    scored = validator(engine, resample=resample)

    def seeds(step: int, scale: float = 1.0) -> list[int]:
        engine.requests.clear()
        scored(Draw(step=step, scale=scale))
        return [request.seed for request in engine.requests]

    assert seeds(1) == seeds(1, 4.0)
    assert len({*seeds(1), *seeds(2)}) == 20


def test_runs_of_another_seed_validate_on_other_prompts() -> None:
    engine = FakeEngine(script("# 3"))
    assert drawn(validator(engine, seed=1), 1) != drawn(validator(engine, seed=2), 1)


# The divergence from the teacher ------------------------------------------------------------------


def answers(seed: int = 0) -> list[Rollout]:
    return policy_writer(tiny_policy(seed)).answer(PROBLEMS[:4], [3, 1, 4, 1])


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_teacher_kl_equals_the_twin(reduce: str) -> None:
    student, teacher = tiny_policy(0), tiny_policy(1)
    rollouts = answers()
    found = teacher_kl_measure(student, Teachers.single(teacher), reduce, batch_tokens=24)(rollouts)
    twins = [reverse_kl(student.model, teacher.model, r.sample, len(TOKENIZER)) for r in rollouts]
    lengths = [len(twin) for twin in twins]
    assert len(set(lengths)) > 1, "so that the two ways to reduce differ"
    divisors = lengths if reduce == "token" else [1] * 4
    expected = [-sum(twin) / n for twin, n in zip(twins, divisors, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_a_student_equal_to_its_teacher_scores_zero_and_no_other_more(reduce: str) -> None:
    rollouts = answers()
    itself, other = Teachers.single(tiny_policy()), Teachers.single(tiny_policy(1))
    assert teacher_kl_measure(tiny_policy(), itself, reduce)(rollouts) == [0.0] * 4
    assert max(teacher_kl_measure(tiny_policy(), other, reduce)(rollouts)) < 0


def test_moving_towards_the_teacher_raises_the_score() -> None:
    teacher = tiny_policy(1)
    student = tiny_policy(0)
    start = {n: p.detach().clone() for n, p in student.model.named_parameters()}
    goal = dict(teacher.model.named_parameters())
    values = []
    for share in (0.0, 0.5, 1.0):
        with torch.no_grad():
            for name, p in student.model.named_parameters():
                p.copy_(torch.lerp(start[name], goal[name], share))
        scored = validator(
            FakeEngine(bigram_table()),
            writer=policy_writer(student),
            measure=teacher_kl_measure(student, Teachers.single(teacher), "token"),
        )
        values.append(scored(Draw(step=1)).value)
    assert values[2] == pytest.approx(0.0, abs=1e-6)
    assert max(values[:2]) < -0.1


def test_every_answer_is_compared_with_the_teacher_of_its_problem_at_a_temperature() -> None:
    student = tiny_policy(0)
    teachers = Teachers(policies={"a": tiny_policy(1), "b": tiny_policy(2)})
    names = ("a", "b", "b", "a")
    rollouts = [
        replace(r, problem=replace(r.problem, teacher=name))
        for r, name in zip(answers(), names, strict=True)
    ]
    found = teacher_kl_measure(student, teachers, "sequence", teacher_temperature=2.0)(rollouts)
    expected = [
        -sum(
            reverse_kl(student.model, teachers.policies[name].model, r.sample, len(TOKENIZER), 2.0)
        )
        for name, r in zip(names, rollouts, strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-4)


# Levels -------------------------------------------------------------------------------------------

LEVELLED = [Problem(id=f"p-{level}", prompt="", level=level) for level in (1, 1, 3, 4, 9)]


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        (None, [1, 1, 3, 4, 9]),
        ((1, 3), [1, 1, 3]),
        ((3, 3), [3]),
        ((2, 9), [3, 4, 9]),
        ((-5, 100), [1, 1, 3, 4, 9]),
    ],
)
def test_problems_of_levels(levels: tuple[int, int] | None, found: list[int]) -> None:
    assert [p.level for p in AccuracyValidation(levels=levels).selected(LEVELLED)] == found


def test_levels_that_no_problem_has_are_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"from 5 to 8 .*there are: 1, 3, 4, 9"):
        AccuracyValidation(levels=(5, 8)).selected(LEVELLED)


# Settings -----------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_paper_and_ours() -> None:
    assert (AccuracyValidation().prompts, AccuracyValidation().resample) == (50, False)
    for ours in (TeacherKLValidation(), ImportanceKLValidation()):
        assert (ours.prompts, ours.resample, ours.reduce) == (50, True, "token")


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prompts", [0, -1])
def test_refused_numbers_of_prompts(settings: Any, prompts: int) -> None:
    with pytest.raises(ConfigError, match=f"prompts must be at least 1, got {prompts}"):
        settings(prompts=prompts)


def test_refused_levels() -> None:
    with pytest.raises(ConfigError, match=r"lowest and the highest level, got \(3, 2\)"):
        AccuracyValidation(levels=(3, 2))


@pytest.mark.parametrize(
    ("name", "value"),
    [("trust_nats", 0.0), ("trust_nats", math.inf), ("trust_share", -0.1), ("trust_share", 1.1)],
)
def test_refused_trust_bounds(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        ImportanceKLValidation(**{name: value})  # type: ignore[arg-type]
