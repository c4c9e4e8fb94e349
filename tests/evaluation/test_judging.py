"""Answers checked in one call, and the verdicts of that call alone."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from tests.fakes import FakeEngine, script, writer

from effopd.data.problem import Answer, Problem
from effopd.evaluation.evaluator import Evaluator
from effopd.evaluation.grading import Judgement, judge, sum_counts
from effopd.evaluation.validators import accuracy_measure
from effopd.rollouts.rollout import Rollout

PROBLEMS = [Problem(id=f"p-{i}", prompt="3 + 4 =", answer=str(i % 4)) for i in range(8)]


class Plain:
    """Right where the last word is the reference; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.seen: list[Answer] = []

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        self.calls.append(len(answers))
        self.seen += answers
        return [float(not a.is_truncated and a.completion[-1] == a.problem.answer) for a in answers]


class Counting(Plain):
    """Also counts verdicts."""

    def __init__(self) -> None:
        super().__init__()
        self.verdicts = Counter({"right": 0, "wrong": 0, "truncated": 0, "timeout": 0})

    @property
    def counts(self) -> Mapping[str, int]:
        return self.verdicts

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        rewards = super().rewards(answers)
        for answer, reward in zip(answers, rewards, strict=True):
            self.verdicts[
                "truncated" if answer.is_truncated else ("wrong", "right")[int(reward)]
            ] += 1
        return rewards

    def close(self) -> None:
        """Nothing to end."""


def rollouts(text: str = "# 3", longest: int = 6) -> list[Rollout]:
    own = writer(FakeEngine(script(text)), max_new_tokens=longest)
    return own.answer(PROBLEMS, range(len(PROBLEMS)))


def test_answers_are_what_the_rollouts_say() -> None:
    verifier = Plain()
    whole, cut = rollouts(), rollouts("1 2 3 4 5", longest=2)
    judge(verifier, [*whole, *cut])
    assert verifier.calls == [16]
    assert [answer.problem for answer in verifier.seen] == [*PROBLEMS, *PROBLEMS]
    assert {answer.completion for answer in verifier.seen} == {"# 3", "1 2"}
    assert [answer.is_truncated for answer in verifier.seen] == [False] * 8 + [True] * 8


def test_rewards_with_and_without_verdicts() -> None:
    right = tuple(float(i % 4 == 3) for i in range(8))
    assert judge(None, rollouts()) == Judgement(rewards=(), verdicts=None)
    assert judge(Plain(), rollouts()) == Judgement(rewards=right, verdicts=None)
    assert judge(Counting(), rollouts()) == Judgement(
        rewards=right, verdicts={"right": 2, "wrong": 6}
    )


def test_verdicts_are_those_of_one_call() -> None:
    verifier = Counting()
    judge(verifier, rollouts())
    assert judge(verifier, rollouts("1 2 3 4 5", longest=2)).verdicts == {"truncated": 8}
    assert judge(verifier, []).verdicts == {}


def test_sums_of_verdicts() -> None:
    assert sum_counts([]) is None
    assert sum_counts([None, None]) is None
    assert sum_counts([{"a": 1}, None, {"b": 2, "a": 3}]) == {"a": 4, "b": 2}


def test_an_evaluation_asks_once_and_records_the_verdicts() -> None:
    verifier = Counting()
    evaluator = Evaluator(problems=PROBLEMS, verifier=verifier, seed=5)
    row = evaluator.evaluate(writer(FakeEngine(script("# 3")))).row()
    assert verifier.calls == [8]
    assert (row["accuracy"], row["verdicts"]) == (0.25, {"right": 2, "wrong": 6})


@pytest.mark.parametrize("verifier", [Plain(), Counting()], ids=["plain", "counting"])
def test_a_validation_asks_once(verifier: Plain) -> None:
    assert sum(accuracy_measure(verifier)(rollouts())) == 2.0
    assert verifier.calls == [8]
