"""The answers of a training batch, lent to the search before they are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from effopd.errors import ConfigError, ValidatorError
from effopd.evaluation.drawn_answers import Levels, weighted_truncated_share
from effopd.rollouts.engine import Sampling
from effopd.rollouts.rollout import Rollout
from effopd.search.validation import Draw


@dataclass(kw_only=True)
class LentAnswers:
    """Gives out what the tip wrote for its next update, so that a search writes nothing.

    The batch is as good as answers of its own: its prompts had no part in the displacement that
    is searched along.

    Attributes:
        sampling: How the batch is sampled.
        prompts: Answers given out for a search; a re-test gets as many of the others.
        levels: Lowest and highest level of the problems given out; None for all.
    """

    sampling: Sampling
    prompts: int
    levels: Levels | None = None
    costs_tokens: bool = field(default=False, init=False)
    _rollouts: Sequence[Rollout] = field(default=(), init=False)
    _are_cut: bool = field(default=False, init=False)

    def lend(self, rollouts: Sequence[Rollout], *, are_cut: bool) -> None:
        """Takes what the student, as it is now, wrote for its next update.

        Args:
            rollouts: The answers.
            are_cut: Whether they were cut short on purpose.

        Raises:
            ConfigError: None of them is of the levels asked for.
        """
        low, high = self.levels or (0, 0)
        self._are_cut = are_cut
        self._rollouts = [
            r for r in rollouts if self.levels is None or low <= r.problem.level <= high
        ]
        if not self._rollouts:
            raise ConfigError(
                f"no answer of the training batch has a level from {low} to {high} "
                "(validation.levels)"
            )

    def write(self, draw: Draw) -> list[Rollout]:
        """The answers of a draw.

        Raises:
            ValidatorError: Nothing was lent, or too little for a re-test.
        """
        start = self.prompts if draw.fresh else 0
        found = list(self._rollouts[start : start + self.prompts])
        if not found:
            raise ValidatorError(
                f"{len(self._rollouts)} answers were lent to the validator, too few for "
                f"{'a re-test after ' if draw.fresh else ''}{self.prompts}: lend the step's "
                "rollouts before each search, and ask for at most half of them if it re-tests"
            )
        return found

    def truncated_share(
        self, rollouts: Sequence[Rollout], weights: Sequence[float] | None = None
    ) -> float:
        """Share of answers cut at the length cap, in [0, 1]; 0 where they are cut on purpose."""
        return 0.0 if self._are_cut else weighted_truncated_share(rollouts, weights)
