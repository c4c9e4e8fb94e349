"""Held-out evaluation of a policy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from effopd.data.problem import Answer, Problem, Verifier, imported
from effopd.errors import ConfigError
from effopd.evaluation.grading import Verdicts, judge, sum_counts
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

Metric = Callable[[Sequence[Answer]], float]
"""All answers to the test problems -> one number; higher is better."""


def imported_metric(path: str) -> Metric | None:
    """The function that `evaluation.metric` names; None for ""."""
    if not path:
        return None
    hint = "name a function (answers) -> number"
    found = imported(path, "evaluation.metric", hint)
    if not callable(found):
        raise ConfigError(f"evaluation.metric = {path!r} is {found!r:.80}: {hint}")
    return found


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What a policy wrote on the test problems, and how good it was, one entry a problem.

    `rewards` are in [0, 1], () without a verifier; `kl_nats` has the reverse KL of each token to
    its teacher, NaN where a server does not say, () without teachers; `verdicts` are None where a
    verifier only gives rewards. `metric` is asked about all answers at once.
    """

    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    kl_nats: tuple[tuple[float, ...], ...]
    verdicts: Verdicts | None = None
    metric: Metric | None = None

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
            **({"metric": self._measured(self.metric)} if self.metric else {}),
        }

    def _measured(self, metric: Metric) -> float:
        value: object = metric([rollout.answer for rollout in self.rollouts])
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ConfigError(
                f"evaluation.metric gave {value!r:.80} for {len(self.rollouts)} answers: return "
                "one finite number, the higher the better"
            )
        return number


def joined(results: Sequence[EvaluationResult], metric: Metric | None) -> EvaluationResult:
    """Answers of several teachers as one result, without divergences."""
    return EvaluationResult(
        rollouts=tuple(rollout for each in results for rollout in each.rollouts),
        rewards=tuple(reward for each in results for reward in each.rewards),
        kl_nats=(),
        verdicts=sum_counts([each.verdicts for each in results]),
        metric=metric,
    )


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
    metric: Metric | None = None

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
            metric=self.metric,
        )
