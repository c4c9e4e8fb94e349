"""From answers of the rollout servers to the score of a candidate; knows nothing of verl."""

from collections.abc import Sequence
from dataclasses import dataclass

from effopd.errors import ValidatorError
from effopd.evaluation.drawn_answers import drawn_places
from effopd.evaluation.metrics import mean
from effopd.integrations.verl.settings import RewardValidation, ServedKLValidation, Validation
from effopd.search.validation import Draw, Score


@dataclass(frozen=True, kw_only=True)
class ServedAnswer:
    """One answer as verl hands it back.

    Attributes:
        tokens: Tokens the student sampled; those of tools do not count.
        is_truncated: Whether it was cut at the length cap.
        reward: What the reward function said.
        log_ratios: `log student - log teacher` in nats of each sampled token; empty where the
            teacher was not asked.
    """

    tokens: int
    is_truncated: bool
    reward: float
    log_ratios: tuple[float, ...] = ()


def drawn_prompts(available: int, validation: Validation, seed: int, draw: Draw) -> list[int]:
    """Indices of the training prompts of a draw: a pure function of its arguments.

    Args:
        available: Prompts in the training set.
        validation: How many, and whether each search has its own.
        seed: Of the run.
        draw: The draw; candidates of one search share it.

    Returns:
        Distinct indices below `available`, at most `validation.prompts`.
    """
    count = min(validation.prompts, available)
    return drawn_places(draw, available, count, seed, resample=validation.resample)


def score_of(answers: Sequence[ServedAnswer], validation: Validation) -> Score:
    """The score of a candidate.

    Args:
        answers: One a prompt, in the order of the prompts.
        validation: What is measured.

    Returns:
        The mean over prompts, with one value a prompt.

    Raises:
        ValidatorError: An answer is empty.
    """
    if any(not answer.tokens for answer in answers):
        raise ValidatorError("a rollout server returned an empty answer: check its log")
    values = [_value(answer, validation) for answer in answers]
    tokens = sum(answer.tokens for answer in answers)
    return Score(
        value=mean(values),
        per_prompt=tuple(values),
        tokens=tokens,
        teacher_tokens=tokens if isinstance(validation, ServedKLValidation) else 0,
        mean_length=tokens / len(answers),
        truncated_share=mean([float(answer.is_truncated) for answer in answers]),
    )


def _value(answer: ServedAnswer, validation: Validation) -> float:
    """Higher is better."""
    if isinstance(validation, RewardValidation):
        return answer.reward
    if len(answer.log_ratios) != answer.tokens:
        raise ValidatorError(
            f"the teacher scored {len(answer.log_ratios)} of {answer.tokens} sampled tokens"
        )
    total = sum(answer.log_ratios)
    return -total if validation.reduce == "sequence" else -total / answer.tokens
