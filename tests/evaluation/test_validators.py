"""Scores of candidates: closed forms, the paper's draw rules, and counts."""

import math
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

from effopd.core.validation import Draw
from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.validators import (
    AccuracyValidation,
    RolloutValidator,
    TeacherKLValidation,
    accuracy_measure,
    teacher_kl_measure,
)
from effopd.rollouts.rollout import Rollout, mean_length, total_tokens
from effopd.tasks.problem import Problem

PROBLEMS = list(WORLD.load().train)
THREES = [Problem(id=f"p-{i}", prompt=f"{i % 7} + 0 =", answer="3") for i in range(30)]
ACCURACY = accuracy_measure(WORLD.verifier)


def validator(engine: FakeEngine, **settings: Any) -> RolloutValidator:
    arguments: dict[str, Any] = {
        "writer": writer(engine),
        "problems": PROBLEMS,
        "measure": ACCURACY,
        "prompts": 10,
        "resample": True,
        "seed": 1,
        "scores_with_teacher": False,
    }
    return RolloutValidator(**(arguments | settings))


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
        validator(engine).draw_problems(Draw(step=1)), [r.seed for r in engine.requests]
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
    drawn = scored.draw_problems(Draw(step=2))
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


def drawn(scored: RolloutValidator, step: int, fresh: bool = False) -> list[str]:
    return [problem.id for problem in scored.draw_problems(Draw(step=step, fresh=fresh))]


def test_a_draw_holds_distinct_problems_of_the_right_number() -> None:
    scored = validator(FakeEngine(script("# 3")))
    assert len(set(drawn(scored, 1))) == 10
    everything = validator(FakeEngine(script("# 3")), prompts=1000)
    assert sorted(drawn(everything, 1)) == sorted(p.id for p in PROBLEMS)


def test_resampled_prompts_are_new_for_every_search_and_re_test() -> None:
    scored = validator(FakeEngine(script("# 3")), resample=True)
    sets = [drawn(scored, 1), drawn(scored, 2), drawn(scored, 1, True), drawn(scored, 2, True)]
    assert sets == [
        drawn(scored, 1),
        drawn(scored, 2),
        drawn(scored, 1, True),
        drawn(scored, 2, True),
    ]
    assert len({tuple(sorted(s)) for s in sets}) == 4


def test_fixed_prompts_stay_but_re_tests_are_fresh() -> None:
    scored = validator(FakeEngine(script("# 3")), resample=False)
    fixed = drawn(scored, 1)
    assert all(drawn(scored, step) == fixed for step in (2, 4, 1024))
    assert drawn(scored, 1, True) != fixed
    assert drawn(scored, 1, True) != drawn(scored, 2, True)


@pytest.mark.parametrize("resample", [True, False])
def test_random_numbers_are_new_for_every_search_but_not_within_one(resample: bool) -> None:
    engine = FakeEngine(bigram_table())
    scored = validator(engine, resample=resample)

    def seeds(step: int, fresh: bool = False) -> list[int]:
        engine.requests.clear()
        scored(Draw(step=step, fresh=fresh))
        return [request.seed for request in engine.requests]

    assert seeds(1) == seeds(1)
    everything = seeds(1) + seeds(2) + seeds(1, True)
    assert len(set(everything)) == 30


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
    found = teacher_kl_measure(student, teacher, reduce, batch_sequences=3)(rollouts)
    twins = [reverse_kl(student.model, teacher.model, r.sample, len(TOKENIZER)) for r in rollouts]
    lengths = [len(twin) for twin in twins]
    assert len(set(lengths)) > 1, "so that the two ways to reduce differ"
    divisors = lengths if reduce == "token" else [1] * 4
    expected = [-sum(twin) / n for twin, n in zip(twins, divisors, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_a_student_equal_to_its_teacher_scores_zero_and_no_other_more(reduce: str) -> None:
    rollouts = answers()
    assert teacher_kl_measure(tiny_policy(), tiny_policy(), reduce)(rollouts) == [0.0] * 4
    assert max(teacher_kl_measure(tiny_policy(), tiny_policy(1), reduce)(rollouts)) < 0


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
            measure=teacher_kl_measure(student, teacher, "token"),
        )
        values.append(scored(Draw(step=1)).value)
    assert values[2] == pytest.approx(0.0, abs=1e-6)
    assert max(values[:2]) < -0.1


# Settings -----------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_paper_and_ours() -> None:
    assert (AccuracyValidation().prompts, AccuracyValidation().resample) == (50, False)
    assert (TeacherKLValidation().prompts, TeacherKLValidation().resample) == (50, True)
    assert TeacherKLValidation().reduce == "token"


@pytest.mark.parametrize("settings", [AccuracyValidation, TeacherKLValidation])
@pytest.mark.parametrize("prompts", [0, -1])
def test_refused_settings(settings: Any, prompts: int) -> None:
    with pytest.raises(ConfigError, match=f"prompts must be at least 1, got {prompts}"):
        settings(prompts=prompts)
