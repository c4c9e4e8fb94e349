r"""The benchmarks of arXiv 2605.11739 and 2602.12125 by name, and their questions.

A benchmark is its questions, their order, the prompt around them and who checks answers. Its rows
come from the Hugging Face hub at one commit, or from a local file in one of the forms it is
distributed in.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from effopd.data.choices import Choices, choices_in_columns, choices_in_text
from effopd.data.counts import Counts
from effopd.data.fields import text_at
from effopd.data.filters import select
from effopd.data.hub import hub_rows
from effopd.data.mapping import Candidate, Unfit, read_row
from effopd.data.origins import ORIGINS, Origin
from effopd.data.problem import AnswerRules, Problem
from effopd.data.rows import Row, file_rows, local_files
from effopd.errors import ConfigError

ReadChoices = Callable[[Mapping[str, Any]], Choices]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way in which the rows of a benchmark are written.

    Attributes:
        origin: Fields and template; the repository, where it is the form of the hub.
        choices: Reads the options of a row; None where answers are free.
        solution_field: Field with a worked solution; "" where there is none.
    """

    origin: Origin
    choices: ReadChoices | None = None
    solution_field: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A named set of questions.

    Attributes:
        verifier: Who checks answers.
        licence: Licence of the data, for people.
        source: Where its rows are, for people.
        hub: Form on the hub, at its commit; None where it has to be given as a file.
        files: Forms of a file; the first one that can read its first row is taken.
    """

    verifier: Literal["math", "code"]
    licence: str
    source: str
    hub: Form | None
    files: tuple[Form, ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A problem of a benchmark, and what it says is right.

    Attributes:
        problem: The problem; its id is the benchmark's name and the number of the row, from 1.
        solution: An answer that has to be found right; "" where the benchmark has none.
    """

    problem: Problem
    solution: str


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A benchmark, read.

    Attributes:
        name: Its name.
        verifier: Who checks answers.
        source: File, or repository and commit, that it was read from.
        licence: Licence of the data.
        rules: How its references are written.
        questions: In the order of the rows.
        counts: Rows read and left out; only those of programs may be, where no inputs and outputs
            can judge them.
    """

    name: str
    verifier: Literal["math", "code"]
    source: str
    licence: str
    rules: AnswerRules
    questions: tuple[Question, ...]
    counts: Counts


def load_benchmark(
    name: str, path: str = "", *, seed: int = 0, limit: int | None = None
) -> Questions:
    """Reads a benchmark.

    Args:
        name: One of `BENCHMARKS`; any other name for a file of one's own, whose rows have
            `problem` or `question`, and `answer`, and are checked as mathematics.
        path: Local `.jsonl` or `.parquet` file, or a pattern; "" for the hub.
        seed: Decides the order of options.
        limit: First so many questions; None for all.

    Returns:
        The questions.

    Raises:
        ConfigError: The name is unknown, the benchmark is not on the hub at a known commit, or a
            row cannot be read.
        MissingExtraError: The hub is asked for without `datasets`.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None and not path:
        raise ConfigError(
            f"unknown benchmark {name!r}: choose of {', '.join(BENCHMARKS)}, or give a file of "
            f"your own with --data {name}=FILE"
        )
    benchmark = benchmark or _OWN
    if path:
        rows = [row for file in local_files(path) for row in file_rows(file)]
        form, source = _form_of(name, path, benchmark, rows), path
    elif benchmark.hub is None:
        raise ConfigError(
            f"{name} is not on the hub at a commit known here: give its file with --data "
            f"{name}=FILE (from {benchmark.source})"
        )
    else:
        form = benchmark.hub
        source = f"{form.origin.repo}@{form.origin.revision}"
        rows = list(hub_rows(form.origin, name, None))
    found = _questions(name, benchmark, form, source, rows, seed)
    return replace(found, questions=found.questions[:limit])


def _form_of(name: str, path: str, benchmark: Benchmark, rows: list[Row]) -> Form:
    """The first form that the first row has."""
    if not rows:
        raise ConfigError(f"{path} holds no rows of {name}")
    mistakes = []
    for form in benchmark.files:
        found = _question(rows[0], form, benchmark.verifier, name, 1, 0)
        if not (isinstance(found, Unfit) and found.reason == _NO_QUESTION):
            return form
        mistakes.append(found.message.partition(": ")[2])
    raise ConfigError(
        f"{rows[0].place} is in no form of {name}: {'; '.join(dict.fromkeys(mistakes))}"
    )


def _questions(
    name: str, benchmark: Benchmark, form: Form, source: str, rows: list[Row], seed: int
) -> Questions:
    found: list[Question] = []

    def read() -> Iterator[Candidate | Unfit]:
        for number, row in enumerate(rows, start=1):
            question = _question(row, form, benchmark.verifier, name, number, seed)
            if isinstance(question, Unfit):
                if benchmark.verifier == "math":
                    raise ConfigError(f"{question.message or row.place}: repair the file")
                yield question
                continue
            found.append(question)
            yield Candidate(problem=question.problem, question="", level=None)

    _, counts = select(source, read(), [])
    return Questions(
        name=name,
        verifier=benchmark.verifier,
        source=source,
        licence=benchmark.licence,
        rules=form.origin.rules,
        questions=tuple(found),
        counts=counts,
    )


_NO_QUESTION = "no readable question"


def _question(
    row: Row, form: Form, verifier: Literal["math", "code"], name: str, number: int, seed: int
) -> Question | Unfit:
    """The question of a row, or why there is none."""
    row = row._replace(name=f"{name}-{number}")
    letter = ""
    if form.choices is not None:
        try:
            choices = form.choices(row.values).shuffled(seed)
        except ConfigError as error:
            return Unfit(reason=_NO_QUESTION, message=f"{row.place}: {error}")
        letter = choices.letter
        row = row._replace(values={"question": choices.text, "answer": letter})
    read = read_row(row, form.origin, verifier)
    if isinstance(read, Unfit):
        return read
    return Question(problem=read.problem, solution=_solution(row, form, read.problem))


def _solution(row: Row, form: Form, problem: Problem) -> str:
    """A completion that is right: worked, or the reference in a box, or a program."""
    if form.solution_field:
        return text_at(row.values, form.solution_field)
    if problem.tests is not None:
        reference = problem.tests.reference
        return f"```python\n{reference}\n```" if reference else ""
    return rf"\boxed{{{problem.answer}}}"


# The benchmarks -----------------------------------------------------------------------------------

_PROBLEM = Form(origin=Origin(prompt_field="problem", template="math"))
_QUESTION = Form(origin=Origin(prompt_field="question", template="math"))
_LETTER = Origin(template="choice")


def _on_hub(form: Form, repo: str, revision: str, **settings: Any) -> Form:
    return replace(form, origin=replace(form.origin, repo=repo, revision=revision, **settings))


def _rounded(form: Form) -> Form:
    """A form whose references are roundings: answers may be off by 1e-4 of them.

    Source: the evaluation of Qwen2.5-Math (arXiv 2409.12122), which most published scores use.
    """
    return replace(form, origin=replace(form.origin, relative_error=1e-4))


def _evalplus(source: str) -> Benchmark:
    origin = Origin(
        prompt_field="prompt", answer_field="", tests_form="evalplus", template="complete"
    )
    return Benchmark(
        verifier="code", licence="Apache-2.0", source=source, hub=None, files=(Form(origin=origin),)
    )


_AIME = "problems of the Mathematical Association of America"
_MATH = replace(_PROBLEM, solution_field="solution")
_GSM8K = replace(_QUESTION, origin=replace(ORIGINS["gsm8k"], split="test"))
_CODEFORCES = Form(
    origin=Origin(
        prompt_field="prompt",
        answer_field="",
        tests_form="codeforces",
        where_field="language",
        where="python",
    )
)
_TACO = Form(
    origin=Origin(
        prompt_field="question",
        answer_field="",
        tests_form="input_output",
        tests_field="input_output",
        template="code",
    )
)
_OWN = Benchmark(
    verifier="math", licence="your own", source="", hub=None, files=(_PROBLEM, _QUESTION)
)

BENCHMARKS: Mapping[str, Benchmark] = {
    "aime24": Benchmark(
        verifier="math",
        licence=_AIME,
        source="HuggingFaceH4/aime_2024",
        hub=_on_hub(
            _PROBLEM, "HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"
        ),
        files=(_PROBLEM,),
    ),
    "aime25": Benchmark(
        verifier="math",
        licence=_AIME,
        source="math-ai/aime25",
        hub=_on_hub(
            _PROBLEM,
            "math-ai/aime25",
            "563bb8404243c5f09de6ec262f2db674fe5bce9b",
            files="test.jsonl",
        ),
        files=(_PROBLEM,),
    ),
    "aime26": Benchmark(
        verifier="math",
        licence=_AIME,
        source="math-ai/aime26",
        hub=_on_hub(
            _PROBLEM,
            "math-ai/aime26",
            "79037aebdb6580008fb960d17cb21fd3099083e3",
            files="aime2026.jsonl",
        ),
        files=(_PROBLEM,),
    ),
    "math500": Benchmark(
        verifier="math",
        licence="MIT",
        source="HuggingFaceH4/MATH-500",
        hub=_on_hub(
            _MATH,
            "HuggingFaceH4/MATH-500",
            "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            split="test",
        ),
        files=(_MATH,),
    ),
    "minerva": Benchmark(
        verifier="math",
        licence="MIT OpenCourseWare, CC BY-NC-SA 4.0",
        source="math-ai/minervamath",
        hub=None,
        files=tuple(_rounded(form) for form in (_QUESTION, _PROBLEM)),
    ),
    "gpqa": Benchmark(
        verifier="math",
        licence="CC BY 4.0; its authors ask not to show the questions in public",
        source="Idavidrein/gpqa, which wants a token and consent",
        hub=Form(
            origin=replace(
                _LETTER,
                repo="Idavidrein/gpqa",
                revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
                config="gpqa_diamond",
            ),
            choices=choices_in_columns,
        ),
        files=(
            Form(origin=_LETTER, choices=choices_in_columns),
            Form(origin=_LETTER, choices=choices_in_text),
        ),
    ),
    "gsm8k": Benchmark(
        verifier="math",
        licence="MIT",
        source="openai/gsm8k",
        hub=_GSM8K,
        files=(_PROBLEM, _GSM8K),
    ),
    "codeforces": Benchmark(
        verifier="code",
        licence="CC BY 4.0",
        source="open-r1/codeforces, configuration verifiable-prompts",
        hub=_on_hub(
            _CODEFORCES,
            "open-r1/codeforces",
            "fbe3f6e903ee854eec2e69e9d96d0306cde59baf",
            config="verifiable-prompts",
            split="test",
        ),
        files=(_CODEFORCES,),
    ),
    "taco": Benchmark(
        verifier="code",
        licence="Apache-2.0",
        source="BAAI/TACO, split test, exported as parquet: it holds Arrow files and a script",
        hub=None,
        files=(_TACO,),
    ),
    "humaneval+": _evalplus("github.com/evalplus/humanevalplus_release, unpacked"),
    "mbpp+": _evalplus("github.com/evalplus/mbppplus_release, unpacked"),
}
"""Name in `--bench` -> benchmark."""
