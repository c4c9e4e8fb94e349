"""Problems from a named data set, one's own files, or memory, filtered."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from effopd.config.reading import read, read_toml
from effopd.data.filters import Check, Filters, plain, select
from effopd.data.mapping import MappedRow, check_template, needed_fields, read_row
from effopd.data.problem import AnswerRules, Counts, Task, VerifierName, check_verifier
from effopd.data.rows import Row, file_rows, hub_rows, memory_rows
from effopd.errors import ConfigError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OF_THE_HUB = ("repo", "revision", "config", "split", "files")
_USUAL = {
    "split": "train",
    "prompt_field": "question",
    "answer_field": "answer",
    "log_base": "e",
    "system": "keep",
    "template": "plain",
}
"""What a data set has that says nothing else."""


# The registry -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One way in which the rows of a benchmark are written: `fields` are those of a `DatasetSpec`.

    `choices` says where the options of a question are: below it, or in fields of their own.
    """

    fields: dict[str, str | float]
    choices: Literal["", "text", "columns"] = ""
    solution_field: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A named set of questions; without settings of the `hub` it has to be given as a file.

    Rows of the hub are in the first schema, those of a file in the first that can read its first.
    """

    verifier: Literal["math", "code"]
    licence: str
    source: str
    hub: dict[str, str] = dataclasses.field(default_factory=dict)
    schemas: tuple[Schema, ...]


@dataclass(frozen=True, kw_only=True)
class Registry:
    """`registry.toml`: settings of data sets and benchmarks by name."""

    datasets: dict[str, dict[str, str]]
    benchmarks: dict[str, Benchmark]


@cache
def registry() -> Registry:
    """The data sets and benchmarks that are known by name."""
    return read(Registry, read_toml(Path(__file__).with_name("registry.toml"))[0])


# Data sets ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    r"""Rows and what their fields mean; "" takes what the named data set has.

    Attributes:
        name: A named data set (docs/data.md), or "custom" for one's own.
        path: Local `.jsonl` or `.parquet` file, or a pattern such as `data/train-*.parquet`.
        hub: Load from the Hugging Face hub instead.
        repo: Repository on the hub.
        revision: Its commit, 40 hexadecimal digits.
        config: Its configuration.
        split: Its split.
        files: The file in it, where only some are meant.
        prompt_field: Field with the question, or with chat messages. Fields may be dotted.
        tools_field: Field with the JSON schemas of the tools that the prompt offers; "" for none.
        answer_field: Field with the reference answer.
        answer_after: The reference follows the last of this text in the answer field.
        level_field: Field with the difficulty, a number.
        teacher_field: Field with the name of the problem's teacher.
        source_field: Field that says where the problem is from.
        tests_form: Form of the tests of a program (docs/code.md).
        tests_field: Field with the tests, where the form is not one of whole rows.
        where_field: Field that selects rows.
        where: What that field has to be; other rows are counted as left out.
        log_base: What `\log` without a base means in references, "e" or "10" (docs/rewards.md).
        relative_error: Relative error that answers to rounded references may have.
        system: What becomes of a system message in the data, "keep" or "drop".
        template: Name (docs/data.md) or text of the template around a question; `{question}` is
            replaced.
        keep_fields: Fields with texts that a teacher's prompt shows (docs/teachers.md).
    """

    name: str = "custom"
    path: str = ""
    hub: bool = False
    repo: str = ""
    revision: str = ""
    config: str = ""
    split: str = ""
    files: str = ""
    prompt_field: str = ""
    tools_field: str = ""
    answer_field: str = ""
    answer_after: str = ""
    level_field: str = ""
    teacher_field: str = ""
    source_field: str = ""
    tests_form: Literal["", "input_output", "codeforces", "evalplus"] = ""
    tests_field: str = ""
    where_field: str = ""
    where: str = ""
    log_base: Literal["", "e", "10"] = ""
    relative_error: float = 0.0
    system: Literal["", "keep", "drop"] = ""
    template: str = ""
    keep_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_fields", tuple(self.keep_fields))
        known = registry().datasets
        if self.name not in known:
            raise ConfigError(f"name must be one of {', '.join(known)}, got {self.name!r}")
        if bool(self.path) == self.hub:
            raise ConfigError("give either path, a local file, or hub = true")
        if not self.hub and (given := [name for name in _OF_THE_HUB if getattr(self, name)]):
            raise ConfigError(f"{given[0]} is of the hub: remove it, or set hub instead of path")
        named = known[self.name]
        other = self.repo not in {"", named.get("repo")}
        if self.hub and other and not self.revision:
            raise ConfigError("repo needs revision, a commit of it: branches move")
        # what was left open is what the named data set says, so that a record of it is complete
        for name, value in (_USUAL | named).items():
            if name != "licence" and (self.hub or name not in _OF_THE_HUB):
                object.__setattr__(self, name, getattr(self, name) or value)
        if self.hub and not self.repo:
            raise ConfigError("hub = true needs name or repo")
        if self.hub and not _COMMIT.fullmatch(self.revision):
            raise ConfigError(
                f"revision must be a commit of 40 hexadecimal digits, got {self.revision!r}: "
                "branches move"
            )
        if bool(self.where_field) != bool(self.where):
            raise ConfigError("where_field and where select rows together: set both or none")
        if self.tests_form == "input_output" and not self.tests_field:
            raise ConfigError("tests_form = 'input_output' needs tests_field")
        check_template(self.template)
        assert self.rules  # checks itself

    @property
    def rules(self) -> AnswerRules:
        """How its references are written."""
        return AnswerRules(log_base=self.log_base or "e", relative_error=self.relative_error)

    @property
    def title(self) -> str:
        """What it is, for people: the files, or the repository with its commit."""
        return self.path or f"{self.repo}@{self.revision[:12]} {self.split}"

    def rows(self, fields: Sequence[str] | None, name: str = "") -> Iterator[Row]:
        """The rows in order, of the needed fields, None for all; `name` is what to call them."""
        if not self.hub:
            return file_rows(self.path, fields)
        where: Any = {key: getattr(self, key) for key in _OF_THE_HUB}
        return hub_rows(**where, fields=fields, name=name)


@dataclass(frozen=True, kw_only=True)
class DatasetTask:
    """Training and test problems from data sets, with filters on those to train on.

    Attributes:
        train: Training problems.
        more: More of them, each source with settings of its own; they follow those of `train`.
        test: Test problems; None holds out the last `test_size` problems of `train`.
        test_size: Problems held out when `test` is None.
        verifier: Who checks answers (docs/rewards.md); problems without what it needs are left
            out.
        filters: Which training problems are left out.
    """

    type: Literal["dataset"] = "dataset"
    train: DatasetSpec
    more: tuple[DatasetSpec, ...] = ()
    test: DatasetSpec | None = None
    test_size: int = 256
    verifier: VerifierName = "math"
    filters: Filters = Filters()

    def __post_init__(self) -> None:
        check_verifier(self.verifier)
        if self.test_size < 1:
            raise ConfigError(f"test_size must be at least 1, got {self.test_size}")
        for spec in self.sources if self.verifier != "none" else ():
            if self.verifier == "code" and not spec.tests_form:
                raise ConfigError("verifier = 'code' needs programs with tests: set tests_form")
            if self.verifier in {"boxed", "math"} and not spec.answer_field:
                raise ConfigError(
                    f"verifier = {self.verifier!r} needs answer_field; programs are checked by "
                    "'code', nothing by 'none'"
                )

    @property
    def sources(self) -> tuple[DatasetSpec, ...]:
        """All data sets, the test problems last."""
        return (self.train, *self.more, *([self.test] if self.test else []))

    def load(self) -> Task:
        """Reads and filters the problems; too few, or two of one id, are a ConfigError."""
        return self.of_rows(None, None)

    def of_rows(
        self,
        train: Iterable[Mapping[str, Any]] | None,
        test: Iterable[Mapping[str, Any]] | None = None,
    ) -> Task:
        """The problems of rows in memory; None reads those that the settings name."""
        rows = None if train is None else memory_rows(train, "train")
        test_rows = None if test is None else memory_rows(test, "test")
        held_out: list[MappedRow] = []
        test_counts: list[Counts] = []
        if self.test is not None:
            held_out, counts = self._select(self.test, test_rows, [])
            test_counts = [counts]
        checks = self.filters.checks({plain(each.problem) for each in held_out})
        kept, counts = self._select(self.train, rows, checks)
        if self.test is None:
            if len(kept) <= self.test_size:
                left_out = f" ({counts})" if counts.dropped else ""
                raise ConfigError(
                    f"{len(kept)} problems of {self.train.title} are too few to hold out "
                    f"test_size = {self.test_size}: give test or lower test_size{left_out}"
                )
            kept, held_out = kept[: -self.test_size], kept[-self.test_size :]
        mixed = [self._select(spec, None, checks) for spec in self.more]
        kept = [*kept, *(each for problems, _ in mixed for each in problems)]
        task = Task(
            train=[each.problem for each in kept],
            test=[each.problem for each in held_out],
            counts=(counts, *(counts for _, counts in mixed), *test_counts),
        )
        # ids are made of file names and numbers of rows; files of one name would share them
        ids = Counter(problem.id for problem in (*task.train, *task.test))
        name, times = ids.most_common(1)[0]
        if times > 1:
            raise ConfigError(
                f"{times} problems would have the id {name!r}: give the files different names"
            )
        return task

    def _select(
        self, spec: DatasetSpec, rows: Iterable[Row] | None, checks: Sequence[Check]
    ) -> tuple[list[MappedRow], Counts]:
        rows = spec.rows(needed_fields(spec, self.verifier)) if rows is None else rows
        return select(spec.title, (read_row(row, spec, self.verifier) for row in rows), checks)
