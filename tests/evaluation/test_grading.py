"""Checked answers and their summary, by value."""

import math
from collections.abc import Sequence

import pytest

from effopd.data.code_tests import CodeTests
from effopd.data.problem import Answer, Problem
from effopd.errors import RecordError
from effopd.evaluation.grading import GradedAnswer, by_question, grade, rewards_of, summarise
from effopd.evaluation.statistics import average
from effopd.rollouts.engine import Completion
from effopd.rollouts.rollout import Rollout

ONE_TEST = CodeTests(kind="stdin", inputs=("",), outputs=("",))


class ByText:
    """A verifier whose verdicts are written in the completions."""

    counts: dict[str, int] = {}  # noqa: RUF012

    def verdicts(self, answers: Sequence[Answer]) -> list[str]:
        return [answer.completion.split()[0] for answer in answers]

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        raise AssertionError("verdicts say it all")

    def close(self) -> None:
        pass


def rollout(
    name: str, text: str, *, tokens: int = 3, cut: bool = False, **problem: object
) -> Rollout:
    return Rollout(
        problem=Problem(id=name, prompt="?", answer="2", **problem),  # type: ignore[arg-type]
        prompt_ids=(1, 2),
        completion=Completion(
            token_ids=(5,) * tokens,
            log_probs=(-1.0,) * tokens,
            finish_reason="length" if cut else "stop",
            text=text,
        ),
    )


def graded(question: str, sample: int, verdict: str, answer: str | None = None) -> GradedAnswer:
    return GradedAnswer(
        question=question, sample=sample, seed=0, prompt_tokens=2, tokens=10 * (sample + 1),
        truncated=verdict == "truncated", verdict=verdict, answer=answer, completion="",
    )  # fmt: skip


def test_an_answer_with_its_verdict() -> None:
    rollouts = [
        rollout("q-1", r"correct \boxed{2}"),
        rollout("q-2", "truncated", tokens=9, cut=True),
        rollout("q-3", r"passed \boxed{3}", tests=ONE_TEST),
    ]
    first, second, third = grade(ByText(), rollouts, [0, 1, 2], [7, 8, 9])
    assert first == GradedAnswer(
        question="q-1", sample=0, seed=7, prompt_tokens=2, tokens=3, truncated=False,
        verdict="correct", answer="2", completion=r"correct \boxed{2}",
    )  # fmt: skip
    assert (second.tokens, second.truncated, second.answer, second.reward) == (9, True, None, 0.0)
    assert (third.answer, third.reward, first.reward) == (None, 1.0, 1.0)
    assert GradedAnswer.from_row(first.row() | {"schema": 1}) == first
    with pytest.raises(RecordError, match="no field 'verdict'"):
        GradedAnswer.from_row({k: v for k, v in first.row().items() if k != "verdict"})


def test_groups_have_the_samples_in_order() -> None:
    mixed = [graded("b", 1, "wrong"), graded("a", 0, "wrong"), graded("b", 0, "wrong")]
    assert [[(g.question, g.sample) for g in group] for group in by_question(mixed)] == [
        [("b", 0), ("b", 1)], [("a", 0)],
    ]  # fmt: skip


def test_a_summary_by_value() -> None:
    answers = [
        graded("a", 0, "correct", "2"), graded("a", 1, "wrong", "3"),
        graded("a", 2, "correct", "2"),
        graded("b", 0, "wrong", "4"), graded("b", 1, "wrong", "4"), graded("b", 2, "correct", "5"),
        graded("c", 0, "no_answer"), graded("c", 1, "truncated"), graded("c", 2, "timeout", "9"),
    ]  # fmt: skip
    found = summarise(answers, votes=True)
    means = [2 / 3, 1 / 3, 0.0]
    assert (found["questions"], found["samples"]) == (3, 3)
    assert found["avg"]["mean"] == pytest.approx(1 / 3)
    error = math.sqrt(sum((m - 1 / 3) ** 2 for m in means) / 2 / 3)
    assert found["avg"]["standard_error"] == pytest.approx(error)
    assert found["avg"]["interval"] == list(average(rewards_of(by_question(answers))).interval)
    assert list(found["pass"]) == ["1", "2", "3"]
    # 1 - C(n - c, k) / C(n, k) with n = 3 and c = 2, 1, 0
    assert found["pass"]["2"]["mean"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["pass"]["3"]["mean"] == pytest.approx(2 / 3)
    assert found["maj"]["mean"] == pytest.approx(1 / 3)  # 2 is right, 4 is wrong, 9 is wrong
    assert found["truncated_share"] == pytest.approx(1 / 9)
    assert found["no_answer_share"] == pytest.approx(1 / 9)
    assert (found["mean_tokens"], found["tokens"]) == (20.0, 180)
    assert found["verdicts"] == {
        "correct": 3, "wrong": 3, "no_answer": 1, "truncated": 1, "timeout": 1,
    }  # fmt: skip


def test_programs_and_single_samples_have_no_vote() -> None:
    answers = [graded("a", 0, "passed"), graded("a", 1, "wrong_answer")]
    assert summarise(answers, votes=False)["maj"] is None
    single = summarise([graded("a", 0, "correct", "2")], votes=True)
    assert single["maj"] is None
    assert single["avg"] == {
        "mean": 1.0, "standard_error": None, "interval": None, "sampling_error": None,
    }  # fmt: skip
