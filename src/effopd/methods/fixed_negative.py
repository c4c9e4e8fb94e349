"""One negative advantage on the student's least likely tokens: a control without a teacher."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from effopd.errors import ConfigError, NonFiniteError
from effopd.methods.objective import (
    Batch,
    Contribution,
    Learner,
    Objective,
    Portion,
    Resources,
    gathered,
    policy_log_probs,
)
from effopd.objectives import sampled_token_loss


@dataclass(frozen=True, kw_only=True)
class FixedNegative(Objective):
    """`-A log p`, averaged over the tokens of a batch that the student found least likely.

    Attributes:
        type: Name of this objective in a configuration.
        advantage: A, the same for all of them; negative pushes them down.
        share: Share of the batch's tokens that is learned from, in (0, 1]; at least one token.

    Source: arXiv 2608.31046, "fixed-negative" (-0.5 on the least likely 20%), which finds that it
    does what the advantages of a teacher do. Departures: tokens are chosen once a batch, by the
    log-probability that they were written with, so that micro-batches and devices do not matter;
    the source chooses those of each process anew.
    """

    type: Literal["fixed_negative"] = "fixed_negative"
    advantage: float = -0.5
    share: float = 0.2
    needs_teacher = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.advantage) and self.advantage != 0):
            raise ConfigError(f"advantage must be finite and not 0, got {self.advantage}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be in (0, 1], got {self.share}")

    def learner(self, resources: Resources) -> Learner:
        """See `Objective.learner`."""
        return FixedNegativeLearner(self, resources)


class FixedNegativeLearner(Learner):
    """Marks the batch's least likely tokens, then pushes them down."""

    def __init__(self, objective: FixedNegative, resources: Resources) -> None:
        self._objective, self._student = objective, resources.student
        self._batch: Batch | None = None
        self._chosen: list[list[float]] = []
        self._kept = 1.0

    def prepare(self, batch: Batch) -> int:
        """See `Learner.prepare`; no teacher scores anything.

        Raises:
            NonFiniteError: A log-probability of the engine is not finite.
        """
        written = [tuple(r.completion.log_probs) for r in batch.rollouts]
        flat_N = torch.tensor([value for row in written for value in row], dtype=torch.float64)
        if not bool(flat_N.isfinite().all()):
            raise NonFiniteError("the engine's log-probabilities are not finite")
        # K tokens exactly: of equally likely ones the first.
        count = max(1, int(self._objective.share * len(flat_N)))
        chosen_N = torch.zeros(len(flat_N))
        chosen_N[flat_N.argsort(stable=True)[:count]] = 1.0
        self._chosen = [part.tolist() for part in chosen_N.split([len(row) for row in written])]
        self._batch, self._kept = batch, count / len(flat_N)
        return 0

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """See `Learner.contribution`; a mini-batch counts as having its share of the tokens."""
        assert self._batch is not None
        log_probs_N = policy_log_probs(self._student, [self._batch.rollouts[i] for i in indices])
        chosen_N = gathered(self._chosen, indices, log_probs_N.detach())
        loss = sampled_token_loss(
            log_probs_N,
            torch.full_like(chosen_N, self._objective.advantage),
            chosen_N,
            self._kept * portion.tokens,
        )
        return Contribution(loss=loss, inputs={"student": log_probs_N.detach()})

    def metrics(self) -> Mapping[str, float]:
        """`chosen_share`: of the batch's tokens that are learned from."""
        return {"chosen_share": self._kept}
