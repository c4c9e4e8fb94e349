"""From a row to a problem, or to the reason why it is none."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from effopd.data.code_formats import from_codeforces, from_evalplus, from_input_output
from effopd.data.code_tests import CodeTests
from effopd.data.fields import conversation_at, level_at, text_at, value_at
from effopd.data.problem import Problem, VerifierName
from effopd.data.rows import Row
from effopd.data.templates import fill
from effopd.errors import ConfigError

if TYPE_CHECKING:
    from effopd.data.dataset import DatasetSpec


class MappedRow(NamedTuple):
    """A problem with what filters look at.

    Attributes:
        problem: The problem.
        question: All that is asked, without the template.
        level: Its difficulty; None where there is none to read.
        answered: Whether its row ends with an answer, which is left out.
    """

    problem: Problem
    question: str = ""
    level: float | None = None
    answered: bool = False


class RejectedRow(NamedTuple):
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


NO_QUESTION = "no readable question"
_REMEDIES = {
    "no readable reference answer": ": answer_field names the field of references; rows without "
    'any are kept by task.verifier = "none"',
    "no usable tests": ": tests_form and tests_field say where tests are; rows without any are "
    'kept by task.verifier = "none"',
}
_TESTS: Mapping[str, Callable[[Any], CodeTests]] = {
    "input_output": from_input_output,
    "codeforces": from_codeforces,
    "evalplus": from_evalplus,
}


def read_row(row: Row, spec: "DatasetSpec", verifier: VerifierName) -> MappedRow | RejectedRow:
    """The problem of a row; "code" needs tests, "none" nothing, other verifiers a reference."""
    values = row.values
    reason = NO_QUESTION
    try:
        if spec.where_field and value_at(values, spec.where_field) != spec.where:
            return RejectedRow(f"{spec.where_field} is not {spec.where!r}")
        said = conversation_at(values, spec.prompt_field)
        reason = "no readable reference answer"
        has_answer = verifier not in {"code", "none"} and bool(spec.answer_field)
        answer = _answer(values, spec) if has_answer else ""
        reason = "no usable tests"
        tests: CodeTests | None = None
        if verifier == "code":
            given = value_at(values, spec.tests_field) if spec.tests_field else values
            tests = _TESTS[spec.tests_form](given)
        reason = "no readable teacher or source"
        teacher = text_at(values, spec.teacher_field) if spec.teacher_field else ""
        source = text_at(values, spec.source_field) if spec.source_field else ""
    except ConfigError as error:
        return RejectedRow(reason, f"{row.place}: {error}")
    try:
        level = level_at(values, spec.level_field) if spec.level_field else None
    except ConfigError:
        level = None  # a filter on levels counts it
    problem = Problem(
        id=row.name,
        prompt=fill(spec.template, said.question),
        system=said.system if spec.system == "keep" else "",
        answer=answer,
        teacher=teacher,
        level=0 if level is None else math.floor(level),
        source=source,
        tests=tests,
        turns=said.turns,
        rules=spec.rules,
    )
    return MappedRow(problem, said.asked, level, said.answered)


def needed_fields(spec: "DatasetSpec", verifier: VerifierName) -> list[str] | None:
    """The fields that `read_row` looks at; None where it takes the whole row."""
    if verifier == "code" and not spec.tests_field:
        return None
    checked = {"code": spec.tests_field, "none": ""}.get(verifier, spec.answer_field)
    others = (spec.level_field, spec.teacher_field, spec.source_field, spec.where_field)
    return [field for field in (spec.prompt_field, checked, *others) if field]


def _answer(values: Mapping[str, Any], spec: "DatasetSpec") -> str:
    text = text_at(values, spec.answer_field)
    if not spec.answer_after:
        return text
    _, found, after = text.rpartition(spec.answer_after)
    if not found or not after.strip():
        raise ConfigError(f"field {spec.answer_field!r} has nothing after {spec.answer_after}")
    return after.strip()
