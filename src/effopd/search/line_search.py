"""One line search along the ray, asked and told; knows nothing of tensors.

search = LineSearch(settings, step, past)
while (draw := search.ask()) is not None:
search.tell(score_of_the_parameters_at(draw.scale))
search.result.accepted_scale
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from effopd.errors import NonFiniteError, ValidatorError
from effopd.search.scales import PastSearch, Trial
from effopd.search.settings import Search
from effopd.search.validation import Draw, Score, Unconditional, as_score

OnTrial = Callable[[int, Trial], None]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search did.

    Attributes:
        step: Optimizer step of the search.
        accepted_scale: Where it left the parameters; 1.0 is the tip (nothing accepted).
        trials: Every scored point in order.
    """

    step: int
    accepted_scale: float
    trials: tuple[Trial, ...] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Tokens the student sampled for this search."""
        return sum(t.score.tokens for t in self.trials if t.score)

    @property
    def teacher_tokens(self) -> int:
        """Tokens the teacher scored for this search."""
        return sum(t.score.teacher_tokens for t in self.trials if t.score)

    @property
    def as_past(self) -> PastSearch:
        """What the rules of later searches need of this one."""
        change, scale = rate_change(self.trials, self.accepted_scale), self.accepted_scale
        return PastSearch(step=self.step, accepted_scale=scale, rate_change=change)


class LineSearch:
    """Walks along the ray from the tip and keeps the best accepted scale.

    Each accepted candidate becomes the incumbent that the next one has to beat. A candidate whose
    score is not finite is rejected and recorded; a tip whose score is not finite is an error.

    `Unconditional` takes the first scale and asks nothing. `on_trial(index, trial)` is called after
    each trial.
    """

    def __init__(
        self,
        settings: Search,
        step: int,
        past: Sequence[PastSearch] = (),
        on_trial: OnTrial | None = None,
    ) -> None:
        self._settings, self._step, self._past = settings, step, past
        self._on_trial = on_trial
        self._trials: list[Trial] = []
        self._best, self._best_scale = Score(value=math.nan), 1.0
        self._asked: tuple[Draw, float] | None = None  # the open question, and since when

    def ask(self) -> Draw | None:
        """The next point to score, or None when the search is over."""
        if self._asked is not None:
            raise ValidatorError(f"{self._asked[0]} waits for its score: call tell(score) first")
        settings = self._settings
        if isinstance(settings.accept, Unconditional):  # accept the one scale there is, unseen
            tip = Trial(kind="incumbent", scale=1.0, score=None, accepted=None)
            scale = None if self._trials else settings.scales.propose((tip,), self._past)
            if scale is not None:
                self._best_scale, why = scale, "not validated"
                self._note(
                    Trial(kind="candidate", scale=scale, score=None, accepted=True, reason=why)
                )
            return None
        scale = settings.scales.propose(self._trials, self._past) if self._trials else 1.0
        if scale is None:
            return None
        draw = Draw(step=self._step, scale=scale)
        self._asked = draw, time.perf_counter()
        return draw

    def tell(self, score: Score | float) -> Trial:
        """Answers the last question with what the point is worth; gives the trial and decision.

        A score that is not finite rejects a candidate, and is a NonFiniteError at the tip.
        """
        if self._asked is None:
            raise ValidatorError("nothing was asked: call ask() before each tell(score)")
        score, (draw, start) = as_score(score), self._asked
        accepted, reason = None, ""
        if not score.is_finite:
            accepted = False if draw.is_candidate else None
            reason = score.reason or "score is not finite"
        elif draw.is_candidate:
            settings, tip = self._settings, self._trials[0].score
            assert tip is not None
            assert not isinstance(settings.accept, Unconditional)
            reason = (settings.guard and settings.guard.objection(score, tip)) or ""
            accepted = not reason and settings.accept.accepts(score, self._best)
            reason = reason if reason or accepted else "no improvement"
        trial = Trial(
            kind="candidate" if draw.is_candidate else "incumbent",
            scale=draw.scale,
            score=score if score.is_finite else None,
            accepted=accepted,
            reason=reason,
            seconds=time.perf_counter() - start,
        )
        self._asked = None
        self._note(trial)
        if trial.score is None and not draw.is_candidate:
            raise NonFiniteError(
                f"the validator's score of the current parameters at step {draw.step} is not "
                "finite, so no candidate can be compared with it. The parameters are as the "
                "optimizer left them; check them and the validator for NaN."
            )
        if accepted or not draw.is_candidate:
            self._best, self._best_scale = score, draw.scale
        return trial

    def _note(self, trial: Trial) -> None:
        self._trials.append(trial)
        if self._on_trial is not None:
            self._on_trial(len(self._trials) - 1, trial)

    @property
    def result(self) -> SearchResult:
        """What the search has come to; final once `ask` has returned None."""
        return SearchResult(
            step=self._step, accepted_scale=self._best_scale, trials=tuple(self._trials)
        )


# A learning rate that follows the search ---------------------------------------------------------
#
# A search that ends at scale s says that the last displacement should have been s times as long.
# The next ones are made with a learning rate s times as large, so that the search need not find
# that out again. A search that goes back shortens the rate by the root of s: longer steps make way
# along all but the steepest directions.
#
# For the same reason the rate grows a little where the search ends at the tip, but only on evidence
# that the displacement was not too long: every point it looked at could be scored, and none between
# anchor and tip was better, significantly or not. Where the nearest points are beyond trust the
# search is blind, and a rate that grows then runs away: a step too long blinds the next search too.

GROWTH = 1.5
"""Factor after a search that found the tip best; 1.25 and 1.5 were tried (LOG.md)."""
RETREAT = 0.5
"""Factor after a search to which even the points between anchor and tip were out of reach."""
LARGEST_FACTOR = 1024.0
"""Bound of the factor, and of its inverse."""


def rate_change(trials: Sequence[Trial], accepted_scale: float) -> float:
    """What one search, of these trials (the tip first), multiplies the learning rate by."""
    if accepted_scale != 1.0:
        scale = max(accepted_scale, 1 / LARGEST_FACTOR)  # the anchor itself is scale 0
        return max(scale, math.sqrt(scale))  # s ahead of the tip, the root of s behind it
    candidates = [trial for trial in trials if trial.kind == "candidate"]
    behind = [trial for trial in candidates if trial.scale < 1]
    if any(trial.score is None for trial in behind):
        return RETREAT
    if any(trial.score is None for trial in candidates):
        return 1.0
    tip = trials[0].score
    is_passed = any(t.score and tip and t.score.value > tip.value for t in behind)
    return 1.0 if is_passed else GROWTH


def rate_factor(past: Sequence[PastSearch]) -> float:
    """The product of the `rate_change` of all searches, kept within the bounds after each."""
    factor = 1.0
    for search in past:
        factor *= search.rate_change
        factor = min(max(factor, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
    return factor
