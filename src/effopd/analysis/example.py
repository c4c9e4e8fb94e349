"""One question answered by several models, with the divergence of every token, as a record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from effopd.analysis.behavior import TokenValues
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.policy import Sample
from effopd.records import SCHEMA, Row


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model wrote.

    Attributes:
        sample: Prompt and answer as token ids.
        text: The answer, decoded.
        finish_reason: "stop" or "length".
        reward: In [0, 1]; None where answers cannot be checked.
    """

    sample: Sample
    text: str
    finish_reason: str
    reward: float | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What was asked.

    Attributes:
        problem_id: Name of the problem.
        prompt: Its text.
    """

    problem_id: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which question is shown, and how many there were to choose from.

    Attributes:
        index: Of the question.
        telling: Questions that tell the writers apart; with 0 of them the first one is shown.
    """

    index: int
    telling: int


def telling_question(answers: Mapping[str, Sequence[Answer]], early: str) -> Choice:
    """The first question that all writers but `early` answer correctly and `early` does not.

    Args:
        answers: Writer to its answers, one a question, in the same order for all.
        early: The writer that fails.

    Returns:
        The choice.

    Raises:
        ConfigError: A writer did not answer each question, or `early` wrote nothing.

    Source: arXiv 2605.11739, appendix F.4, shows such a question and does not say how many it was
    chosen from; `telling` does.
    """
    _check(answers, early)
    found = [
        index
        for index, row in enumerate(zip(*answers.values(), strict=True))
        if all(_fits(answer, writer == early) for writer, answer in zip(answers, row, strict=True))
    ]
    return Choice(index=found[0] if found else 0, telling=len(found))


def example_record(
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Answer]],
    choice: Choice,
    kl_nats: Mapping[str, TokenValues],
    *,
    decode: Callable[[int], str],
) -> Row:
    """One question, every writer's answer to it, and how each student reads each answer.

    Args:
        questions: All that were asked.
        answers: Writer to its answers, one a question.
        choice: The question shown.
        kl_nats: Student to its divergence from the teacher at every token of the chosen answers,
            in the order of `answers`, nats.
        decode: One token id to its text.

    Returns:
        `schema`, `problem_id`, `prompt`; `questions` asked and how many were `telling`; `writers`,
        a list of `{"writer", "accuracy", "mean_tokens"}` over all questions; and `answers`, a list
        of `{"writer", "text", "tokens", "finish_reason", "reward", "kl_nats"}` where `kl_nats`
        holds, by student, one number per token. Text is as the models wrote it, see
        `records.display_text`.

    Raises:
        ParameterMismatchError: A student has not one number for each token.
    """
    chosen = {writer: written[choice.index] for writer, written in answers.items()}
    for student, values in kl_nats.items():
        found = [len(each) for each in values]
        expected = [len(answer.sample.completion_ids) for answer in chosen.values()]
        if found != expected:
            raise ParameterMismatchError(
                f"{student} has {found} divergences for answers of {expected} tokens: score the "
                "chosen answers, in the order of their writers"
            )
    return {
        "schema": SCHEMA,
        "problem_id": questions[choice.index].problem_id,
        "prompt": questions[choice.index].prompt,
        "questions": len(questions),
        "telling": choice.telling,
        "writers": [_writer_row(writer, written) for writer, written in answers.items()],
        "answers": [
            _shown(writer, answer, decode, {name: list(kl_nats[name][i]) for name in kl_nats})
            for i, (writer, answer) in enumerate(chosen.items())
        ],
    }


def _fits(answer: Answer, should_fail: bool) -> bool:
    """Whether an answer is right, or wrong where it should be; unchecked ones are neither."""
    return answer.reward is not None and (answer.reward == 1.0) != should_fail


def _shown(
    writer: str, answer: Answer, decode: Callable[[int], str], kl_nats: Mapping[str, list[float]]
) -> Row:
    return {
        "writer": writer,
        "text": answer.text,
        "tokens": [decode(token) for token in answer.sample.completion_ids],
        "finish_reason": answer.finish_reason,
        "reward": answer.reward,
        "kl_nats": dict(kl_nats),
    }


def _writer_row(writer: str, answers: Sequence[Answer]) -> Row:
    rewards = [answer.reward for answer in answers if answer.reward is not None]
    lengths = [len(answer.sample.completion_ids) for answer in answers]
    return {
        "writer": writer,
        "accuracy": sum(rewards) / len(rewards) if rewards else None,
        "mean_tokens": sum(lengths) / len(lengths),
    }


def _check(answers: Mapping[str, Sequence[Answer]], early: str) -> None:
    counts = {writer: len(written) for writer, written in answers.items()}
    if early not in counts or len(set(counts.values())) > 1 or counts[early] < 1:
        raise ConfigError(
            f"answers {counts}: expected one of every writer to every question, at least one "
            f"question, and {early!r} among the writers"
        )
