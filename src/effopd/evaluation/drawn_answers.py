"""What the student writes for a draw, and the settings that every validator's prompts have."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from effopd.data.problem import Problem
from effopd.errors import ConfigError
from effopd.rollouts.engine import Sampling
from effopd.rollouts.rollout import Rollout, Writer, truncated_share
from effopd.rollouts.seeds import derive_seed
from effopd.search.validation import Draw

Levels = tuple[int, int]
"""Lowest and highest level of difficulty, both included."""


@dataclass(frozen=True, kw_only=True)
class DrawnAnswers:
    """Answers to the problems of a draw: a pure function of the student's weights and the draw.

    All candidates of one search see the same prompts and the same random numbers.

    Attributes:
        writer: The student's engine and sampling.
        problems: Training problems to draw from.
        prompts: Problems per draw.
        resample: New problems for every search; False keeps one fixed set (re-tests are fresh).
        seed: Seed of the run.
        prefix: Share of the length cap that answers are written to, in (0, 1].
    """

    writer: Writer
    problems: Sequence[Problem]
    prompts: int
    resample: bool
    seed: int
    prefix: float = 1.0
    costs_tokens: bool = field(default=True, init=False)

    @property
    def sampling(self) -> Sampling:
        """How answers are sampled."""
        return self.writer.sampling

    def draw_problems(self, draw: Draw) -> list[Problem]:
        """The problems of a draw: a pure function of seed and draw."""
        count = min(self.prompts, len(self.problems))
        chosen = drawn_places(draw, len(self.problems), count, self.seed, resample=self.resample)
        return [self.problems[i] for i in chosen]

    def write(self, draw: Draw) -> list[Rollout]:
        """One answer a problem, by the student as it is now.

        The engine raises a NonFiniteError where the student's logits are not finite.
        """
        problems = self.draw_problems(draw)
        seeds = [
            derive_seed(self.seed, "validate", draw.step, int(draw.fresh), i)
            for i in range(len(problems))
        ]
        self.writer.engine.sync_weights()
        return self._writer().answer(problems, seeds)

    def truncated_share(
        self, rollouts: Sequence[Rollout], weights: Sequence[float] | None = None
    ) -> float:
        """Share of answers cut at the length cap, in [0, 1]; 0 where they are cut on purpose.

        Args:
            rollouts: The answers.
            weights: One an answer, of mean 1; None for equal ones.

        Returns:
            The share.
        """
        return 0.0 if self.prefix < 1.0 else weighted_truncated_share(rollouts, weights)

    def _writer(self) -> Writer:
        """The writer with its length cap shortened."""
        sampling = self.writer.sampling
        cap = max(1, round(self.prefix * sampling.max_new_tokens))
        return replace(self.writer, sampling=replace(sampling, max_new_tokens=cap))


def drawn_places(draw: Draw, total: int, count: int, seed: int, *, resample: bool) -> list[int]:
    """Which of the training prompts a draw takes: a pure function of the arguments.

    Args:
        draw: The draw.
        total: Prompts there are.
        count: Prompts to take, at most `total`.
        seed: Of the run.
        resample: New ones for every search; False keeps one fixed set (re-tests are fresh).

    Returns:
        Distinct places below `total`.
    """
    which = f"{draw.step}/{draw.fresh}" if resample or draw.fresh else "fixed"
    return random.Random(f"{seed}/validation/{which}").sample(range(total), count)


def weighted_truncated_share(rollouts: Sequence[Rollout], weights: Sequence[float] | None) -> float:
    """Share of answers cut at the length cap, in [0, 1].

    Args:
        rollouts: The answers.
        weights: One an answer, of mean 1; None for equal ones.

    Returns:
        The share.
    """
    if weights is None:
        return truncated_share(rollouts)
    pairs = zip(rollouts, weights, strict=True)
    cut = sum(weight for r, weight in pairs if r.completion.finish_reason == "length")
    return cut / len(rollouts)


def problems_of_levels(problems: Sequence[Problem], levels: Levels | None) -> list[Problem]:
    """The problems whose level is in the range; all of them without one.

    Raises:
        ConfigError: There are none.
    """
    if levels is None:
        return list(problems)
    low, high = levels
    found = [problem for problem in problems if low <= problem.level <= high]
    if not found:
        there = sorted({problem.level for problem in problems})
        raise ConfigError(
            f"no training problem has a level from {low} to {high} (validation.levels); the "
            f"levels there are: {', '.join(map(str, there))}"
        )
    return found


def check_prompts(prompts: int, levels: Levels | None) -> None:
    """Refuses impossible numbers of prompts and ranges of levels.

    Raises:
        ConfigError: Fewer than one prompt, or an empty range.
    """
    if prompts < 1:
        raise ConfigError(f"prompts must be at least 1, got {prompts}")
    if levels is not None and (len(levels) != 2 or levels[0] > levels[1]):
        raise ConfigError(f"levels must be the lowest and the highest level, got {levels}")


def check_prefix(prefix: float) -> None:
    """Refuses impossible shares of an answer.

    Raises:
        ConfigError: The share is not in (0, 1].
    """
    if not 0 < prefix <= 1:
        raise ConfigError(f"prefix must be above 0 and at most 1, got {prefix}")
