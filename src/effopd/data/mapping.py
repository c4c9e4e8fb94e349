"""From a row to a problem, or to the reason why it is none."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effopd.data.code_formats import from_codeforces, from_input_output
from effopd.data.code_tests import CodeTests
from effopd.data.evalplus import from_evalplus
from effopd.data.fields import conversation_at, level_at, text_at, value_at
from effopd.data.livecodebench import from_livecodebench
from effopd.data.origins import Origin
from effopd.data.problem import Problem, VerifierName
from effopd.data.rows import Row
from effopd.data.templates import fill
from effopd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A problem with what filters look at.

    Attributes:
        problem: The problem.
        question: All that is asked, without the template.
        level: Its difficulty; None where there is none to read.
        answered: Whether its row ends with an answer, which is left out.
    """

    problem: Problem
    question: str
    level: float | None
    answered: bool = False


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """A row that is no problem.

    Attributes:
        reason: What it is counted under.
        message: The row and what is wrong with it; "" where nothing is.
    """

    reason: str
    message: str = ""

    @property
    def explanation(self) -> str:
        """The message, and the setting that would keep the row."""
        return self.message + _REMEDIES.get(self.reason, "") if self.message else ""


_REMEDIES = {
    "no readable reference answer": ": answer_field names the field of references; rows without "
    'any are kept by task.verifier = "none"',
    "no usable tests": ": tests_form and tests_field say where tests are; rows without any are "
    'kept by task.verifier = "none"',
}


def read_row(row: Row, origin: Origin, verifier: VerifierName) -> Candidate | Unfit:
    """The problem of a row.

    Args:
        row: The row.
        origin: What its fields mean.
        verifier: Who checks answers: "code" needs tests, "none" nothing, the others a reference.

    Returns:
        The problem, or why there is none.
    """
    values = row.values
    reason = "no readable question"
    try:
        if origin.where_field and value_at(values, origin.where_field) != origin.where:
            return Unfit(reason=f"{origin.where_field} is not {origin.where!r}")
        said = conversation_at(values, origin.prompt_field)
        reason = "no readable reference answer"
        has_answer = verifier not in {"code", "none"} and bool(origin.answer_field)
        answer = _answer(values, origin) if has_answer else ""
        reason = "no usable tests"
        tests = _tests(values, origin) if verifier == "code" else None
        reason = "no readable teacher or source"
        teacher = text_at(values, origin.teacher_field) if origin.teacher_field else ""
        source = text_at(values, origin.source_field) if origin.source_field else ""
    except ConfigError as error:
        return Unfit(reason=reason, message=f"{row.place}: {error}")
    level = _level(values, origin.level_field)
    problem = Problem(
        id=row.name,
        prompt=fill(origin.template, said.question),
        system=said.system if origin.system == "keep" else "",
        answer=answer,
        teacher=teacher,
        level=0 if level is None else math.floor(level),
        source=source,
        tests=tests,
        turns=said.turns,
        rules=origin.rules,
    )
    return Candidate(problem=problem, question=said.asked, level=level, answered=said.answered)


def needed_fields(origin: Origin, verifier: VerifierName) -> list[str] | None:
    """The fields that `read_row` looks at; None where it takes the whole row."""
    if verifier == "code" and not origin.tests_field:
        return None
    checked = origin.tests_field if verifier == "code" else origin.answer_field
    fields = (
        origin.prompt_field,
        "" if verifier == "none" else checked,
        origin.level_field,
        origin.teacher_field,
        origin.source_field,
        origin.where_field,
    )
    return [field for field in fields if field]


def _answer(values: Mapping[str, Any], origin: Origin) -> str:
    text = text_at(values, origin.answer_field)
    if not origin.answer_after:
        return text
    _, found, after = text.rpartition(origin.answer_after)
    if not found or not after.strip():
        raise ConfigError(f"field {origin.answer_field!r} has nothing after {origin.answer_after}")
    return after.strip()


def _tests(values: Mapping[str, Any], origin: Origin) -> CodeTests:
    assert origin.tests_form  # the settings checked it
    convert: Callable[[Any], CodeTests] = {
        "input_output": from_input_output,
        "codeforces": from_codeforces,
        "evalplus": from_evalplus,
        "livecodebench": from_livecodebench,
    }[origin.tests_form]
    return convert(value_at(values, origin.tests_field) if origin.tests_field else values)


def _level(values: Mapping[str, Any], field: str) -> float | None:
    """The difficulty; None where it cannot be read, which a filter on levels counts."""
    if not field:
        return None
    try:
        return level_at(values, field)
    except ConfigError:
        return None
