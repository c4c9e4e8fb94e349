"""How good interventions are, by the evaluation that training uses."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effopd.analysis.applying import intervened
from effopd.analysis.interventions import Intervention
from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.evaluator import Evaluation, Evaluator
from effopd.evaluation.routing import Teachers
from effopd.evaluation.statistics import mean
from effopd.models.layout import Heads
from effopd.models.policy import Policy
from effopd.models.updates import Update
from effopd.rollouts.rollout import Writer
from effopd.rollouts.seeds import derive_seed
from effopd.search.validation import standard_error

Row = dict[str, Any]
KEY = ("kind", "checkpoint", "value", "setting", "other")
"""Columns that tell one intervention from another."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An intervention on an update, and how a table names it.

    Attributes:
        intervention: What is done.
        update: Base and tuned model.
        heads: See `Intervention.apply`.
        checkpoint: Name of the tuned model.
        other: Name of a second one that the intervention takes from; "" without.
    """

    intervention: Intervention
    update: Update
    heads: Heads | None = None
    checkpoint: str = ""
    other: str = ""

    @property
    def row(self) -> Row:
        """The columns of `KEY`."""
        return {
            "kind": self.intervention.kind,
            "checkpoint": self.checkpoint,
            "value": self.intervention.value,
            "setting": self.intervention.setting,
            "other": self.other,
        }


@dataclass(frozen=True, kw_only=True)
class Passes:
    """A live model, evaluated several times over the same problems.

    The first pass draws the random numbers of training's own evaluation, so that one pass gives its
    numbers; every later pass draws others. All interventions get the same.

    Attributes:
        policy: The model that interventions change.
        writer: Writes with it.
        evaluator: Problems, verifier and the first pass's seed.
        teachers: With them the reverse KL of the same rollouts is measured; None without.
        count: Passes.
    """

    policy: Policy
    writer: Writer
    evaluator: Evaluator
    teachers: Teachers | None
    count: int = 4

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"passes must be at least 1, got {self.count}")

    def evaluate(self) -> Row:
        """The statistics of the model as it is now."""
        self.writer.engine.sync_weights()
        seed = self.evaluator.seed
        seeds = [seed, *(derive_seed(seed, "pass", i) for i in range(1, self.count))]
        return pooled([self._evaluation(each) for each in seeds])

    def _evaluation(self, seed: int) -> Evaluation:
        evaluator = replace(self.evaluator, seed=seed)
        return evaluator.evaluate(self.writer, student=self.policy, teachers=self.teachers)


def evaluate_interventions(
    cases: Iterable[Case],
    passes: Passes,
    *,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Applies every intervention to the live model, evaluates it, and puts the model back.

    A model whose logits are not finite gives a row without statistics, with the reason in
    `failure`: the far end of a sweep may well break a model.
    """
    found = []
    for case in cases:
        row = case.row | _measured(case, passes)
        on_row(row)
        found.append(row)
    passes.writer.engine.sync_weights()
    return found


def key_of(row: Row) -> tuple[Any, ...]:
    """What tells the rows of a table apart."""
    return tuple(row[name] for name in KEY)


def _measured(case: Case, passes: Passes) -> Row:
    changed = case.intervention.apply(case.update, case.heads)
    with intervened(passes.policy.model, changed) as footprint:
        done: Row = {
            "update_norm": footprint.update_norm,
            "changed": footprint.changed,
            "at_base": footprint.at_base,
            "never_moved": footprint.never_moved,
        }
        try:
            return done | passes.evaluate() | {"failure": None}
        except NonFiniteError as error:
            return done | dict.fromkeys(STATISTICS) | {"failure": str(error)}


STATISTICS = (
    "accuracy",
    "accuracy_se",
    "reverse_kl",
    "reverse_kl_se",
    "mean_length",
    "truncated_share",
    "problems",
    "passes",
)
"""Columns of `pooled`."""


def pooled(evaluations: Sequence[Evaluation]) -> Row:
    """Statistics over all passes; standard errors treat the problems as the sample.

    Passes of one problem are not independent of each other, so its mean counts as one value.
    """
    rows = [evaluation.row() for evaluation in evaluations]
    rewards = [mean(each) for each in zip(*(e.rewards for e in evaluations), strict=True)]
    tokens = [
        [value for rollout in of_problem for value in rollout]
        for of_problem in zip(*(e.kl_nats for e in evaluations), strict=True)
    ]
    kl, kl_se = ratio([sum(each) for each in tokens], [len(each) for each in tokens])
    return {
        "accuracy": mean(rewards) if rewards else None,
        "accuracy_se": standard_error(rewards),
        "reverse_kl": kl,
        "reverse_kl_se": kl_se,
        "mean_length": mean([row["mean_length"] or 0.0 for row in rows]),
        "truncated_share": mean([row["truncated_share"] or 0.0 for row in rows]),
        "problems": len(evaluations[0].rollouts),
        "passes": len(evaluations),
    }


def ratio(sums: Sequence[float], counts: Sequence[int]) -> tuple[float | None, float | None]:
    """`sum(sums) / sum(counts)` and its standard error with the pairs as the sample.

    The error is that of the linearised ratio: of the values `(sum - ratio * count) / mean count`.
    """
    total = sum(counts)
    if total == 0:
        return None, None
    found = math.fsum(sums) / total
    scale = total / len(counts)
    residuals = [(s - found * n) / scale for s, n in zip(sums, counts, strict=True)]
    return found, standard_error(residuals)
