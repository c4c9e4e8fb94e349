"""Every rollout is scored by its own teacher, as if it were alone."""

from collections.abc import Sequence

import pytest
from tests.fakes import TOKENIZER, policy_writer, tiny_policy
from tests.reference.kl_twin import log_probs_TV, reverse_kl

from effopd.data.problem import Problem
from effopd.errors import ConfigError
from effopd.evaluation.logprobs import completion_log_probs, completion_reverse_kl
from effopd.evaluation.routing import Teachers, routed_log_probs, routed_reverse_kl
from effopd.rollouts.rollout import Rollout

STUDENT, MATH, CODE = tiny_policy(0), tiny_policy(1), tiny_policy(2, sharpness=3.0)
BOTH = Teachers(policies={"math": MATH, "code": CODE})
NAMES = ("code", "math", "math", "code", "code", "math", "code")


def problem(teacher: str, number: int = 0) -> Problem:
    return Problem(id=f"p-{number}", prompt=f"{number % 7} + 4 =", teacher=teacher)


def answers(names: Sequence[str]) -> list[Rollout]:
    problems = [problem(name, i) for i, name in enumerate(names)]
    return policy_writer(STUDENT).answer(problems, range(len(names)))


ROLLOUTS = answers(NAMES)


# Who scores what ----------------------------------------------------------------------------------


def test_rollouts_are_split_in_the_order_of_the_teachers() -> None:
    assert BOTH.split(ROLLOUTS) == [("math", MATH, [1, 2, 5]), ("code", CODE, [0, 3, 4, 6])]
    swapped = Teachers(policies={"code": CODE, "math": MATH})
    assert [name for name, _, _ in swapped.split(ROLLOUTS)] == ["code", "math"]


def test_teachers_without_rollouts_are_left_out() -> None:
    assert BOTH.split(answers(["code", "code"])) == [("code", CODE, [0, 1])]
    assert BOTH.split([]) == []


def test_problems_that_name_nobody_have_the_only_teacher_or_the_nameless_one() -> None:
    assert Teachers.single(MATH).name_for(problem("")) == ""
    assert Teachers(policies={"math": MATH}).name_for(problem("")) == "math"
    assert Teachers(policies={"math": MATH, "": CODE}).name_for(problem("")) == ""
    assert Teachers.single(MATH).split(answers([""])) == [("", MATH, [0])]


@pytest.mark.parametrize(
    ("teachers", "name", "message"),
    [
        (BOTH, "", "problem p-0 names no teacher; known are 'math', 'code'"),
        (BOTH, "law", "problem p-0 names the teacher 'law'; known are 'math', 'code'"),
        (Teachers.single(MATH), "math", "problem p-0 names the teacher 'math'; known are ''"),
    ],
)
def test_unknown_and_ambiguous_names_are_refused(
    teachers: Teachers, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        teachers.split(answers([name]))


def test_no_teacher_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Teachers(policies={})


# Scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_log_probs_are_those_of_each_rollout_alone_under_its_own_teacher(
    temperature: float,
) -> None:
    found = routed_log_probs(BOTH, ROLLOUTS, temperature=temperature, batch_tokens=16)
    assert [len(row) for row in found] == [len(r.completion.token_ids) for r in ROLLOUTS]
    for name, rollout, row in zip(NAMES, ROLLOUTS, found, strict=True):
        teacher = BOTH.policies[name]
        alone = completion_log_probs(teacher, [rollout.sample], temperature=temperature)
        assert row == pytest.approx(alone[0], abs=1e-5)
        twin = log_probs_TV(teacher.model, rollout.sample, len(TOKENIZER), temperature)
        tokens = rollout.completion.token_ids
        assert row == pytest.approx(
            [twin[t][token].item() for t, token in enumerate(tokens)], abs=1e-5
        )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_reverse_kl_is_that_of_each_rollout_alone_to_its_own_teacher(temperature: float) -> None:
    settings = {"teacher_temperature": temperature}
    found = routed_reverse_kl(STUDENT, BOTH, ROLLOUTS, batch_tokens=16, **settings)
    for name, rollout, row in zip(NAMES, ROLLOUTS, found, strict=True):
        teacher = BOTH.policies[name]
        alone = completion_reverse_kl(STUDENT, teacher, [rollout.sample], **settings)
        assert row == pytest.approx(alone[0], rel=1e-4, abs=1e-6)
        twin = reverse_kl(STUDENT.model, teacher.model, rollout.sample, len(TOKENIZER), temperature)
        assert row == pytest.approx(twin, rel=1e-4, abs=1e-6)


def test_the_teachers_differ_so_that_a_mix_up_would_show() -> None:
    exchanged = Teachers(policies={"math": CODE, "code": MATH})
    ours, theirs = (routed_reverse_kl(STUDENT, each, ROLLOUTS) for each in (BOTH, exchanged))
    for one, other in zip(ours, theirs, strict=True):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.01


def test_one_teacher_scores_like_the_unrouted_functions() -> None:
    rollouts = answers([""] * 5)
    samples = [r.sample for r in rollouts]
    single = Teachers.single(MATH)
    assert routed_log_probs(single, rollouts) == completion_log_probs(MATH, samples)
    assert routed_reverse_kl(STUDENT, single, rollouts) == completion_reverse_kl(
        STUDENT, MATH, samples
    )


def test_no_rollouts_no_numbers() -> None:
    assert routed_log_probs(BOTH, []) == []
    assert routed_reverse_kl(STUDENT, BOTH, []) == []
