"""The problems of a run: read, filtered, and checked against the tokenizer and the verifier."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from effopd.data.problem import Counts, Problem, Task, Verifier
from effopd.errors import ConfigError
from effopd.rewards.build import without_unreadable
from effopd.rollouts.prompts import PromptTemplate
from effopd.training.config import Config


def load_problems(
    config: Config, tokenizer: Any, verifier: Verifier | None, report: Callable[[str], None],
    given: Task | None = None,
) -> Task:  # fmt: skip
    """Reads the problems and leaves out those that cannot be used."""
    config.prompt.check_arguments(tokenizer)
    task = without_unreadable(given or config.task.load(), verifier, report)
    if config.prompt.too_long == "drop":
        task = _without_long_prompts(task, config.prompt, tokenizer)
    else:  # what is refused later is refused now, as far as the longest and each shape tell
        _check_shapes(config.prompt, tokenizer, (*task.train, *task.test))
    for counts in task.counts:
        report(str(counts))
        if counts.example:
            report(f"the first row that cannot be read: {counts.example}")
    return task


def check_teacher_prompts(
    template: PromptTemplate, tokenizer: Any, problems: Sequence[Problem]
) -> None:
    """Refuses a teacher that cannot read the prompts of its own evaluation."""
    try:
        _check_shapes(template, tokenizer, problems)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. Only the teacher's own evaluation needs its prompts: set "
            "evaluation.teacher = false"
        ) from None


def _check_shapes(template: PromptTemplate, tokenizer: Any, problems: Sequence[Problem]) -> None:
    """Encodes the longest prompt and one of each shape of conversation."""
    shapes = {(bool(problem.system), len(problem.turns)): problem for problem in problems}
    for problem in (max(problems, key=lambda each: each.characters), *shapes.values()):
        template.encode(tokenizer, problem)


def counts_record(task: Task) -> dict[str, Any]:
    """The counts of a task as `run.json` has them; nothing where nothing was counted."""
    found = [
        {k: v for k, v in asdict(c).items() if v or k not in {"answered", "example"}}
        for c in task.counts
    ]
    return {"problems": found} if found else {}


def _without_long_prompts(task: Task, template: PromptTemplate, tokenizer: Any) -> Task:
    def kept(name: str, problems: Sequence[Problem]) -> tuple[list[Problem], Counts]:
        short = template.short_enough(tokenizer, problems)
        if not short:
            raise ConfigError(
                f"all {len(problems)} {name} have more than prompt.max_tokens = "
                f"{template.max_tokens} tokens"
            )
        reason = f"more than {template.max_tokens} tokens"
        left_out = len(problems) - len(short)
        dropped = {reason: left_out} if left_out else {}
        return short, Counts(name=name, read=len(problems), kept=len(short), dropped=dropped)

    train, train_counts = kept("training prompts", task.train)
    test, test_counts = kept("test prompts", task.test)
    counts = (*task.counts, train_counts, test_counts)
    return replace(task, train=train, test=test, counts=counts)
