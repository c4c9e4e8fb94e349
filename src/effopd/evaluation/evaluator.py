"""Held-out evaluation of a policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effopd.data.problem import Problem, Verifier
from effopd.evaluation.grading import Verdicts, judge
from effopd.evaluation.logprobs import BATCH_TOKENS
from effopd.evaluation.routing import Teachers, routed_reverse_kl
from effopd.evaluation.statistics import mean
from effopd.models.policy import Policy
from effopd.rollouts.engine import derive_seed
from effopd.rollouts.rollout import (
    Rollout,
    Writer,
    environment_statistics,
    mean_length,
    truncated_share,
)
from effopd.search.validation import standard_error


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What a policy wrote on the test problems, and how good it was, one entry a problem.

    `rewards` are in [0, 1], () without a verifier; `kl_nats` has the reverse KL of each token to
    its teacher, NaN where a server does not say, () without teachers; `verdicts` are None where a
    verifier only gives rewards.
    """

    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    kl_nats: tuple[tuple[float, ...], ...]
    verdicts: Verdicts | None = None

    def row(self) -> dict[str, Any]:
        """The statistics an `evals.jsonl` row holds."""
        known = [value for rollout in self.kl_nats for value in rollout]
        tokens = [value for value in known if not math.isnan(value)]
        return {
            "accuracy": mean(self.rewards) if self.rewards else None,
            "accuracy_se": standard_error(self.rewards),
            "reverse_kl": mean(tokens) if tokens else None,
            "mean_length": mean_length(self.rollouts),
            "truncated_share": truncated_share(self.rollouts),
            "n": len(self.rollouts),
            "verdicts": self.verdicts,
            **environment_statistics(self.rollouts),
        }


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates on fixed held-out problems with fixed random numbers.

    Runs that are to be compared have the same seed. Scoring takes at most `batch_tokens` padded
    tokens a forward pass.
    """

    problems: Sequence[Problem]
    verifier: Verifier | None
    seed: int
    batch_tokens: int = BATCH_TOKENS

    def evaluate(
        self, writer: Writer, *, student: Policy | None = None, teachers: Teachers | None = None
    ) -> EvaluationResult:
        """Writes one answer per problem and measures it."""
        seeds = [derive_seed(self.seed, "evaluate", i) for i in range(len(self.problems))]
        rollouts = writer.answer(self.problems, seeds)
        judgement = judge(self.verifier, rollouts)
        divergences = (
            routed_reverse_kl(student, teachers, rollouts, batch_tokens=self.batch_tokens)
            if student and teachers
            else []
        )
        return EvaluationResult(
            rollouts=tuple(rollouts),
            rewards=judgement.rewards,
            kl_nats=tuple(divergences),
            verdicts=judgement.verdicts,
        )
