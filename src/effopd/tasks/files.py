"""Problems from a local JSON Lines file."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effopd.errors import ConfigError
from effopd.tasks.problem import Problem, Task

_BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")


@dataclass(frozen=True, kw_only=True)
class BoxedAnswer:
    r"""Exact match of the last `\boxed{...}` with the reference, spaces removed.

    A string comparison, nothing symbolic: `1/2` and `0.5` differ.
    """

    def reward(self, problem: Problem, completion: str) -> float:
        """1.0 when the last box holds the reference answer."""
        boxes = _BOXED.findall(completion)
        return float(bool(boxes) and _squeezed(boxes[-1]) == _squeezed(problem.answer))


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@dataclass(frozen=True, kw_only=True)
class JsonlTask:
    """Training and test problems from JSON Lines files.

    Attributes:
        train_path: File of training problems.
        test_path: File of test problems; None holds out the last `test_size` training problems.
        prompt_field: Field with the question.
        answer_field: Field with the reference answer; None when there is none.
        template: Text around the question; `{question}` is replaced.
        verifier: "boxed" for `BoxedAnswer`, "none" for no accuracy.
        test_size: Problems held out when `test_path` is None.
    """

    type: Literal["jsonl"] = "jsonl"
    train_path: str
    test_path: str | None = None
    prompt_field: str = "question"
    answer_field: str | None = "answer"
    template: str = "{question}"
    verifier: Literal["boxed", "none"] = "boxed"
    test_size: int = 256

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise ConfigError(f"template must contain {{question}}, got {self.template!r}")
        if self.verifier == "boxed" and self.answer_field is None:
            raise ConfigError("verifier 'boxed' needs answer_field; use verifier = 'none' without")

    def load(self) -> Task:
        """Reads the files.

        Raises:
            ConfigError: A file is missing or too small.
        """
        train = self._read(Path(self.train_path))
        if self.test_path is not None:
            test = self._read(Path(self.test_path))
        elif len(train) > self.test_size:
            train, test = train[: -self.test_size], train[-self.test_size :]
        else:
            raise ConfigError(
                f"{self.train_path} has {len(train)} problems, too few to hold out "
                f"test_size = {self.test_size}: give test_path or lower test_size"
            )
        return Task(train=train, test=test, verifier=self._verifier())

    def _verifier(self) -> BoxedAnswer | None:
        return BoxedAnswer() if self.verifier == "boxed" else None

    def _read(self, path: Path) -> list[Problem]:
        if not path.is_file():
            raise ConfigError(f"no such problem file: {path}")
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
        return [self._problem(path, number, line) for number, line in rows]

    def _problem(self, path: Path, number: int, line: str) -> Problem:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} line {number} is not JSON: {error}") from None
        fields = [self.prompt_field] + ([self.answer_field] if self.answer_field else [])
        missing = [f for f in fields if not isinstance(row, dict) or f not in row]
        if missing:
            raise ConfigError(f"{path} line {number} has no field {missing[0]!r}")
        return Problem(
            id=f"{path.stem}-{number}",
            prompt=self.template.replace("{question}", str(row[self.prompt_field])),
            answer=str(row[self.answer_field]) if self.answer_field else "",
        )
