"""From answers of the rollout servers to the score of a candidate; knows nothing of verl."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from effopd.errors import ValidatorError
from effopd.evaluation.rollout_sources import sample_indices
from effopd.integrations.verl.settings import RewardValidation, ServedKLValidation, Validation
from effopd.search.validation import Draw, Score, score_of


@dataclass(frozen=True, kw_only=True)
class ServedAnswer:
    """One answer as verl hands it back."""

    tokens: int  # that the student sampled; those of tools do not count
    is_truncated: bool
    reward: float
    log_ratios: tuple[float, ...] = ()  # log student - log teacher in nats, where it was asked


def drawn_prompts(available: int, validation: Validation, seed: int, draw: Draw) -> list[int]:
    """Distinct indices of the training prompts of a search: a pure function of its arguments."""
    count = min(validation.prompts, available)
    return sample_indices(draw, available, count, seed, resample=validation.resample)


def score_answers(answers: Sequence[ServedAnswer], validation: Validation) -> Score:
    """The score of a candidate from its answers, one a prompt, in the order of the prompts."""
    if any(not answer.tokens for answer in answers):
        raise ValidatorError("a rollout server returned an empty answer: check its log")
    values, lengths = [], [answer.tokens for answer in answers]
    for answer in answers:  # higher is better
        if isinstance(validation, RewardValidation):
            values.append(answer.reward)
            continue
        if len(answer.log_ratios) != answer.tokens:
            raise ValidatorError(
                f"the teacher scored {len(answer.log_ratios)} of {answer.tokens} sampled tokens"
            )
        total = sum(answer.log_ratios)
        values.append(-total if validation.reduce == "sequence" else -total / answer.tokens)
    return score_of(
        values,
        lengths,
        [float(answer.is_truncated) for answer in answers],
        tokens=sum(lengths),
        teacher_tokens=sum(lengths) if isinstance(validation, ServedKLValidation) else 0,
    )


def log_ratios(
    prompt: int, sampled: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor
) -> tuple[float, ...]:
    """`log student - log teacher` of each sampled token, in nats.

    verl masks what tools and users wrote: such tokens are in `student` and `teacher`, and not in
    `sampled`. Row i of the teacher's is that of the token behind position i of the whole sequence.
    """
    scored = teacher[prompt - 1 : prompt - 1 + len(sampled), 0]
    ratios = student.double() - scored.double()
    return tuple(ratios[sampled].tolist())
