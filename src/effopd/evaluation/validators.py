"""Validators for the search: what a candidate is worth by what it writes on training prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from effopd.data.problem import Verifier
from effopd.errors import NonFiniteError
from effopd.evaluation.drawn_answers import DrawnAnswers, Levels, check_prefix, check_prompts
from effopd.evaluation.logprobs import BATCH_TOKENS
from effopd.evaluation.metrics import mean
from effopd.evaluation.routing import Teachers, routed_reverse_kl
from effopd.models.policy import Policy
from effopd.rollouts.rollout import Rollout, mean_length, total_tokens
from effopd.search.validation import Draw, Score


@dataclass(frozen=True, kw_only=True)
class AccuracyValidation:
    """Verifier accuracy of sampled answers: the paper's score.

    Attributes:
        prompts: Number of training prompts.
        resample: Draw new prompts for every search instead of one fixed set.
        levels: Lowest and highest level of the problems to draw from; None for all.
    """

    type: Literal["accuracy"] = "accuracy"
    prompts: int = 50
    resample: bool = False
    levels: Levels | None = None

    def __post_init__(self) -> None:
        check_prompts(self.prompts, self.levels)


@dataclass(frozen=True, kw_only=True)
class TeacherKLValidation:
    """Minus the reverse KL to the teacher on the student's own answers: dense and smooth.

    Attributes:
        prompts: Number of training prompts.
        resample: Draw new prompts for every search instead of one fixed set.
        reduce: "token": mean over the tokens of each answer, then over answers. "sequence": sum
            over the tokens of each answer (the divergence of equation 7), then mean over answers.
        prefix: Share of `sampling.max_new_tokens` that answers are written to, in (0, 1]. Below 1
            answers are cut on purpose and do not count as truncated.
        levels: Lowest and highest level of the problems to draw from; None for all.
    """

    type: Literal["teacher_kl"] = "teacher_kl"
    prompts: int = 50
    resample: bool = True
    reduce: Literal["token", "sequence"] = "token"
    prefix: float = 1.0
    levels: Levels | None = None

    def __post_init__(self) -> None:
        check_prompts(self.prompts, self.levels)
        check_prefix(self.prefix)


class Measure(Protocol):
    """One number per rollout; higher is better."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Values in the order of the rollouts."""
        ...


def accuracy_measure(verifier: Verifier) -> Measure:
    """The verifier's reward of each answer."""

    def measure(rollouts: Sequence[Rollout]) -> list[float]:
        return verifier.rewards([rollout.answer for rollout in rollouts])

    return measure


def teacher_kl_measure(
    student: Policy,
    teachers: Teachers,
    reduce: str,
    *,
    teacher_temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
) -> Measure:
    """Minus the reverse KL of each answer to its teacher in nats (per token, or summed)."""
    collapse: Callable[[Sequence[float]], float] = mean if reduce == "token" else sum

    def measure(rollouts: Sequence[Rollout]) -> list[float]:
        divergences = routed_reverse_kl(
            student,
            teachers,
            rollouts,
            teacher_temperature=teacher_temperature,
            batch_tokens=batch_tokens,
        )
        return [-collapse(tokens) for tokens in divergences]

    return measure


@dataclass(frozen=True, kw_only=True)
class RolloutValidator:
    """Scores the live student by what it writes.

    Attributes:
        answers: Writes the student's answers.
        measure: Value of each rollout.
        scores_with_teacher: Whether the measure has the teacher score every token.
    """

    answers: DrawnAnswers
    measure: Measure
    scores_with_teacher: bool

    def __call__(self, draw: Draw) -> Score:
        """The score; not finite when the student's weights or logits are not."""
        try:
            rollouts = self.answers.write(draw)
            values = self.measure(rollouts)
        except NonFiniteError:
            return Score(value=float("nan"))
        tokens = total_tokens(rollouts)
        return Score(
            value=mean(values),
            per_prompt=tuple(values),
            tokens=tokens,
            teacher_tokens=tokens if self.scores_with_teacher else 0,
            mean_length=mean_length(rollouts),
            truncated_share=self.answers.truncated_share(rollouts),
        )
