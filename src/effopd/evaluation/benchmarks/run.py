"""`effopd eval --bench`: benchmarks answered, checked, recorded and compared. Resumes."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from effopd.config.reading import read
from effopd.data.benchmarks import Questions, load_benchmark
from effopd.data.problem import JudgingVerifier
from effopd.errors import ConfigError
from effopd.evaluation.benchmarks.answering import Answerer, open_answerer
from effopd.evaluation.benchmarks.records import (
    EvaluationRecords,
    Finished,
    digest_of,
    read_finished,
    settings_of,
)
from effopd.evaluation.benchmarks.tables import comparison_lines, summary_lines
from effopd.evaluation.config import EvalConfig
from effopd.evaluation.grading import (
    GradedAnswer,
    by_question,
    grade,
    readable,
    rewards_of,
    summarise,
)
from effopd.evaluation.statistics import compare
from effopd.models.checkpoints import list_checkpoints, verify_checkpoint
from effopd.progress import duration
from effopd.records import display_text, write_json_atomic
from effopd.rewards.build import some
from effopd.rewards.code import CodeVerifier
from effopd.rewards.math import MathVerifier
from effopd.rollouts.seeds import derive_seed
from effopd.training.build import started_from
from effopd.training.devices import placed
from effopd.training.run import config_of_run
from effopd.training.signals import StopRequest, stop_on_signals

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What is asked for.

    Attributes:
        benchmarks: Names.
        files: `NAME=FILE`, instead of the hub.
        out: Where answers and results go; None for a place of the model's name, or in the run.
        target: Directory or repository of the model. With a run or own solutions, which take its
            place, it is the first of the overrides.
        run: Run directory, whose checkpoints are evaluated; None for one model.
        every: Checkpoints of the run at multiples of so many steps.
        self_check: Have the benchmarks' own solutions checked instead of a model.
        limit: First so many questions of each benchmark; None for all.
        against: Directory of another evaluation to compare with, question by question.
        samples: Answers to each question.
        overrides: Settings.
    """

    benchmarks: Sequence[str]
    files: Sequence[str] = ()
    out: Path | None = None
    target: str | None = None
    run: Path | None = None
    every: int = 1
    self_check: bool = False
    limit: int | None = None
    against: Path | None = None
    samples: int = 1
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        given = (self.model is not None) + (self.run is not None) + self.self_check
        if given != 1:
            raise ConfigError("give one of MODEL, --run and --self-check")
        for name in self.benchmarks:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"a benchmark's name has letters and digits, got {name!r}")
        if unused := sorted(set(self.file_of) - set(self.benchmarks)):
            raise ConfigError(f"--data {unused[0]}=... is of no benchmark in --bench")

    @property
    def model(self) -> str | None:
        """The model, if one is named."""
        is_setting = self.target is not None and "=" in self.target
        return None if is_setting and (self.run or self.self_check) else self.target

    @property
    def settings(self) -> list[str]:
        """All overrides."""
        first = [] if self.target is None or self.model is not None else [self.target]
        return [f"samples={self.samples}", *first, *self.overrides]

    @property
    def file_of(self) -> dict[str, str]:
        """Name of a benchmark -> its file."""
        pairs = [text.partition("=") for text in self.files]
        if wrong := [name for name, _, path in pairs if not (name and path)]:
            raise ConfigError(f"--data must be NAME=FILE, got {wrong[0]!r}")
        return {name: path for name, _, path in pairs}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model to evaluate.

    Attributes:
        title: What it is, for people.
        config: How it answers.
        out: Where its answers go.
    """

    title: str
    config: EvalConfig
    out: Path


def run_benchmarks(asked: BenchRequest) -> bool:
    """Evaluates, prints tables, and writes them; goes on where it was interrupted."""
    transformers_logging.disable_progress_bar()
    subjects = list(_subjects(asked))
    seed = subjects[0].config.seed
    benchmarks = [_loaded(asked, name, seed) for name in asked.benchmarks]
    others = [] if asked.against is None else _others(benchmarks, asked.against)
    with stop_on_signals() as stop:
        for subject in subjects:
            if len(subjects) > 1:
                _say(f"{subject.title}:")
            summaries = _evaluate(subject, benchmarks, stop)
            if summaries is None:
                return False
            write_json_atomic(subject.out / "results.json", {"schema": 1, "results": summaries})
            print("\n".join(summary_lines(summaries)))
            if asked.against is not None:
                _compare(subject, benchmarks, others, asked.against)
    return True


def _subjects(asked: BenchRequest) -> Iterator[Subject]:
    """The models, with their settings; a run's prompt and programs are as it trained."""
    if asked.run is None:
        name = "self-check" if asked.self_check else Path(asked.model or "").name
        raw: Row = {} if asked.self_check else {"model": {"path": asked.model}}
        out = asked.out or Path("runs") / f"eval-{name}"
        yield Subject(title=name, config=placed(read(EvalConfig, raw, asked.settings)), out=out)
        return
    config = config_of_run(asked.run)
    found = [(_step(path), path) for path in reversed(list_checkpoints(asked.run / "checkpoints"))]
    chosen = [(step, path) for step, path in found if step % asked.every == 0]
    if not chosen:
        raise ConfigError(f"{asked.run} has no checkpoint at a multiple of {asked.every} steps")
    for _, path in chosen:
        verify_checkpoint(path)
    for _, path in chosen:
        student = started_from(config, path).student
        assert student is not None
        raw = {
            "model": asdict(student),
            "prompt": asdict(config.prompt),
            "code": asdict(config.code),
            "device": config.device,
        }
        out = (asked.out or asked.run / "benchmarks") / path.name
        settings = placed(read(EvalConfig, raw, asked.settings))
        yield Subject(title=path.name, config=settings, out=out)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _loaded(asked: BenchRequest, name: str, seed: int) -> Questions:
    questions = load_benchmark(name, asked.file_of.get(name, ""), seed=seed, limit=asked.limit)
    if questions.verifier == "math":
        with MathVerifier() as verifier:
            questions, left_out = readable(verifier, questions)
        if left_out:
            _say(
                f"{name}: left out {len(left_out)} questions, whose reference answers cannot be "
                f"read as mathematics: {some(left_out)}"
            )
    _say(f"{name}: {len(questions.questions)} questions of {questions.source}")
    if questions.counts.dropped:
        _say(f"  {questions.counts}")
    return questions


def _evaluate(
    subject: Subject, benchmarks: Sequence[Questions], stop: StopRequest
) -> dict[str, Row] | None:
    """Summary of each benchmark; None when asked to stop. The model is loaded when it is needed."""
    config, summaries = subject.config, {}
    with ExitStack() as stack:
        answerer: Answerer | None = None
        for questions in benchmarks:
            directory = subject.out / questions.name
            records = stack.enter_context(
                EvaluationRecords(directory, settings_of(config, questions))
            )
            missing = records.missing(questions, config.samples)
            if missing:
                answerer = answerer or stack.enter_context(open_answerer(config))
                for remark in answerer.check(questions):
                    _say(f"{questions.name}: {remark}")
                _answer(answerer, config, questions, records, missing, stop)
            if stop:
                return None
            answers = records.answers(questions, config.samples)
            summary = summarise(answers, votes=questions.verifier == "math")
            summary |= {"source": questions.source, "licence": questions.licence}
            summary["left_out"] = dict(questions.counts.dropped)
            if questions.rules.relative_error:
                summary["relative_error"] = questions.rules.relative_error
            records.finish(summary)
            summaries[questions.name] = summary
            _show_misses(subject, answers)
    return summaries


def _answer(
    answerer: Answerer,
    config: EvalConfig,
    questions: Questions,
    records: EvaluationRecords,
    missing: Sequence[tuple[int, int]],
    stop: StopRequest,
) -> None:
    """Writes, checks and records what is missing, a portion at a time."""
    total = len(questions.questions) * config.samples
    started, done, right = time.monotonic(), 0, 0.0
    with closing(_verifier(config, questions)) as verifier:
        for start in range(0, len(missing), config.batch):
            if stop:
                return
            portion = missing[start : start + config.batch]
            seeds = [derive_seed(config.seed, questions.name, *place) for place in portion]
            rollouts = answerer.answer([questions.questions[i] for i, _ in portion], seeds)
            graded = grade(verifier, rollouts, [sample for _, sample in portion], seeds)
            records.add(graded)
            done += len(graded)
            right += sum(each.reward for each in graded)
            elapsed = time.monotonic() - started
            left = elapsed / done * (len(missing) - done)
            _say(
                f"{questions.name}: {total - len(missing) + done} of {total} answers, "
                f"{right / done:.3f} right  {duration(elapsed)} elapsed, about "
                f"{duration(left)} left"
            )


def _verifier(config: EvalConfig, questions: Questions) -> JudgingVerifier:
    return CodeVerifier(config.code) if questions.verifier == "code" else MathVerifier()


def _show_misses(subject: Subject, answers: Sequence[GradedAnswer]) -> None:
    """Own solutions that were not found right are what they are checked for."""
    if subject.config.model is None:
        for each in answers:
            if not each.reward:
                _say(f"  {each.question}: {each.verdict}, boxed {each.answer!r:.80}")


def _others(benchmarks: Sequence[Questions], against: Path) -> list[Finished]:
    """The other evaluation of each benchmark; what cannot be compared is known at once."""
    found = [read_finished(against / questions.name) for questions in benchmarks]
    for questions, other in zip(benchmarks, found, strict=True):
        if other.digest != digest_of(questions):
            raise ConfigError(
                f"{against / questions.name} answers other questions: evaluate both with the same "
                "files, seed and --limit"
            )
    return found


def _compare(
    subject: Subject, benchmarks: Sequence[Questions], others: Sequence[Finished], against: Path
) -> None:
    """Each benchmark against the same one of another evaluation, question by question."""
    rows = {}
    for questions, other in zip(benchmarks, others, strict=True):
        own = read_finished(subject.out / questions.name)
        rows[questions.name] = asdict(compare(_paired(own.graded), _paired(other.graded)))
    name = f"against-{against.resolve().name}.json"
    write_json_atomic(subject.out / name, {"schema": 1, "comparisons": rows})
    print("\n".join(comparison_lines(rows, str(against))))


def _paired(graded: Sequence[GradedAnswer]) -> list[list[float]]:
    """Rewards with the questions in the order of their ids."""
    return rewards_of(sorted(by_question(graded), key=lambda group: group[0].question))


def _say(text: str) -> None:
    print(display_text(text), flush=True)
