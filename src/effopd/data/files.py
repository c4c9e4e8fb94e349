"""Problems from a local JSON Lines file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from effopd.data.counts import Counts
from effopd.data.fields import conversation_at, integer_at, text_at
from effopd.data.problem import AnswerRules, Problem, Task, VerifierName, check_verifier
from effopd.data.rows import Row, jsonl_rows
from effopd.data.templates import check_template, fill
from effopd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class JsonlTask:
    r"""Training and test problems from JSON Lines files.

    Attributes:
        train_path: File of training problems.
        test_path: File of test problems; None holds out the last `test_size` training problems.
        prompt_field: Field with the question, or with chat messages. Fields may be dotted,
            `extra.question`.
        answer_field: Field with the reference answer; "" when there is none.
        teacher_field: Field with the name of the problem's teacher; "" when there is only one.
        level_field: Field with the difficulty, an integer; "" when there is none.
        template: Name (docs/data.md) or text of the template around the question; `{question}` is
            replaced.
        verifier: Who checks answers (docs/rewards.md): "boxed" compares the text of the last box,
            "math" its value, `package.module:function` is your own; "none" for no accuracy.
        log_base: What `\log` without a base means in references, "e" or "10".
        relative_error: Relative error that answers to rounded references may have.
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
    log_base: Literal["e", "10"] = "e"
    relative_error: float = 0.0
    test_size: int = 256

    def __post_init__(self) -> None:
        check_template(self.template)
        AnswerRules(log_base=self.log_base, relative_error=self.relative_error)
        check_verifier(self.verifier)
        if self.verifier == "code":
            raise ConfigError("verifier = 'code' needs tests of programs: use type = 'dataset'")
        if self.verifier in {"boxed", "math"} and not self.answer_field:
            raise ConfigError("answer_field must name a field, or set verifier = 'none'")
        if self.test_size < 1:
            raise ConfigError(f"test_size must be at least 1, got {self.test_size}")

    def load(self) -> Task:
        """Reads the files.

        Raises:
            ConfigError: A file is damaged or too small; names the line.
        """
        train, counts = self._read(Path(self.train_path))
        if self.test_path is not None:
            test, test_counts = self._read(Path(self.test_path))
            counts += test_counts
        elif len(train) > self.test_size:
            train, test = train[: -self.test_size], train[-self.test_size :]
        else:
            raise ConfigError(
                f"{self.train_path} has {len(train)} problems, too few to hold out "
                f"test_size = {self.test_size}: give test_path or lower test_size"
            )
        return Task(train=train, test=test, counts=counts)

    def _read(self, path: Path) -> tuple[list[Problem], tuple[Counts, ...]]:
        """The problems; counts where answers at the end of conversations were left out."""
        found = [self._problem(row) for row in jsonl_rows(path)]
        if not found:
            raise ConfigError(f"{path} holds no problems")
        answered, size = sum(is_answered for _, is_answered in found), len(found)
        counts = Counts(name=str(path), read=size, kept=size, dropped={}, answered=answered)
        return [problem for problem, _ in found], (counts,) if answered else ()

    def _problem(self, row: Row) -> tuple[Problem, bool]:
        """The problem of a row, and whether an answer at its end was left out."""
        values = row.values
        try:
            said = conversation_at(values, self.prompt_field)
            answer = self._answer(values)
            problem = Problem(
                id=row.name,
                prompt=fill(self.template, said.question),
                system=said.system,
                turns=said.turns,
                answer=answer,
                teacher=text_at(values, self.teacher_field) if self.teacher_field else "",
                level=integer_at(values, self.level_field) if self.level_field else 0,
                rules=AnswerRules(log_base=self.log_base, relative_error=self.relative_error),
            )
        except ConfigError as error:
            raise ConfigError(f"{row.place}: {error}") from None
        return problem, said.answered

    def _answer(self, values: Mapping[str, Any]) -> str:
        if self.verifier == "none" or not self.answer_field:
            return ""
        try:
            return text_at(values, self.answer_field)
        except ConfigError as error:
            raise ConfigError(
                f'{error}: name the field of references in answer_field, or set verifier = "none" '
                "to train without any"
            ) from None
