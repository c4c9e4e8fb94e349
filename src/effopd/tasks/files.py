"""Problems from a local JSON Lines file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from effopd.errors import ConfigError
from effopd.tasks.problem import Problem, Task, VerifierName


@dataclass(frozen=True, kw_only=True)
class JsonlTask:
    """Training and test problems from JSON Lines files.

    Attributes:
        train_path: File of training problems.
        test_path: File of test problems; None holds out the last `test_size` training problems.
        prompt_field: Field with the question.
        answer_field: Field with the reference answer; "" when there is none.
        teacher_field: Field with the name of the problem's teacher; "" when there is only one.
        level_field: Field with the difficulty, an integer; "" when there is none.
        template: Text around the question; `{question}` is replaced.
        verifier: Who checks answers (docs/rewards.md): "boxed" compares the text of the last box,
            "math" its value; "none" for no accuracy.
        test_size: Problems held out when `test_path` is None.
    """

    type: Literal["jsonl"] = "jsonl"
    train_path: str
    test_path: str | None = None
    prompt_field: str = "question"
    answer_field: str = "answer"
    teacher_field: str = ""
    level_field: str = ""
    template: str = "{question}"
    verifier: VerifierName = "boxed"
    test_size: int = 256

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise ConfigError(f"template must contain {{question}}, got {self.template!r}")
        if self.verifier != "none" and not self.answer_field:
            raise ConfigError("answer_field must name a field, or set verifier = 'none'")
        if self.test_size < 1:
            raise ConfigError(f"test_size must be at least 1, got {self.test_size}")

    def load(self) -> Task:
        """Reads the files.

        Raises:
            ConfigError: A file is missing, damaged or too small.
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
        return Task(train=train, test=test)

    def _read(self, path: Path) -> list[Problem]:
        """The problems of a file; JSON Lines end at a newline and at nothing else."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            raise ConfigError(f"no such problem file: {path}") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8: {error}") from None
        rows = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
        if not rows:
            raise ConfigError(f"{path} holds no problems")
        return [self._problem(path, number, line) for number, line in rows]

    def _problem(self, path: Path, number: int, line: str) -> Problem:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path} line {number} is not a JSON object")
        try:
            question = _text(row, self.prompt_field)
            answer = _text(row, self.answer_field) if self.answer_field else ""
            teacher = _text(row, self.teacher_field) if self.teacher_field else ""
            level = _integer(row, self.level_field) if self.level_field else 0
        except ConfigError as error:
            raise ConfigError(f"{path} line {number}: {error}") from None
        return Problem(
            id=f"{path.stem}-{number}",
            prompt=self.template.replace("{question}", question),
            answer=answer,
            teacher=teacher,
            level=level,
        )


def _text(row: dict[str, Any], field: str) -> str:
    """A field that holds text or a number, as text that a tokenizer can read."""
    value = _value(row, field)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"field {field!r} must be text or a number, got {value!r:.60}")
    text = str(value)
    if not text.strip():
        raise ConfigError(f"field {field!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"field {field!r} holds half a surrogate pair, which is no text")
    return text


def _integer(row: dict[str, Any], field: str) -> int:
    value = _value(row, field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"field {field!r} must be an integer, got {value!r:.60}")
    return value


def _value(row: dict[str, Any], field: str) -> Any:
    if field not in row:
        raise ConfigError(f"no field {field!r}; the line has {', '.join(map(repr, row))}")
    return row[field]
