r"""Rewards for mathematics: the boxed answer against the reference, by value."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Self

from effopd.data.problem import Answer, Problem
from effopd.errors import MissingExtraError
from effopd.rewards.extraction import final_answer, unboxed
from effopd.rewards.mathematics.decide import VERDICTS, Pairs, Verdict, decide
from effopd.rewards.workers import WorkerPool, WorkerSettings

_DEFAULT = WorkerSettings()
_PROBE = "0"


@dataclass(frozen=True, kw_only=True)
class BoxedAnswer:
    r"""Exact match of the last `\boxed{...}` with the reference, spaces removed.

    A reference that has a box itself, as a worked solution, is what its last box holds.
    A string comparison, nothing symbolic: `1/2` and `0.5` differ. A truncated answer is wrong.
    """

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """1.0 for each answer whose last box holds the reference."""
        boxes = [None if each.is_truncated else final_answer(each.completion) for each in answers]
        return [
            float(box is not None and "".join(box.split()) == "".join(wanted.split()))
            for box, each in zip(boxes, answers, strict=True)
            for wanted in (unboxed(each.problem.answer),)
        ]


class MathVerifier:
    r"""Checks the last `\boxed{...}` of a completion for equality with the reference.

    The reward is 1 for "correct" and 0 for every other verdict. A hanging or hostile answer costs
    its own verdict, within the wall, and nothing else: formulas are compared in processes of their
    own. The same answer has the same verdict in any thread, process and order. Close the verifier,
    or use it in a `with` statement, to end its processes early; they end with this process anyway.
    """

    def __init__(self, settings: WorkerSettings = _DEFAULT) -> None:
        """Starts nothing yet; MissingExtraError without math-verify."""
        if find_spec("math_verify") is None:
            raise MissingExtraError(
                "checking mathematics needs math-verify, which is not installed: "
                "pip install 'effopd[eval]'"
            )
        self.settings = settings
        self._pool = WorkerPool(settings)
        self._counts: Counter[Verdict] = Counter()
        self._lock = threading.Lock()

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """1.0 for each answer that equals its reference, else 0.0."""
        return [float(verdict == "correct") for verdict in self.verdicts(answers)]

    def verdicts(self, answers: Sequence[Answer]) -> list[Verdict]:
        """How each check ended, in order; side by side, equal ones once. Adds to `counts`."""
        outcomes: list[Verdict | Pairs] = []
        for answer in answers:
            final, problem = final_answer(answer.completion), answer.problem
            if answer.is_truncated or final is None:
                outcomes.append("truncated" if answer.is_truncated else "no_answer")
            else:
                outcomes.append(decide(problem.answer, final, problem.rules))
        verdicts = self._settled(outcomes)
        with self._lock:
            self._counts.update(verdicts)
        return verdicts

    def unreadable(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems whose reference only its own text equals; slow ones are not among them."""
        verdicts = self._settled([decide(each.answer, _PROBE, each.rules) for each in problems])
        return [each for each, found in zip(problems, verdicts, strict=True) if found == "error"]

    def groups(self, answers: Sequence[str | None]) -> list[int | None]:
        """The group of each answer by value, from 0 in order of appearance; None for none."""
        group_of: dict[str | None, int] = {}
        left = list(dict.fromkeys(answer for answer in answers if answer and answer.strip()))
        group = 0
        while left:
            found = self._settled([decide(left[0], answer) for answer in left])
            same = {each for each, verdict in zip(left, found, strict=True) if verdict == "correct"}
            group_of |= dict.fromkeys({left[0], *same}, group)
            left, group = [answer for answer in left if answer not in group_of], group + 1
        return [group_of.get(answer) for answer in answers]

    @property
    def counts(self) -> Mapping[str, int]:
        """Verdicts so far: what timed out and what failed apart from what was wrong."""
        with self._lock:
            return {verdict: self._counts[verdict] for verdict in VERDICTS}

    def close(self) -> None:
        """Ends the worker processes; another check would start them again."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[WorkerSettings]]:
        """A copy in another process has the same settings, workers of its own and no counts."""
        return type(self), (self.settings,)

    def _settled(self, outcomes: Sequence[Verdict | Pairs]) -> list[Verdict]:
        """The verdicts, those by algebra found in the processes, equal ones once."""
        unique = list(dict.fromkeys(each for each in outcomes if isinstance(each, tuple)))
        compared = dict(zip(unique, self._pool.verdicts(unique), strict=True))
        return [compared[each] if isinstance(each, tuple) else each for each in outcomes]
