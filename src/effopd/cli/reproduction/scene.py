"""One seed's models, and the evaluation that every measurement uses."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from effopd.analysis.intervention_scores import Case, Passes, evaluate_interventions
from effopd.analysis.interventions import Intervention
from effopd.cli.reproduction.runs import base_directory, run_settings
from effopd.cli.reproduction.study import Study
from effopd.errors import NonFiniteError
from effopd.evaluation.routing import Teachers
from effopd.models.updates import Update, open_update
from effopd.records import Row
from effopd.training.build import Parts
from effopd.training.run import build_parts

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
        return float(self._row(update, intervention, teachers=None)["accuracy"])

    def accuracy_and_kl(self, update: Update, intervention: Intervention) -> tuple[float, float]:
        """The same, and the mean reverse KL to the teacher in nats a token on its own answers."""
        row = self._row(update, intervention, teachers=self.parts.teachers)
        return float(row["accuracy"]), float(row["reverse_kl"])

    def _row(self, update: Update, intervention: Intervention, teachers: Teachers | None) -> Row:
        passes = Passes(
            policy=self.parts.student,
            writer=self.parts.writer(self.parts.student),
            evaluator=self.parts.evaluator(),
            teachers=teachers,
            count=self.study.passes,
        )
        (row,) = evaluate_interventions([Case(intervention=intervention, update=update)], passes)
        if row["failure"] is not None:
            raise NonFiniteError(f"{intervention}: {row['failure']}")
        return row
