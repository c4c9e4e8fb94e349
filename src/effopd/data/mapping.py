"""From a row to a problem, or to the reason why it is none."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from effopd.data.code_formats import from_codeforces, from_evalplus, from_input_output
from effopd.data.code_tests import CodeTests
from effopd.data.fields import conversation_at, level_at, text_at, tools_at, value_at
from effopd.data.problem import Problem, VerifierName
from effopd.data.rows import Row
from effopd.errors import ConfigError

if TYPE_CHECKING:
    from effopd.data.dataset import DatasetSpec


QUESTION = "{question}"
_THINK_FIRST = "You need to think first then write the Python code."

TEMPLATES: Mapping[str, str] = {
    "plain": QUESTION,
    "math": QUESTION + "\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "code": QUESTION
    + "\n\nWrite Python code to solve the problem. Present the code in \n"
    + f"```python\nYour code\n```\nat the end.\n{_THINK_FIRST}",
    "think_first": f"{QUESTION}\n{_THINK_FIRST}",
    "choice": QUESTION
    + "\n\nPlease reason step-by-step and put your choice letter without any other text with "
    + "\\boxed{} in the end.",
    "complete": "Write a self-contained Python program that does what this one asks for, in a "
    + f"Markdown code block:\n```python\n{QUESTION}\n```",
}
"""Name in settings -> template.

`math` is that of arXiv 2605.11739, appendix D; `code` asks for Python as Eurus-2-RL-Data and arXiv
2602.12125 do. Rows of Eurus already end with all but the last sentence of it. `choice` is what
arXiv 2602.12125 asks for with GPQA, `complete` puts the stub of HumanEval+ and MBPP+ in.
"""


class MappedRow(NamedTuple):
    """A problem with what filters look at: all that is asked, without the template, and its level.

    The level is None where there is none to read; `answered` rows ended with an answer, left out.
    """

    problem: Problem
    question: str = ""
    level: float | None = None
    answered: bool = False


class RejectedRow(NamedTuple):
    """A row that is no problem: what it is counted under; the row and its mistake, "" for none."""

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
        tools = tools_at(values, spec.tools_field) if spec.tools_field else ()
        reason = "no readable reference answer"
        has_answer = verifier not in {"code", "none"} and bool(spec.answer_field)
        answer = text_at(values, spec.answer_field) if has_answer else ""
        if has_answer and spec.answer_after:
            _, found, after = answer.rpartition(spec.answer_after)
            answer = after.strip()
            if not found or not answer:
                raise ConfigError(
                    f"field {spec.answer_field!r} has nothing after {spec.answer_after}"
                )
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
        after=said.after,
        tools=tools,
        rules=spec.rules,
    )
    return MappedRow(problem, said.asked, level, said.answered)


def needed_fields(spec: "DatasetSpec", verifier: VerifierName) -> list[str] | None:
    """The fields that `read_row` looks at; None where it takes the whole row."""
    if verifier == "code" and not spec.tests_field:
        return None
    checked = {"code": spec.tests_field, "none": ""}.get(verifier, spec.answer_field)
    others = (
        spec.tools_field, spec.level_field, spec.teacher_field, spec.source_field, spec.where_field,
    )  # fmt: skip
    return [field for field in (spec.prompt_field, checked, *others) if field]


def check_template(template: str) -> None:
    """Refuses what is neither a name nor a text with a place for the question."""
    if template not in TEMPLATES and QUESTION not in template:
        raise ConfigError(
            f"template must contain {QUESTION} or be one of {', '.join(TEMPLATES)}, "
            f"got {template!r}"
        )


def fill(template: str, question: str) -> str:
    """The prompt: `question` in its place in a template, which is given by name or as text."""
    return TEMPLATES.get(template, template).replace(QUESTION, question)
