"""What student and teacher are shown, before anything is trained."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from effopd.data.problem import CountingVerifier, Problem, Task
from effopd.data.world import TinyWorld, make_tokenizer
from effopd.models.loading import load_tokenizer
from effopd.records import display_text
from effopd.rewards.build import verifier_for
from effopd.rollouts.prompts import PromptTemplate, lend_template_
from effopd.training.build import base_settings, load_problems, prompt_of
from effopd.training.config import Config

_NARROWEST, _GAP = 24, " | "


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One prompt as a model gets it: its tokens, and their text with special tokens visible."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A problem, and its prompt as student and teacher get it; `has_own` if that is set."""

    problem: Problem
    student: Rendered
    teacher: Rendered
    has_own: bool = False


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The problems of a recipe as a run would have them."""

    remarks: Sequence[str]  # what was left out, and templates that are lent
    task: Task  # all problems that are kept
    shown: Sequence[Shown]  # the first training problems

    def text(self, width: int) -> str:
        """The preview for a terminal of `width` columns."""
        counts = f"{len(self.task.train)} training problems, {len(self.task.test)} test problems"
        blocks = (line for each in self.shown for line in ("", *block(each, width=width)))
        return "\n".join([*map(display_text, self.remarks), counts, *blocks])


def preview(config: Config, problems: int = 3) -> Preview:
    """Reads the problems of a run as it would, and renders the first training prompts.

    Loads no weights and writes nothing.
    """
    if config.student is not None:
        student = load_tokenizer(config.student)
    elif isinstance(config.task, TinyWorld):
        student = make_tokenizer(config.task)
    else:
        student = load_tokenizer(base_settings(config, lambda text: None))
    named = dict(config.teachers) | ({"": config.teacher} if config.teacher is not None else {})
    teachers = {name: load_tokenizer(settings) for name, settings in named.items()}
    remarks = [
        f"teacher {name} has no chat template: the student's is shown"
        for name, teacher in teachers.items()
        if prompt_of(config, name).chat and lend_template_(student, teacher)
    ]
    with ExitStack() as stack:
        verifier = verifier_for(config.task, config.code)
        if isinstance(verifier, CountingVerifier):
            stack.enter_context(closing(verifier))
        task = load_problems(config, student, verifier, remarks.append)
    shown = []
    for problem in task.train[:problems]:
        own, other = student, teachers.get(problem.teacher, student)
        template = prompt_of(config, problem.teacher)
        texts = {"student": render(config, own, problem)}
        texts["teacher"] = render(config, other, problem, template)
        is_own = template is not config.prompt
        shown.append(Shown(problem=problem, has_own=is_own, **texts))
    return Preview(remarks=remarks, task=task, shown=shown)


def render(
    config: Config, tokenizer: Any, problem: Problem, template: PromptTemplate | None = None
) -> Rendered:
    """The prompt of a problem by one model's tokenizer and chat template."""
    ids = (template or config.prompt).encode(tokenizer, problem)
    return Rendered(ids=ids, text=tokenizer.decode(ids, skip_special_tokens=False))


def block(shown: Shown, *, width: int) -> Iterator[str]:
    """The lines about one problem; the prompt once where both models get the same tokens."""
    problem, student, teacher = shown.problem, shown.student, shown.teacher
    about = [problem.id, f"level {problem.level}" if problem.level else "", problem.source]
    about += [f"teacher {problem.teacher}" if problem.teacher else ""]
    yield display_text(f"--- {' '.join(each for each in about if each)}")
    if student.ids == teacher.ids:
        yield f"{len(student.ids)} tokens, the same for student and teacher:"
        yield display_text(student.text)
    else:
        names = (f"student, {len(student.ids)} tokens:", f"teacher, {len(teacher.ids)} tokens:")
        yield from side_by_side(*names, width)
        yield from side_by_side(display_text(student.text), display_text(teacher.text), width)
        same = [a == b for a, b in zip_longest(student.ids, teacher.ids)]
        yield f"DIFFERENT from token {same.index(False) + 1} on: " + (
            "the teacher reads its own prompt (teacher_prompt) before the student's answers"
            if shown.has_own
            else "the teacher scores the student's tokens, which are not those of its own prompt"
        )
    if problem.tests is not None:
        yield f"reference: {len(problem.tests.inputs)} tests, {problem.tests.kind}"
    else:
        yield f"reference: {display_text(problem.answer) or 'none'}"


def side_by_side(left: str, right: str, width: int) -> Iterator[str]:
    """Two texts in two columns, lines wrapped."""
    column = max(_NARROWEST, (width - len(_GAP)) // 2)
    wrapper = textwrap.TextWrapper(column, drop_whitespace=False, tabsize=4)
    columns = (
        [part for line in text.split("\n") for part in wrapper.wrap(line) or [""]]
        for text in (left, right)
    )
    for a, b in zip_longest(*columns, fillvalue=""):
        yield f"{a:{column}}{_GAP}{b}".rstrip()
