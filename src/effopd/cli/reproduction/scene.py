"""One seed's models, and the evaluation that every measurement uses."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from effopd.analysis.applying import intervened
from effopd.analysis.interventions import Intervention
from effopd.cli.assemble import build_parts
from effopd.cli.parts import Parts
from effopd.cli.reproduction.runs import base_directory, run_settings
from effopd.cli.reproduction.study import Study
from effopd.evaluation.metrics import mean
from effopd.models.updates import Update, open_update

BOTH = ("grpo", "opd")
"""Reinforcement learning and the distillation from its result."""


@dataclass(frozen=True)
class Scene:
    """The runs of one seed.

    Attributes:
        study: Sizes and directories.
        seed: Training seed.
    """

    study: Study
    seed: int

    @cached_property
    def base(self) -> Path:
        """Directory of the base model."""
        return base_directory(self.study)

    @cached_property
    def parts(self) -> Parts:
        """Base model as the live student, and the seed's teacher."""
        return build_parts(run_settings(self.study, "opd", self.seed), print)

    def update(self, method: str, step: int | None = None) -> Update:
        """The update of a checkpoint, the last one by default."""
        directory = self.study.checkpoint(method, self.seed, step or self.study.steps)
        return open_update(self.base, directory)

    def accuracy(self, update: Update, intervention: Intervention) -> float:
        """Mean accuracy of the changed model over passes."""
        return self._measured(update, intervention, with_teacher=False)[0]

    def accuracy_and_kl(self, update: Update, intervention: Intervention) -> tuple[float, float]:
        """The same, and the mean reverse KL to the teacher in nats a token on its own answers."""
        return self._measured(update, intervention, with_teacher=True)

    def _measured(
        self, update: Update, intervention: Intervention, *, with_teacher: bool
    ) -> tuple[float, float]:
        parts = self.parts
        rewards: list[float] = []
        divergences: list[float] = []
        with intervened(parts.student.model, intervention.apply(update)):
            for seed in range(self.study.passes):
                found = replace(parts.evaluator(), seed=seed).evaluate(
                    parts.writer(parts.student),
                    student=parts.student if with_teacher else None,
                    teachers=parts.teachers if with_teacher else None,
                )
                rewards += found.rewards
                divergences += [value for rollout in found.kl_nats for value in rollout]
        return mean(rewards), mean(divergences) if divergences else 0.0
