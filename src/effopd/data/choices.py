"""Questions with options, in an order of their own: benchmarks write the right one first."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effopd.data.fields import text_at
from effopd.errors import ConfigError

LETTERS = "ABCDEFGHIJ"
_LISTED = re.compile(
    r"(?P<question>.*?)\n+A\. (?P<A>.*?)\nB\. (?P<B>.*?)\nC\. (?P<C>.*?)\nD\. (?P<D>.*)", re.DOTALL
)
_ASKS_FOR_LETTER = re.compile(r"\n\n[^\n]*\\boxed\{\}[^\n]*$")
_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A question with its options.

    Attributes:
        question: The question alone.
        options: Two to ten of them.
        right: Index of the right one.
    """

    question: str
    options: tuple[str, ...]
    right: int

    def shuffled(self, seed: int) -> "Choices":
        """The options in an order that depends on the seed and this question alone."""
        order = list(range(len(self.options)))
        random.Random(f"{seed}/{self.question}").shuffle(order)
        return Choices(
            question=self.question,
            options=tuple(self.options[i] for i in order),
            right=order.index(self.right),
        )

    @property
    def text(self) -> str:
        """The question, and below it one line an option, with letters."""
        lines = [f"{letter}. {o}" for letter, o in zip(LETTERS, self.options, strict=False)]
        return "\n".join([self.question, "", *lines])

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.right]


def choices_in_text(row: Mapping[str, Any]) -> Choices:
    r"""The options of a `question` that ends with them, one a line, and a right letter, `answer`.

    A last paragraph that asks for the letter in `\boxed{}` is left out, as templates do that.

    Raises:
        ConfigError: There are not four options from A to D, or the letter is none of them.
    """
    text, answer = text_at(row, "question"), text_at(row, "answer").strip()
    found = _LISTED.fullmatch(_ASKS_FOR_LETTER.sub("", text.rstrip()))
    if found is None:
        raise ConfigError("field 'question' must end with four options, A. to D., one a line")
    if answer not in {"A", "B", "C", "D"}:
        raise ConfigError(f"field 'answer' must be a letter from A to D, got {answer!r:.20}")
    options = tuple(found[letter].strip() for letter in "ABCD")
    return Choices(question=found["question"].strip(), options=options, right="ABCD".index(answer))


def choices_in_columns(row: Mapping[str, Any]) -> Choices:
    """The options in fields of their own, as the repository of GPQA has them.

    Raises:
        ConfigError: A field is missing or empty.
    """
    options = tuple(text_at(row, column).strip() for column in _COLUMNS)
    return Choices(question=text_at(row, "Question").strip(), options=options, right=0)
