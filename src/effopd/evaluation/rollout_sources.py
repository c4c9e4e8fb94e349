"""Where the student's answers for scoring candidates come from, the same for all of a search."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from effopd.data.problem import Problem
from effopd.errors import ValidatorError
from effopd.rollouts.engine import Sampling, derive_seed
from effopd.rollouts.rollout import Rollout, Writer
from effopd.search.validation import Draw


@dataclass(frozen=True, kw_only=True)
class FreshRollouts:
    """Samples new answers: a pure function of the student's weights and the step of the search.

    Takes so many `prompts` of the training `problems`, new ones for every search, or, without
    `resample`, one fixed set.
    """

    writer: Writer
    problems: Sequence[Problem]
    prompts: int
    resample: bool
    seed: int
    costs_tokens: bool = field(default=True, init=False)

    @property
    def sampling(self) -> Sampling:
        """How answers are sampled."""
        return self.writer.sampling

    def problems_of(self, draw: Draw) -> list[Problem]:
        """The problems of a search."""
        total, count = len(self.problems), min(self.prompts, len(self.problems))
        chosen = sample_indices(draw, total, count, self.seed, resample=self.resample)
        return [self.problems[i] for i in chosen]

    def rollouts(self, draw: Draw) -> list[Rollout]:
        """One answer a problem, by the student as it is now.

        The engine raises a NonFiniteError where the student's logits are not finite.
        """
        problems = self.problems_of(draw)
        seeds = [validation_seed(self.seed, draw, i) for i in range(len(problems))]
        self.writer.engine.sync_weights()
        return self.writer.answer(problems, seeds)

    def truncated(self, rollouts: Sequence[Rollout]) -> list[float]:
        """1 for each answer that ran into the length cap, else 0."""
        return [float(rollout.completion.finish_reason == "length") for rollout in rollouts]


@dataclass(kw_only=True)
class TrainingBatchRollouts:
    """Reuses what the student wrote for its next update, so that a search samples nothing.

    The batch is as good as answers of its own: its prompts had no part in the displacement that
    is searched along. At most `prompts` of its answers are used.
    """

    sampling: Sampling
    prompts: int
    costs_tokens: bool = field(default=False, init=False)
    _rollouts: Sequence[Rollout] = field(default=(), init=False)
    _are_cut: bool = field(default=False, init=False)

    def reuse(self, rollouts: Sequence[Rollout], *, are_cut: bool) -> None:
        """Takes the batch that the student, as it is now, wrote; `are_cut` if cut on purpose."""
        self._rollouts, self._are_cut = rollouts, are_cut

    def rollouts(self, draw: Draw) -> list[Rollout]:
        """The first answers of the batch."""
        if not self._rollouts:
            raise ValidatorError("there is no batch to score on: call reuse() before each search")
        return list(self._rollouts[: self.prompts])

    def truncated(self, rollouts: Sequence[Rollout]) -> list[float]:
        """1 for each answer that ran into the length cap, else 0; 0 where it was cut on purpose."""
        is_cap = [rollout.completion.finish_reason == "length" for rollout in rollouts]
        return [float(is_long and not self._are_cut) for is_long in is_cap]


RolloutSource = FreshRollouts | TrainingBatchRollouts
"""Gives a validator one answer a prompt for a search; `costs_tokens` if sampled for it alone."""


def sample_indices(draw: Draw, total: int, count: int, seed: int, *, resample: bool) -> list[int]:
    """`count` distinct indices below `total`: a pure function of the seed and the search's step.

    Without `resample` they are the same for every search.
    """
    which = f"{draw.step}/False" if resample else "fixed"  # the text is part of recorded runs
    return random.Random(f"{seed}/validation/{which}").sample(range(total), count)


def validation_seed(seed: int, draw: Draw, *index: int) -> int:
    """The seed of one answer of a search, the same for all its candidates."""
    return derive_seed(seed, "validate", draw.step, 0, *index)
