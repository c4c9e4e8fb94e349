"""What models answered to benchmarks: summaries, answers, and paired comparisons."""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effopd.data.benchmarks import Questions
from effopd.errors import ConfigError
from effopd.evaluation.grading import GradedAnswer, by_question, rewards_of
from effopd.evaluation.statistics import Comparison, compare
from effopd.records import read_json, read_jsonl
from effopd.reports.tables import text_table

SETTINGS, SAMPLES, SUMMARY = "settings.toml", "samples.jsonl", "summary.json"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's answers to benchmarks, checked.

    Attributes:
        directory: `results.json`, and for each benchmark its answers, settings and summary.
        finished: False when asked to stop; the same call goes on with what is missing.
        summary: Finished benchmark -> accuracies with intervals, lengths and verdicts, as
            docs/evaluation.md describes them.
        answers: Finished benchmark -> its answers, question by question.
        digests: Finished benchmark -> a digest of its questions.
    """

    directory: Path
    finished: bool
    summary: Mapping[str, Row]
    answers: Mapping[str, Sequence[GradedAnswer]]
    digests: Mapping[str, str]

    def rows(self, name: str) -> list[Row]:
        """One row an answer to a benchmark: question, sample, seed, text, tokens, reward, ..."""
        return [answer.row() for answer in self.answers[name]]

    def to_pandas(self) -> Any:
        """The rows of all benchmarks as a `pandas.DataFrame`, with a column `benchmark`."""
        from pandas import DataFrame

        rows = [{"benchmark": name} | row for name in self.answers for row in self.rows(name)]
        return DataFrame(rows)

    def compare(self, other: "Evaluation | str | Path") -> dict[str, Comparison]:
        """Whether another evaluation, or the one in a directory, differs on the same questions.

        Returns:
            Benchmark -> this minus the other: difference, 95% interval, p-value of a paired
            permutation test, and the questions won and lost.

        Raises:
            ConfigError: The other lacks a benchmark or answers other questions.
        """
        other = evaluation_in(other, list(self.answers)) if isinstance(other, str | Path) else other
        other.check_same_questions(self.digests)
        # The questions of both in the order of their ids.
        first, second = (
            {
                name: rewards_of(sorted(by_question(found), key=lambda group: group[0].question))
                for name, found in each.answers.items()
            }
            for each in (self, other)
        )
        return {name: compare(first[name], second[name]) for name in first}

    def check_same_questions(self, digests: Mapping[str, str]) -> None:
        """Refuses digests of questions that are not the ones answered here."""
        for name, digest in digests.items():
            if name not in self.digests:
                raise ConfigError(f"{self.directory} holds no finished evaluation of {name}")
            if self.digests[name] != digest:
                raise ConfigError(
                    f"{self.directory / name} answers other questions: evaluate both with the same "
                    "files, seed and limit"
                )

    def text(self) -> str:
        """A table, one line a benchmark: accuracy, pass@n and maj@n, and what went wrong."""
        header = "benchmark|questions|avg@n|95%|pass@n|maj@n|cut|no answer|tokens"
        table = [header.split("|")]
        for name, row in self.summary.items():
            shares = [row["truncated_share"], row["no_answer_share"]]
            table.append([
                name,
                f"{row['questions']} x {row['samples']}",
                f"{100 * row['avg']['mean']:.1f}",
                _interval(row["avg"]["interval"]),
                f"{100 * row['pass'][str(row['samples'])]['mean']:.1f}",
                f"{100 * row['maj']['mean']:.1f}" if row["maj"] else "-",
                *(f"{100 * share:.1f}" for share in shares),
                f"{row['mean_tokens']:.0f}",
            ])  # fmt: skip
        return text_table(table)


def evaluation_in(directory: str | Path, names: Sequence[str]) -> Evaluation:
    """The finished evaluation in a directory, of these benchmarks."""
    directory, summary, answers, digests = Path(directory), {}, {}, {}
    for name in names:
        path = directory / name
        if not (path / SUMMARY).is_file():
            raise ConfigError(f"{path} holds no finished evaluation to compare with")
        summary[name] = read_json(path / SUMMARY)
        answers[name] = [GradedAnswer.from_row(row) for row in read_jsonl(path / SAMPLES)]
        settings = tomllib.loads((path / SETTINGS).read_text(encoding="utf-8"))
        digests[name] = settings["questions"]["digest"]
    return Evaluation(
        directory=directory, finished=True, summary=summary, answers=answers, digests=digests
    )


def digest_of(questions: Questions) -> str:
    """Changes with any prompt, reference or test."""
    digest = hashlib.blake2b(digest_size=16)
    for problem in (question.problem for question in questions.questions):
        digest.update(repr((problem.system, problem.prompt, problem.answer)).encode())
        digest.update(repr(problem.tests).encode())
        if problem.turns or problem.after or problem.tools:
            digest.update(repr((problem.turns, problem.after, problem.tools)).encode())
    return digest.hexdigest()


def comparison_text(comparisons: Mapping[str, Comparison], other: str) -> str:
    """A table, one line a benchmark: difference in percent, interval, p-value, won and lost."""
    table = [[f"minus {other}", "difference", "95%", "p", "better", "worse"]]
    for name, found in comparisons.items():
        difference, p_value = f"{100 * found.difference:+.1f}", f"{found.p_value:.2g}"
        shown = [difference, _interval(found.interval), p_value, str(found.wins), str(found.losses)]
        table.append([name, *shown])
    return text_table(table)


def _interval(interval: Sequence[float] | None) -> str:
    """In percent."""
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
