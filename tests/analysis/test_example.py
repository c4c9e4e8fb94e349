"""Which question is shown, and what its record says."""

import pytest

from effopd.analysis.example import (
    Answer,
    Choice,
    Question,
    example_record,
    telling_question,
)
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.policy import Sample

QUESTIONS = [Question(problem_id=f"p{i}", prompt=f"What is {i}?") for i in range(4)]


def answer(reward: float | None, tokens: int = 2) -> Answer:
    ids = tuple(range(10, 10 + tokens))
    return Answer(
        sample=Sample(prompt_ids=(1,), completion_ids=ids),
        text=f"{tokens} tokens",
        finish_reason="stop",
        reward=reward,
    )


def answers(**rewards: list[float | None]) -> dict[str, list[Answer]]:
    return {writer: [answer(reward) for reward in found] for writer, found in rewards.items()}


@pytest.mark.parametrize(
    ("early", "rescaled", "teacher", "expected"),
    [
        ([0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], (1, 2)),
        ([1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 1, 1], (3, 1)),
        ([1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], (0, 0)),
        ([0, 0, 0, 0], [0.5, 0, 0, 0], [1, 1, 1, 1], (0, 0)),
        ([0.5, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], (0, 1)),
        ([None] * 4, [None] * 4, [None] * 4, (0, 0)),
    ],
)
def test_a_telling_question_is_one_that_only_the_early_writer_gets_wrong(
    early: list[float], rescaled: list[float], teacher: list[float], expected: tuple[int, int]
) -> None:
    found = telling_question(answers(early=early, rescaled=rescaled, teacher=teacher), "early")
    assert (found.index, found.telling) == expected


@pytest.mark.parametrize(
    ("given", "early"),
    [
        (answers(early=[1.0], teacher=[1.0, 1.0]), "early"),
        (answers(early=[], teacher=[]), "early"),
        (answers(teacher=[1.0]), "early"),
        ({}, "early"),
    ],
)
def test_answers_that_do_not_fit_together_are_refused(
    given: dict[str, list[Answer]], early: str
) -> None:
    with pytest.raises(ConfigError, match="expected one of every writer to every question"):
        telling_question(given, early)


def test_the_record_holds_the_chosen_answers_as_every_student_reads_them() -> None:
    given = {
        "early": [answer(0.0, 1), answer(0.0, 2), answer(1.0, 3), answer(1.0, 4)],
        "teacher": [answer(1.0, 2), answer(1.0, 3), answer(1.0, 4), answer(0.0, 7)],
    }
    found = example_record(
        QUESTIONS,
        given,
        Choice(index=1, telling=2),
        {"early": [[0.1, 0.2], [0.3, 0.4, 0.5]], "rescaled": [[1.0, 2.0], [3.0, 4.0, 5.0]]},
        decode=lambda token: f"<{token}>",
    )
    assert found == {
        "schema": 1,
        "problem_id": "p1",
        "prompt": "What is 1?",
        "questions": 4,
        "telling": 2,
        "writers": [
            {"writer": "early", "accuracy": 0.5, "mean_tokens": 2.5},
            {"writer": "teacher", "accuracy": 0.75, "mean_tokens": 4.0},
        ],
        "answers": [
            {
                "writer": "early", "text": "2 tokens", "tokens": ["<10>", "<11>"],
                "finish_reason": "stop", "reward": 0.0,
                "kl_nats": {"early": [0.1, 0.2], "rescaled": [1.0, 2.0]},
            },
            {
                "writer": "teacher", "text": "3 tokens", "tokens": ["<10>", "<11>", "<12>"],
                "finish_reason": "stop", "reward": 1.0,
                "kl_nats": {"early": [0.3, 0.4, 0.5], "rescaled": [3.0, 4.0, 5.0]},
            },
        ],
    }  # fmt: skip


def test_answers_that_cannot_be_checked_have_no_accuracy() -> None:
    given = answers(early=[None], teacher=[None])
    values = {"early": [[0.0, 0.0], [0.0, 0.0]]}
    choice = telling_question(given, "early")
    found = example_record(QUESTIONS[:1], given, choice, values, decode=str)
    assert [row["accuracy"] for row in found["writers"]] == [None, None]


def test_divergences_of_other_answers_are_refused() -> None:
    given = answers(early=[0.0], teacher=[1.0])
    with pytest.raises(ParameterMismatchError, match=r"early has \[2, 3\] divergences"):
        example_record(
            QUESTIONS[:1],
            given,
            Choice(index=0, telling=1),
            {"early": [[0.0] * 2, [0.0] * 3]},
            decode=str,
        )
