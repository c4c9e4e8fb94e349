"""Questions of benchmarks by name: their order, the prompt around them, and who checks answers.

A benchmark's rows come from the Hugging Face hub at one commit, or from a local file in one of the
schemas it is distributed in; `registry.toml` has those of arXiv 2605.11739 and 2602.12125.
"""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from effopd.data.dataset import Benchmark, DatasetSpec, Schema, registry
from effopd.data.fields import text_at
from effopd.data.filters import select
from effopd.data.mapping import NO_QUESTION, MappedRow, RejectedRow, read_row
from effopd.data.problem import AnswerRules, Counts, Problem
from effopd.data.rows import Row, memory_rows
from effopd.errors import ConfigError

_OWN = Benchmark(
    verifier="math",
    licence="your own",
    source="",
    schemas=tuple(
        Schema(fields={"prompt_field": field, "template": "math"})
        for field in ("problem", "question")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A problem, its id the benchmark's name and the number of the row, from 1.

    `solution` is an answer that has to be found right; "" where the benchmark has none.
    """

    problem: Problem
    solution: str


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A benchmark, read from `source`: a file, or a repository at a commit.

    Only programs may be left out of its rows, where no inputs and outputs can judge them.
    """

    name: str
    verifier: Literal["math", "code"]
    source: str
    licence: str
    rules: AnswerRules
    questions: tuple[Question, ...]
    counts: Counts

    def __len__(self) -> int:
        return len(self.questions)


def load_benchmark(
    name: str,
    source: str | Path | Iterable[Mapping[str, Any]] = "",
    *,
    seed: int = 0,
    limit: int | None = None,
) -> Questions:
    """Reads a benchmark from the hub, from a file, or from rows in memory."""
    known = registry().benchmarks
    given = None if isinstance(source, str | Path) else list(source)
    path = str(source) if given is None else f"{len(given)} rows in memory"
    if name not in known and not path:
        raise ConfigError(
            f"unknown benchmark {name!r}: choose of {', '.join(known)}, or give a file of your own "
            f"with --data {name}=FILE"
        )
    benchmark = known.get(name, _OWN)
    if not path and not benchmark.hub:
        raise ConfigError(
            f"{name} is not on the hub at a commit known here: give its file with --data "
            f"{name}=FILE (from {benchmark.source})"
        )
    hub: Any = {} if path else {**benchmark.hub, "hub": True}
    specs = [DatasetSpec(**{"path": path, **each.fields, **hub}) for each in benchmark.schemas]
    rows = specs[0].rows(None, name) if given is None else memory_rows(given, name)
    spec, schema = specs[0], benchmark.schemas[0]
    if path:
        first = next(rows, None)
        if first is None:
            raise ConfigError(f"{path} holds no rows of {name}")
        rows = chain([first], rows)
        spec, schema = _fitting(first, specs, benchmark, name, seed)
    title = path or f"{spec.repo}@{spec.revision}"
    questions: list[Question] = []

    def mapped(rows: Iterable[Row]) -> Iterator[MappedRow | RejectedRow]:
        for number, row in enumerate(rows, start=1):
            named = row._replace(name=f"{name}-{number}")
            question = _question(named, spec, schema, benchmark.verifier, seed)
            if isinstance(question, Question):
                questions.append(question)
                yield MappedRow(question.problem)
            elif benchmark.verifier == "math":
                raise ConfigError(f"{question.message or row.place}: repair the file")
            else:
                yield question

    _, counts = select(title, mapped(rows), [])
    return Questions(
        name=name,
        verifier=benchmark.verifier,
        source=title,
        licence=benchmark.licence,
        rules=spec.rules,
        questions=tuple(questions[:limit]),
        counts=counts,
    )


def _fitting(
    first: Row, specs: Sequence[DatasetSpec], benchmark: Benchmark, name: str, seed: int
) -> tuple[DatasetSpec, Schema]:
    """The first schema that can read the first row."""
    mistakes = []
    for spec, schema in zip(specs, benchmark.schemas, strict=True):
        found = _question(first, spec, schema, benchmark.verifier, seed)
        if not (isinstance(found, RejectedRow) and found.reason == NO_QUESTION):
            return spec, schema
        mistakes.append(found.message.partition(": ")[2])
    listed = "; ".join(dict.fromkeys(mistakes))
    raise ConfigError(f"{first.place} is in no schema of {name}: {listed}")


def _question(
    row: Row, spec: DatasetSpec, schema: Schema, verifier: Literal["math", "code"], seed: int
) -> Question | RejectedRow:
    """The question of a row with an answer that is right, or why there is none."""
    if schema.choices:
        try:
            text, letter = with_options(row.values, schema.choices, seed)
        except ConfigError as error:
            return RejectedRow(NO_QUESTION, f"{row.place}: {error}")
        row = row._replace(values={"question": text, "answer": letter})
    found = read_row(row, spec, verifier)
    if isinstance(found, RejectedRow):
        return found
    problem = found.problem
    if schema.solution_field:
        solution = text_at(row.values, schema.solution_field)
    elif problem.tests is None:
        solution = rf"\boxed{{{problem.answer}}}"
    else:
        reference = problem.tests.reference
        solution = f"```python\n{reference}\n```" if reference else ""
    return Question(problem=problem, solution=solution)


# Questions with options ---------------------------------------------------------------------------

_LISTED = re.compile(
    r"(?P<question>.*?)\n+A\. (?P<A>.*?)\nB\. (?P<B>.*?)\nC\. (?P<C>.*?)\nD\. (?P<D>.*)", re.DOTALL
)
_ASKS_FOR_LETTER = re.compile(r"\n\n[^\n]*\\boxed\{\}[^\n]*$")
_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def with_options(
    row: Mapping[str, Any], where: Literal["text", "columns"], seed: int
) -> tuple[str, str]:
    r"""A question with its options below it, one a line with letters, and the letter of the right.

    They stand in the "text" of `question`, one a line at its end, with the letter as `answer`; or
    in "columns" of their own, the right one first, as in the repository of GPQA. Their order
    depends on the seed and the question alone. A last paragraph that asks for the letter in
    `\boxed{}` is left out, as templates do that.
    """
    if where == "text":
        text, answer = text_at(row, "question"), text_at(row, "answer").strip()
        found = _LISTED.fullmatch(_ASKS_FOR_LETTER.sub("", text.rstrip()))
        if found is None:
            raise ConfigError("field 'question' must end with four options, A. to D., one a line")
        if answer not in {"A", "B", "C", "D"}:
            raise ConfigError(f"field 'answer' must be a letter from A to D, got {answer!r:.20}")
        question, right = found["question"].strip(), "ABCD".index(answer)
        options = [found[letter].strip() for letter in "ABCD"]
    else:
        options, right = [text_at(row, column).strip() for column in _COLUMNS], 0
        question = text_at(row, "Question").strip()
    order = list(range(len(options)))
    random.Random(f"{seed}/{question}").shuffle(order)
    lines = [f"{letter}. {options[i]}" for letter, i in zip("ABCD", order, strict=True)]
    return "\n".join([question, "", *lines]), "ABCD"[order.index(right)]
