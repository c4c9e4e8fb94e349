"""Problems from a named data set or one's own files, filtered."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from effopd.data.counts import Counts
from effopd.data.filters import Check, Filters, plain, select
from effopd.data.hub import hub_rows
from effopd.data.mapping import Candidate, needed_fields, read_row
from effopd.data.origins import ORIGINS, Origin, OriginName, TestsForm
from effopd.data.problem import AnswerRules, Problem, Task, VerifierName, check_verifier
from effopd.data.rows import Row, file_rows, local_files
from effopd.data.templates import check_template
from effopd.errors import ConfigError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OF_THE_HUB = ("repo", "revision", "config", "split", "files")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    r"""Rows and what their fields mean; "" leaves a setting to the named data set.

    Attributes:
        name: A named data set (docs/data.md), or "custom" for one's own.
        path: Local `.jsonl` or `.parquet` file, or a pattern such as `data/train-*.parquet`.
        hub: Load from the Hugging Face hub instead, by the extra `eval`.
        repo: Repository on the hub.
        revision: Its commit, 40 hexadecimal digits.
        config: Its configuration.
        split: Its split.
        files: The file in it, where only some are meant.
        prompt_field: Field with the question, or with chat messages. Fields may be dotted.
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
    """

    name: OriginName = "custom"
    path: str = ""
    hub: bool = False
    repo: str = ""
    revision: str = ""
    config: str = ""
    split: str = ""
    files: str = ""
    prompt_field: str = ""
    answer_field: str = ""
    answer_after: str = ""
    level_field: str = ""
    teacher_field: str = ""
    source_field: str = ""
    tests_form: TestsForm | Literal[""] = ""
    tests_field: str = ""
    where_field: str = ""
    where: str = ""
    log_base: Literal["", "e", "10"] = ""
    relative_error: float = 0.0
    system: Literal["", "keep", "drop"] = ""
    template: str = ""

    def __post_init__(self) -> None:
        if self.name not in ORIGINS:
            raise ConfigError(f"name must be one of {', '.join(ORIGINS)}, got {self.name!r}")
        if bool(self.path) == self.hub:
            raise ConfigError("give either path, a local file, or hub = true")
        if self.hub:
            self._check_repository()
        elif given := [field for field in _OF_THE_HUB if getattr(self, field)]:
            raise ConfigError(f"{given[0]} is of the hub: remove it, or set hub instead of path")
        if bool(self.origin.where_field) != bool(self.origin.where):
            raise ConfigError("where_field and where select rows together: set both or none")
        if self.origin.tests_form == "input_output" and not self.origin.tests_field:
            raise ConfigError("tests_form = 'input_output' needs tests_field")
        check_template(self.origin.template)
        AnswerRules(log_base=self.origin.log_base, relative_error=self.origin.relative_error)

    @property
    def origin(self) -> Origin:
        """The data set with these settings over its own."""
        named = ORIGINS[self.name]
        fields = {field.name for field in dataclasses.fields(named)} - {"licence"}
        given = {field: value for field in fields if (value := getattr(self, field))}
        return dataclasses.replace(named, **given)

    @property
    def title(self) -> str:
        """What it is, for people: the files, or the repository with its commit."""
        origin = self.origin
        return self.path or f"{origin.repo}@{origin.revision[:12]} {origin.split}"

    def rows(self, fields: Sequence[str] | None) -> Iterator[Row]:
        """The rows, in order; `fields` are the ones that are needed, None all of them."""
        if self.hub:
            origin = self.origin
            yield from hub_rows(origin, origin.repo.rpartition("/")[2], fields)
        else:
            for path in local_files(self.path):
                yield from file_rows(path, fields)

    def _check_repository(self) -> None:
        origin = self.origin
        if not origin.repo:
            raise ConfigError("hub = true needs name or repo")
        if self.repo and self.repo != ORIGINS[self.name].repo and not self.revision:
            raise ConfigError("repo needs revision, a commit of it: branches move")
        if not _COMMIT.fullmatch(origin.revision):
            raise ConfigError(
                f"revision must be a commit of 40 hexadecimal digits, got {origin.revision!r}: "
                "branches move"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetTask:
    """Training and test problems from data sets, with filters on those to train on.

    Attributes:
        train: Training problems.
        test: Test problems; None holds out the last `test_size` training problems.
        test_size: Problems held out when `test` is None.
        verifier: Who checks answers (docs/rewards.md); problems without what it needs are left
            out.
        filters: Which training problems are left out.
    """

    type: Literal["dataset"] = "dataset"
    train: DataSource
    test: DataSource | None = None
    test_size: int = 256
    verifier: VerifierName = "math"
    filters: Filters = Filters()

    def __post_init__(self) -> None:
        check_verifier(self.verifier)
        if self.test_size < 1:
            raise ConfigError(f"test_size must be at least 1, got {self.test_size}")
        for source in (self.train, self.test):
            if source is None or self.verifier == "none":
                continue
            what = source.origin
            if self.verifier == "code" and not what.tests_form:
                raise ConfigError("verifier = 'code' needs programs with tests: set tests_form")
            if self.verifier in {"boxed", "math"} and not what.answer_field:
                raise ConfigError(
                    f"verifier = {self.verifier!r} needs answer_field; programs are checked by "
                    "'code', nothing by 'none'"
                )

    def load(self) -> Task:
        """Reads and filters the problems.

        Returns:
            The problems, with the numbers of rows that were read and left out.

        Raises:
            ConfigError: A file or repository cannot be read, holds no or too few problems, or two
                problems have the same id.
        """
        held_out, test_counts = self._test()
        checks = self.filters.checks({plain(candidate) for candidate in held_out})
        kept, counts = self._select(self.train, checks)
        if self.test is None:
            if len(kept) <= self.test_size:
                left_out = f" ({counts})" if counts.dropped else ""
                raise ConfigError(
                    f"{len(kept)} problems of {self.train.title} are too few to hold out "
                    f"test_size = {self.test_size}: give test or lower test_size{left_out}"
                )
            kept, held_out = kept[: -self.test_size], kept[-self.test_size :]
        task = Task(
            train=[candidate.problem for candidate in kept],
            test=[candidate.problem for candidate in held_out],
            counts=(counts, *test_counts),
        )
        _check_ids([*task.train, *task.test])
        return task

    def _test(self) -> tuple[list[Candidate], list[Counts]]:
        """The problems of `test`, unfiltered but for those that cannot be read."""
        if self.test is None:
            return [], []
        held_out, counts = self._select(self.test, [])
        return held_out, [counts]

    def _select(
        self, source: DataSource, checks: Sequence[Check]
    ) -> tuple[list[Candidate], Counts]:
        origin = source.origin
        rows = source.rows(needed_fields(origin, self.verifier))
        return select(source.title, (read_row(row, origin, self.verifier) for row in rows), checks)


def _check_ids(problems: Sequence[Problem]) -> None:
    """Ids are made of file names and numbers of rows; files of one name would share them."""
    name, times = Counter(problem.id for problem in problems).most_common(1)[0]
    if times > 1:
        raise ConfigError(
            f"{times} problems would have the id {name!r}: give the files different names"
        )
