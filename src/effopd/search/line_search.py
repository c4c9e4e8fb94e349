"""One line search along the ray: score, accept or stop, re-test. Knows nothing of tensors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from effopd.errors import NonFiniteError
from effopd.search.past import PastSearch
from effopd.search.scales import Scales, Trial
from effopd.search.validation import AcceptRule, Draw, LengthGuard, Score, Unconditional

Evaluate = Callable[[float, Draw], Score]
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


def line_search(
    evaluate: Evaluate,
    step: int,
    *,
    scales: Scales,
    accept: AcceptRule | Unconditional,
    guard: LengthGuard | None = None,
    retest: bool = False,
    past: Sequence[PastSearch] = (),
    on_trial: OnTrial | None = None,
) -> SearchResult:
    """Walks outward from the tip and returns the best accepted scale.

    Each accepted candidate becomes the incumbent the next one has to beat. A candidate whose score
    is not finite is rejected and recorded; a tip whose score is not finite is an error.

    Args:
        evaluate: Scores `point(scale)` under a draw.
        step: Optimizer step, part of the draw.
        scales: Proposes scales until it returns None.
        accept: Compares a candidate with the incumbent. `Unconditional` takes the first scale
            without a call of `evaluate`.
        guard: Objects to degenerate text, always compared with the tip.
        retest: Score tip and winner once more on fresh prompts and keep the winner only if it is
            accepted there too: removes the optimism of the best of several noisy scores.
        past: Earlier searches of the run, for scales that start from them.
        on_trial: Called as `on_trial(index, trial)` after each trial, for logging.

    Returns:
        The accepted scale and all trials.
    """
    if isinstance(accept, Unconditional):
        return _jump(step, scales, past, on_trial)
    trials: list[Trial] = []

    def run(kind: str, scale: float, draw: Draw, against: Score | None, tip: Score | None) -> Trial:
        trial = _trial(evaluate, kind, scale, draw, against, accept, guard, tip)
        trials.append(trial)
        if on_trial is not None:
            on_trial(len(trials) - 1, trial)
        return trial

    draw = Draw(step=step)
    tip = best = _finite(run("incumbent", 1.0, draw, None, None), step)
    best_scale = 1.0
    while (scale := scales.propose(trials, past)) is not None:
        trial = run("candidate", scale, replace(draw, candidate=True), best, tip)
        if trial.accepted and trial.score is not None:
            best, best_scale = trial.score, scale
    if retest and best_scale != 1.0:
        fresh = replace(draw, fresh=True)
        tip = _finite(run("retest-incumbent", 1.0, fresh, None, None), step)
        again = replace(fresh, candidate=True)
        if not run("retest-candidate", best_scale, again, tip, tip).accepted:
            best_scale = 1.0
    return SearchResult(step=step, accepted_scale=best_scale, trials=tuple(trials))


def _jump(
    step: int, scales: Scales, past: Sequence[PastSearch], on_trial: OnTrial | None
) -> SearchResult:
    """Accepts the first scale proposed, unseen."""
    tip = Trial(kind="incumbent", scale=1.0, score=None, accepted=None)
    scale = scales.propose((tip,), past)
    assert scale is not None, "every rule proposes a first scale"
    trial = Trial(kind="candidate", scale=scale, score=None, accepted=True, reason="not validated")
    if on_trial is not None:
        on_trial(0, trial)
    return SearchResult(step=step, accepted_scale=scale, trials=(trial,))


def _trial(
    evaluate: Evaluate,
    kind: str,
    scale: float,
    draw: Draw,
    against: Score | None,
    accept: AcceptRule,
    guard: LengthGuard | None,
    tip: Score | None,
) -> Trial:
    """Scores one point and, for candidates, decides."""
    start = time.perf_counter()
    score = evaluate(scale, draw)
    accepted, reason = None, ""
    if not score.is_finite:
        accepted = None if against is None else False
        reason = score.reason or "score is not finite"
    elif against is not None and tip is not None:
        objection = guard.objection(score, tip) if guard else None
        accepted = objection is None and accept.accepts(score, against)
        reason = objection or ("" if accepted else "no improvement")
    return Trial(
        kind=kind,  # type: ignore[arg-type]
        scale=scale,
        score=score if score.is_finite else None,
        accepted=accepted,
        reason=reason,
        seconds=time.perf_counter() - start,
    )


def _finite(trial: Trial, step: int) -> Score:
    """The score of an incumbent, which must be finite."""
    if trial.score is None:
        raise NonFiniteError(
            f"the validator's score of the current parameters at step {step} is not finite, so no "
            "candidate can be compared with it. The parameters are as the optimizer left them; "
            "check them and the validator for NaN."
        )
    return trial.score
