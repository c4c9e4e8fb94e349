"""Validators for the search: what a candidate is worth on training prompts.

All candidates of one search see the same prompts and the same random numbers.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from effopd.core.validation import Draw, Score
from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.metrics import mean
from effopd.evaluation.scoring import completion_reverse_kl
from effopd.models.policy import Policy
from effopd.rollouts.rollout import Rollout, Writer, mean_length, total_tokens, truncated_share
from effopd.rollouts.seeds import derive_seed
from effopd.tasks.problem import Problem, Verifier


@dataclass(frozen=True, kw_only=True)
class AccuracyValidation:
    """Verifier accuracy of sampled answers: the paper's score.

    Attributes:
        prompts: Number of training prompts.
        resample: Draw new prompts for every search instead of one fixed set.
    """

    type: Literal["accuracy"] = "accuracy"
    prompts: int = 50
    resample: bool = False

    def __post_init__(self) -> None:
        _check_prompts(self.prompts)


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
        _check_prompts(self.prompts)


class Measure(Protocol):
    """One number per rollout; higher is better."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Values in the order of the rollouts."""
        ...


def accuracy_measure(verifier: Verifier) -> Measure:
    """The verifier's reward of each answer."""

    def measure(rollouts: Sequence[Rollout]) -> list[float]:
        return [verifier.reward(r.problem, r.completion.text) for r in rollouts]

    return measure


def teacher_kl_measure(
    student: Policy, teacher: Policy, reduce: str, *, batch_sequences: int = 64
) -> Measure:
    """Minus the reverse KL of each answer in nats (per token, or summed)."""
    collapse: Callable[[Sequence[float]], float] = mean if reduce == "token" else sum

    def measure(rollouts: Sequence[Rollout]) -> list[float]:
        samples = [r.sample for r in rollouts]
        divergences = completion_reverse_kl(
            student, teacher, samples, batch_sequences=batch_sequences
        )
        return [-collapse(tokens) for tokens in divergences]

    return measure


@dataclass(frozen=True, kw_only=True)
class RolloutValidator:
    """Scores the live student by what it writes.

    Attributes:
        writer: The student's engine and sampling.
        problems: Training problems to draw from.
        measure: Value of each rollout.
        prompts: Problems per draw.
        resample: New problems for every search; False keeps one fixed set (re-tests are fresh).
        seed: Seed of the run.
        scores_with_teacher: Whether the measure has the teacher score every token.
    """

    writer: Writer
    problems: Sequence[Problem]
    measure: Measure
    prompts: int
    resample: bool
    seed: int
    scores_with_teacher: bool

    def __call__(self, draw: Draw) -> Score:
        """The score; not finite when the student's weights or logits are not."""
        problems = self.draw_problems(draw)
        seeds = [
            derive_seed(self.seed, "validate", draw.step, int(draw.fresh), i)
            for i in range(len(problems))
        ]
        self.writer.engine.sync_weights()
        try:
            rollouts = self.writer.answer(problems, seeds)
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
            truncated_share=truncated_share(rollouts),
        )

    def draw_problems(self, draw: Draw) -> list[Problem]:
        """The problems of a draw: a pure function of seed and draw."""
        which = f"{draw.step}/{draw.fresh}" if self.resample or draw.fresh else "fixed"
        rng = random.Random(f"{self.seed}/validation/{which}")
        return rng.sample(list(self.problems), min(self.prompts, len(self.problems)))


def _check_prompts(prompts: int) -> None:
    if prompts < 1:
        raise ConfigError(f"prompts must be at least 1, got {prompts}")
