"""Validators for the search: what a candidate is worth by what it writes on training prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from effopd.data.problem import Problem, Verifier
from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.logprobs import BATCH_TOKENS
from effopd.evaluation.rollout_sources import RolloutSource
from effopd.evaluation.routing import Teachers, routed_reverse_kl
from effopd.evaluation.statistics import mean
from effopd.models.policy import Policy
from effopd.rollouts.rollout import Rollout
from effopd.search.validation import Draw, Score, score_of


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
    levels: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_prompts(self.prompts)
        if self.levels is not None and (len(self.levels) != 2 or self.levels[0] > self.levels[1]):
            raise ConfigError(f"levels must be the lowest and the highest level, got {self.levels}")

    def selected(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems of the levels asked for."""
        if self.levels is None:
            return list(problems)
        low, high = self.levels
        found = [problem for problem in problems if low <= problem.level <= high]
        if not found:
            there = sorted({problem.level for problem in problems})
            raise ConfigError(
                f"no training problem has a level from {low} to {high} (validation.levels); the "
                f"levels there are: {', '.join(map(str, there))}"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class TeacherKLValidation:
    """Minus the reverse KL to the teacher on the student's own answers: dense and smooth.

    Attributes:
        prompts: Number of training prompts.
        resample: Draw new prompts for every search instead of one fixed set.
        reduce: "token": mean over the tokens of each answer, then over answers. "sequence": sum
            over the tokens of each answer (the divergence of equation 7), then mean over answers.
    """

    type: Literal["teacher_kl"] = "teacher_kl"
    prompts: int = 50
    resample: bool = True
    reduce: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        check_prompts(self.prompts)


def check_prompts(prompts: int) -> None:
    """Refuses to score on nothing."""
    if prompts < 1:
        raise ConfigError(f"prompts must be at least 1, got {prompts}")


Measure = Callable[[Sequence[Rollout]], list[float]]
"""One number per rollout, in their order; higher is better."""


def accuracy_measure(verifier: Verifier) -> Measure:
    """The verifier's reward of each answer."""
    return lambda rollouts: verifier.rewards([rollout.answer for rollout in rollouts])


def teacher_kl_measure(
    student: Policy,
    teachers: Teachers,
    reduce: str,
    *,
    teacher_temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
) -> Measure:
    """Minus the reverse KL of each answer to its teacher in nats (per token, or summed).

    Tokens of which a server says nothing are left out. An answer without any other has the mean of
    the other answers, so that it changes no comparison.
    """
    collapse: Callable[[Sequence[float]], float] = mean if reduce == "token" else sum

    def measure(rollouts: Sequence[Rollout]) -> list[float]:
        divergences = routed_reverse_kl(
            student,
            teachers,
            rollouts,
            teacher_temperature=teacher_temperature,
            batch_tokens=batch_tokens,
        )
        known = [[nats for nats in tokens if not math.isnan(nats)] for tokens in divergences]
        values = [-collapse(tokens) if tokens else None for tokens in known]
        if not (found := [value for value in values if value is not None]):
            raise NonFiniteError("no token of any answer has a divergence from its teacher")
        return [mean(found) if value is None else value for value in values]

    return measure


@dataclass(frozen=True, kw_only=True)
class RolloutValidator:
    """Scores the live student by what it writes; a teacher may have to score every token."""

    source: RolloutSource
    measure: Measure
    scores_with_teacher: bool

    def __call__(self, draw: Draw) -> Score:
        """The score; not finite when the student's weights or logits are not."""
        try:
            rollouts = self.source.rollouts(draw)
            values = self.measure(rollouts)
        except NonFiniteError:
            return Score(value=float("nan"))
        lengths = [rollout.completion.sampled_tokens for rollout in rollouts]
        return score_of(
            values,
            lengths,
            self.source.truncated(rollouts),
            tokens=sum(lengths),
            teacher_tokens=sum(lengths) if self.scores_with_teacher else 0,
        )
