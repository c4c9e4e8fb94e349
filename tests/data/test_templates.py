"""Templates by name and as text."""

import pytest

from effopd.data.mapping import TEMPLATES, check_template, fill
from effopd.errors import ConfigError


def test_the_prompts_of_the_paper() -> None:
    assert fill("plain", "1+1?") == "1+1?"
    assert fill("math", "1+1?") == (
        "1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert fill("code", "Add.") == (
        "Add.\n\nWrite Python code to solve the problem. Present the code in \n"
        "```python\nYour code\n```\nat the end.\n"
        "You need to think first then write the Python code."
    )


def test_eurus_rows_with_think_first_are_the_code_prompt() -> None:
    question, rest = fill("code", "Add."), "\nYou need to think first then write the Python code."
    assert question.endswith(rest)
    assert fill("think_first", question.removesuffix(rest)) == question


def test_a_text_with_a_place_for_the_question() -> None:
    assert fill("Q: {question} A:", "{question}?") == "Q: {question}? A:", "filled in once"
    check_template("{question}")
    for name in TEMPLATES:
        check_template(name)


@pytest.mark.parametrize("template", ["", "maths", "{Question}", "Solve it."])
def test_neither_a_name_nor_a_text(template: str) -> None:
    with pytest.raises(ConfigError, match=r"must contain \{question\} or be one of plain, math"):
        check_template(template)
