"""Answers checked, and how the checks ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effopd.data.problem import CountingVerifier, Verifier
from effopd.rollouts.rollout import Rollout

Verdicts = Mapping[str, int]
"""Verdict -> number of answers, of the verdicts that occurred."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a verifier said about some answers.

    Attributes:
        rewards: One per answer in [0, 1]; empty where nobody checks.
        verdicts: Their sum is the number of answers; None where the verifier only gives rewards.
    """

    rewards: tuple[float, ...] = ()
    verdicts: Verdicts | None = None


def judge(verifier: Verifier | None, rollouts: Sequence[Rollout]) -> Judgement:
    """Checks all answers in one call; None checks nothing."""
    if verifier is None:
        return Judgement()
    answers = [rollout.answer for rollout in rollouts]
    if not isinstance(verifier, CountingVerifier):
        return Judgement(rewards=tuple(verifier.rewards(answers)))
    before = dict(verifier.counts)
    rewards = tuple(verifier.rewards(answers))
    new = {name: count - before.get(name, 0) for name, count in verifier.counts.items()}
    return Judgement(rewards=rewards, verdicts={name: n for name, n in new.items() if n})


def together(verdicts: Sequence[Verdicts | None]) -> Verdicts | None:
    """The sum of several counts; None when none was counted."""
    counted = [each for each in verdicts if each is not None]
    if not counted:
        return None
    names = dict.fromkeys(name for each in counted for name in each)
    return {name: sum(each.get(name, 0) for each in counted) for name in names}
