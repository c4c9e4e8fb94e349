"""Who checks the answers of a run, made from the name that the settings give."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from effopd.data.dataset import DatasetTask
from effopd.data.problem import Problem, Task, Verifier
from effopd.data.smollm2 import World
from effopd.errors import ConfigError
from effopd.rewards.code import CodeChecking, CodeVerifier
from effopd.rewards.functions import imported_verifier
from effopd.rewards.math import BoxedAnswer, MathVerifier


def verifier_for(task: World | DatasetTask, checking: CodeChecking) -> Verifier | None:
    """The verifier of a task, which brings it or names it; None checks nothing.

    Close it at the end where it is a `CountingVerifier`.
    """
    if isinstance(task, World):
        return task.verifier
    match task.verifier:
        case "boxed":
            return BoxedAnswer()
        case "math":
            return MathVerifier()
        case "code":
            return CodeVerifier(checking)
        case "none":
            return None
        case path:
            return imported_verifier(path)


def without_unreadable(
    task: Task, verifier: Verifier | None, report: Callable[[str], None]
) -> Task:
    """The task without problems whose reference no answer could match; `report` is told."""
    if not isinstance(verifier, MathVerifier):
        return task

    def readable(name: str, problems: Sequence[Problem]) -> Sequence[Problem]:
        bad = {problem.id for problem in verifier.unreadable(problems)}
        if not bad:
            return problems
        kept = [problem for problem in problems if problem.id not in bad]
        if not kept:
            remedy = (
                "name the field that holds the answer alone, or worked solutions with the answer "
                r"in \boxed{...}"
            )
            if not any(_PROSE.search(problem.answer) for problem in problems):
                remedy = "use 'boxed', which compares texts, or other problems"
            raise ConfigError(
                f"none of the {len(problems)} {name} problems has a reference answer that "
                f"task.verifier = 'math' can read, such as {problems[0].answer!r:.80}: {remedy}"
            )
        report(
            f"left out {len(bad)} of {len(problems)} {name} problems, whose reference answers "
            f"cannot be read as mathematics: {some(sorted(bad))}"
        )
        return kept

    train, test = readable("training", task.train), readable("test", task.test)
    return replace(task, train=train, test=test)


_PROSE = re.compile(r"(?<!\\)\b[A-Za-z]{3,}\b\W*\s\S")
"""A word before something else: a sentence, whose text no box repeats."""


def some(names: Sequence[str]) -> str:
    """Names for people, not all of very many."""
    shown = ", ".join(names[:20])
    return f"{shown}, ..." if len(names) > 20 else shown
