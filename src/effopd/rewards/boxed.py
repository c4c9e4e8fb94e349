"""Rewards for an answer in a box, by its text alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from effopd.data.problem import Answer
from effopd.rewards.extraction import final_answer, unboxed


@dataclass(frozen=True, kw_only=True)
class BoxedAnswer:
    r"""Exact match of the last `\boxed{...}` with the reference, spaces removed.

    A reference that has a box itself, as a worked solution, is what its last box holds.
    A string comparison, nothing symbolic: `1/2` and `0.5` differ. A truncated answer is wrong.
    """

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """1.0 for each answer whose last box holds the reference."""
        return [float(_is_right(answer)) for answer in answers]


def _is_right(answer: Answer) -> bool:
    if answer.is_truncated:
        return False
    box = final_answer(answer.completion)
    return box is not None and _squeezed(box) == _squeezed(unboxed(answer.problem.answer))


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)
