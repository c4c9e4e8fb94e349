"""What a step trains on: prompts, the student's answers to them, and rewards.

Legend: G groups (one per prompt), R responses per group; answers of a prompt stand together.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from effopd.data.problem import Problem, Verifier
from effopd.errors import ConfigError
from effopd.evaluation.grading import Verdicts, judge, sum_counts
from effopd.evaluation.statistics import mean
from effopd.methods import Batch
from effopd.objectives import informative_groups
from effopd.rollouts.engine import derive_seed
from effopd.rollouts.rollout import Rollout, Writer, total_tokens
from effopd.training.settings import TrainSettings

Informative = Callable[[Sequence[float]], bool]
"""Whether the rewards of one group teach anything."""

Rewarded = tuple[Rollout, float | None]
"""An answer and its reward."""


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Writes the answers of a step; a pure function of weights and step.

    Groups that are not `informative` are dropped and replaced by fresh prompts, in at most
    `max_refills` extra portions.
    """

    writer: Writer
    problems: Sequence[Problem]
    settings: TrainSettings
    seed: int
    verifier: Verifier | None = None
    informative: Informative | None = None
    max_refills: int = 0

    def __post_init__(self) -> None:
        if self.informative is not None and self.verifier is None:
            raise ConfigError("groups are chosen by their rewards: pass a verifier")

    def collect(self, step: int) -> Batch:
        """The rollouts of step `step`.

        With `informative` the batch is filled up to its size from further portions of prompts, and
        what is too much is dropped. When the refills run out it stays smaller; when no group at
        all is informative the last portion is kept, whose advantages are then all zero.
        """
        responses = self.settings.responses_per_prompt
        wanted = self.settings.prompts_per_step * responses
        written: list[Rewarded] = []
        kept: list[Rewarded] = []
        verdicts: list[Verdicts | None] = []
        for refill in range(self.max_refills + 1):
            portion, counted = self._portion(step, refill)
            verdicts.append(counted)
            written += portion
            for start in range(0, len(portion), responses):
                group = portion[start : start + responses]
                if self.informative is None or self.informative(_rewards(group)):
                    kept += group
            if len(kept) >= wanted:
                break
        chosen = kept[:wanted] or portion
        rewards = _rewards(written)
        return Batch(
            step=step,
            rollouts=tuple(rollout for rollout, _ in chosen),
            rewards=_rewards(chosen),
            responses=responses,
            written_tokens=total_tokens([rollout for rollout, _ in written]),
            reward=mean(rewards) if rewards else None,
            refills=refill,
            horizon=self._horizon(step),
            verdicts=sum_counts(verdicts),
        )

    def _portion(self, step: int, refill: int) -> tuple[list[Rewarded], Verdicts | None]:
        """Answers to one portion of prompts; refills have prompts and seeds of their own."""
        prompts, responses = self.settings.prompts_per_step, self.settings.responses_per_prompt
        stream = self.seed if refill == 0 else derive_seed(self.seed, "refill", refill)
        problems = step_problems(self.problems, stream, step, prompts)
        repeated = [problem for problem in problems for _ in range(responses)]
        seeds = [derive_seed(stream, "train", step, i) for i in range(len(repeated))]
        writer, horizon = self.writer, self._horizon(step)
        if horizon is not None:
            writer = replace(writer, sampling=replace(writer.sampling, max_new_tokens=horizon))
        rollouts = writer.answer(repeated, seeds)
        judgement = judge(self.verifier, rollouts)
        rewards = judgement.rewards or [None] * len(rollouts)
        return list(zip(rollouts, rewards, strict=True)), judgement.verdicts

    def _horizon(self, step: int) -> int | None:
        return self.settings.horizon.tokens_at(step, self.writer.sampling.max_new_tokens)


def step_problems(problems: Sequence[Problem], seed: int, step: int, count: int) -> list[Problem]:
    """Problems of step `step` (1 is the first): slices of a fresh shuffle per epoch.

    A pure function of its arguments, so a resumed run sees the same data.
    """
    chosen: list[Problem] = []
    position, end = (step - 1) * count, step * count
    while position < end:
        epoch, index = divmod(position, len(problems))
        order = list(range(len(problems)))
        random.Random(f"{seed}/epoch/{epoch}").shuffle(order)
        order = order[index : index + end - position]
        chosen += [problems[i] for i in order]
        position += len(order)
    return chosen


def rewards_differ(rewards: Sequence[float]) -> bool:
    """Whether a group of answers teaches anything: not all right, not all wrong."""
    return bool(informative_groups(torch.tensor([rewards], dtype=torch.float64))[0])


def _rewards(answers: Sequence[Rewarded]) -> tuple[float, ...]:
    return tuple(reward for _, reward in answers if reward is not None)
