"""`effopd data preview`: what student and teacher are shown, before anything is trained."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from effopd.data.problem import CountingVerifier, Problem, Task
from effopd.data.world import TinyWorld, make_tokenizer
from effopd.models.loading import ModelSettings, load_tokenizer
from effopd.records import display_text
from effopd.rewards.build import verifier_for
from effopd.rollouts.prompts import lend_template_
from effopd.training.config import Config, load_config
from effopd.training.problems import load_problems

_NARROWEST, _GAP = 24, " | "


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One prompt as a model gets it: its tokens, and their text with special tokens visible."""

    ids: tuple[int, ...]
    text: str


def preview(recipe: Path, overrides: Sequence[str], problems: int) -> None:
    """Prints counts of the problems of a recipe, and the first training prompts.

    No weights are loaded, and nothing is written.

    Args:
        recipe: Recipe.
        overrides: Settings.
        problems: Training problems to show.
    """
    config = load_config(recipe, overrides)
    student, teachers = _tokenizers(config)
    task = _problems(config, student)
    print(f"{len(task.train)} training problems, {len(task.test)} test problems")
    width = shutil.get_terminal_size((100, 24)).columns
    for problem in task.train[:problems]:
        own = rendered(config, student, problem)
        teacher = teachers.get(problem.teacher)
        seen = own if teacher is None else rendered(config, teacher, problem)
        print("\n".join(["", *block(problem, own, seen, width=width)]))


def rendered(config: Config, tokenizer: Any, problem: Problem) -> Rendered:
    """The prompt of a problem by one model's tokenizer and chat template."""
    ids = config.prompt.encode(tokenizer, problem)
    return Rendered(ids=ids, text=tokenizer.decode(ids, skip_special_tokens=False))


def block(problem: Problem, student: Rendered, teacher: Rendered, *, width: int) -> Iterator[str]:
    """The lines about one problem; the prompt once where both models get the same tokens."""
    about = [f"level {problem.level}" if problem.level else "", problem.source]
    about += [f"teacher {problem.teacher}" if problem.teacher else ""]
    yield display_text(f"--- {problem.id} {' '.join(each for each in about if each)}".rstrip())
    if student.ids == teacher.ids:
        yield f"{len(student.ids)} tokens, the same for student and teacher:"
        yield display_text(student.text)
    else:
        names = [f"student, {len(student.ids)} tokens:", f"teacher, {len(teacher.ids)} tokens:"]
        yield from side_by_side(names[0], names[1], width)
        yield from side_by_side(display_text(student.text), display_text(teacher.text), width)
        yield f"DIFFERENT from token {_first_difference(student.ids, teacher.ids)} on: " + (
            "the teacher scores the student's tokens, which are not those of its own prompt"
        )
    yield f"reference: {_reference(problem)}"


def side_by_side(left: str, right: str, width: int) -> Iterator[str]:
    """Two texts in two columns, lines wrapped."""
    column = max(_NARROWEST, (width - len(_GAP)) // 2)
    for a, b in zip_longest(_wrapped(left, column), _wrapped(right, column), fillvalue=""):
        yield f"{a:{column}}{_GAP}{b}".rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    return [
        part
        for line in text.split("\n")
        for part in textwrap.wrap(line, width, drop_whitespace=False, tabsize=4) or [""]
    ]


def _first_difference(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of the first token that differs, from 1."""
    same = [a == b for a, b in zip_longest(first, second)]
    return same.index(False) + 1


def _reference(problem: Problem) -> str:
    if problem.tests is not None:
        return f"{len(problem.tests.inputs)} tests, {problem.tests.kind}"
    return display_text(problem.answer) or "none"


def _problems(config: Config, tokenizer: Any) -> Task:
    """The problems as a run would have them, counts printed."""
    with ExitStack() as stack:
        verifier = verifier_for(config.task, config.code)
        if isinstance(verifier, CountingVerifier):
            stack.enter_context(closing(verifier))
        return load_problems(config, tokenizer, verifier, lambda line: print(display_text(line)))


def _tokenizers(config: Config) -> tuple[Any, Mapping[str, Any]]:
    """The student's tokenizer, and the teachers' by name; the tiny world brings its own."""

    def tokenizer(settings: ModelSettings | None) -> Any:
        if settings is not None:
            return load_tokenizer(settings)
        assert isinstance(config.task, TinyWorld)  # Config checked it
        return make_tokenizer(config.task)

    student = tokenizer(config.student)
    named = {name: tokenizer(settings) for name, settings in config.teachers.items()}
    if config.teacher is not None:
        named[""] = tokenizer(config.teacher)
    for name, teacher in named.items():
        if config.prompt.chat and lend_template_(student, teacher):
            print(display_text(f"teacher {name} has no chat template: the student's is shown"))
    return student, named
