"""The directory of one model on one benchmark: settings, answers so far, and the summary."""

import hashlib
import os
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from effopd.config.reading import differences, to_toml
from effopd.data.benchmarks import Questions
from effopd.errors import ConfigError
from effopd.evaluation.config import EvalConfig
from effopd.evaluation.grading import GradedAnswer
from effopd.models.checkpoints import weights_fingerprint
from effopd.models.loading import ModelSettings
from effopd.records import JsonlWriter, read_jsonl, write_json_atomic, write_text_atomic
from effopd.training.lock import take_lock

SETTINGS, SAMPLES, SUMMARY = "settings.toml", "samples.jsonl", "summary.json"
_CHANGEABLE = ("samples", "batch", "generation_tokens")
"""Settings that change how much is done and in which portions, but no answer."""


class EvaluationRecords:
    """Where the answers of one model to one benchmark are kept; one process at a time.

    Args:
        directory: Created if need be.
        settings: What makes an answer what it is, see `settings_of`.

    Raises:
        ConfigError: The directory holds answers that were given under other settings.
        RunLockedError: Another process writes to it.
    """

    def __init__(self, directory: Path, settings: str) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"{directory} cannot hold an evaluation: {error}. Choose another one (--out)."
            ) from None
        take_lock(self._lock, directory, holder="the evaluation that writes to it")
        with ExitStack() as opened:
            opened.callback(os.close, self._lock)
            _check_same(directory, settings)
            write_text_atomic(directory / SETTINGS, settings)
            self._writer = JsonlWriter(directory / SAMPLES)
            self._known = {(each.question, each.sample): each for each in read_samples(directory)}
            opened.pop_all()  # closed at the end, not here

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        os.close(self._lock)

    def missing(self, questions: Questions, samples: int) -> list[tuple[int, int]]:
        """(index of a question, sample) of what is not there, a sample of all questions first."""
        ids = [question.problem.id for question in questions.questions]
        return [
            (index, sample)
            for sample in range(samples)
            for index, name in enumerate(ids)
            if (name, sample) not in self._known
        ]

    def add(self, graded: Iterable[GradedAnswer]) -> None:
        """Appends answers, and has them on the disk before it returns."""
        for each in graded:
            self._writer.write(each.row())
            self._known[each.question, each.sample] = each
        self._writer.sync()

    def answers(self, questions: Questions, samples: int) -> list[GradedAnswer]:
        """All answers that there are, question by question."""
        wanted = [(q.problem.id, s) for q in questions.questions for s in range(samples)]
        return [self._known[key] for key in wanted if key in self._known]

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary."""
        write_json_atomic(self.directory / SUMMARY, {"schema": 1, **summary})


def read_samples(directory: Path) -> list[GradedAnswer]:
    """The answers in a directory; none where there is no file."""
    path = directory / SAMPLES
    return [GradedAnswer.from_row(row) for row in read_jsonl(path)] if path.exists() else []


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An evaluation of another model, for a comparison.

    Attributes:
        digest: Of the questions it answered.
        graded: Its answers.
    """

    digest: str
    graded: Sequence[GradedAnswer]


def read_finished(directory: Path) -> Finished:
    """The answers of an evaluation that is over."""
    if not (directory / SUMMARY).is_file():
        raise ConfigError(f"{directory} holds no finished evaluation to compare with")
    settings = tomllib.loads((directory / SETTINGS).read_text(encoding="utf-8"))
    return Finished(digest=settings["questions"]["digest"], graded=read_samples(directory))


def settings_of(config: EvalConfig, questions: Questions) -> str:
    """What makes an answer what it is, as TOML: settings, weights and questions."""
    settings = tomllib.loads(to_toml(config))
    for name in _CHANGEABLE:
        del settings[name]
    if config.model is not None:
        settings["model"]["files"] = _files_of(config.model)
    settings["questions"] = {"name": questions.name, "digest": digest_of(questions)}
    if questions.rules.relative_error:
        settings["questions"]["relative_error"] = questions.rules.relative_error
    return tomli_w.dumps(settings)


def digest_of(questions: Questions) -> str:
    """Changes with any prompt, reference or test."""
    digest = hashlib.blake2b(digest_size=16)
    for question in questions.questions:
        problem = question.problem
        digest.update(repr((problem.system, problem.prompt, problem.answer)).encode())
        digest.update(repr(problem.tests).encode())
        if problem.turns:
            digest.update(repr(problem.turns).encode())
    return digest.hexdigest()


def _files_of(settings: ModelSettings) -> str:
    """Changes with the weights; "" for a repository of the hub."""
    places = [settings.path, settings.lora.adapter if settings.lora else None]
    return weights_fingerprint(Path(place).expanduser() for place in places if place)


def _check_same(directory: Path, settings: str) -> None:
    path = directory / SETTINGS
    if not path.exists():
        if (directory / SAMPLES).exists():
            raise ConfigError(
                f"{directory} holds answers but no {SETTINGS}, so it is not known to what: restore "
                "the file, or choose another directory (--out)"
            )
        return
    try:
        changed = differences(path.read_text(encoding="utf-8"), settings)
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged ({error}): restore it, or choose another directory (--out)"
        ) from None
    if changed:
        raise ConfigError(
            f"{directory} holds answers of another evaluation:\n  "
            + "\n  ".join(changed)
            + "\nGo on with the old settings, or choose another directory (--out)."
        )
