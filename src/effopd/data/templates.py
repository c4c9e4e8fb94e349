"""Text around a question: the prompts of the paper, by name.

`math` is the template of arXiv 2605.11739, appendix D; `code` asks for Python as Eurus-2-RL-Data
and arXiv 2602.12125 do. Rows of Eurus already end with all but the last sentence of it. `choice` is
what arXiv 2602.12125 asks for with GPQA, `complete` puts the stub of HumanEval+ and MBPP+ in.
"""

from collections.abc import Mapping

from effopd.errors import ConfigError

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
"""Name in settings -> template."""


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
