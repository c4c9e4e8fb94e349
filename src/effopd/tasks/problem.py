"""What the student is asked, and who checks the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One prompt with its reference answer.

    Attributes:
        id: Unique within its task; recorded with every rollout.
        prompt: Text shown to the student, before any chat template.
        answer: Reference answer the verifier compares with; "" when the task has no verifier.
        teacher: Name of the teacher that scores its answers; "" where there is only one.
        level: Difficulty on the task's own scale, higher is harder; 0 where there is none.
    """

    id: str
    prompt: str
    answer: str = ""
    teacher: str = ""
    level: int = 0


class Verifier(Protocol):
    """Checks one completion."""

    def reward(self, problem: Problem, completion: str) -> float:
        """Reward in [0, 1] of `completion`; it never raises for a bad answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """Disjoint problems to train on and to test on.

    Attributes:
        train: Training problems; validation sets of searches are drawn from these.
        test: Held-out problems for the reported accuracy.
        verifier: None when answers cannot be checked; accuracy is then not reported.
    """

    train: Sequence[Problem]
    test: Sequence[Problem]
    verifier: Verifier | None
