"""`effopd.evaluate`: benchmarks answered, checked and recorded. Resumes."""

import hashlib
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from effopd.config.reading import merged, raw_of, read, to_toml
from effopd.data.benchmarks import Questions, load_benchmark
from effopd.data.problem import JudgingVerifier
from effopd.errors import ConfigError
from effopd.evaluation.benchmarks.results import (
    SAMPLES,
    SETTINGS,
    SUMMARY,
    Evaluation,
    Row,
    digest_of,
    evaluation_in,
)
from effopd.evaluation.config import EvalConfig
from effopd.evaluation.grading import GradedAnswer, grade, readable, summarise
from effopd.models.architecture import position_limit
from effopd.models.checkpoints import weights_fingerprint
from effopd.models.loading import load_model, load_tokenizer
from effopd.models.tokenizers import end_token_ids
from effopd.progress import SILENT, Display
from effopd.records import run_of_checkpoint, write_json_atomic
from effopd.rewards.build import some
from effopd.rewards.code import CodeVerifier
from effopd.rewards.math import MathVerifier
from effopd.rollouts.engine import Completion, Engine, derive_seed
from effopd.rollouts.environment import Interaction
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.prompts import prompt_remarks
from effopd.rollouts.rollout import Rollout, Writer
from effopd.rollouts.vllm import open_vllm
from effopd.training.config import placed
from effopd.training.engines import model_and_tokenizer, started_from
from effopd.training.run import config_of_run
from effopd.training.signals import StopRequest
from effopd.workspace import Journal, Workspace

SELF_CHECK = "self-check"
"""In the place of a model: the benchmarks' own solutions."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_CHANGEABLE = ("samples", "batch", "generation_tokens")
"""Settings that change how much is done and in which portions, but no answer."""
Rows = Iterable[Mapping[str, Any]]


def evaluate(
    model: Any,
    benchmarks: str | Sequence[str],
    n: int = 1,
    *,
    out: str | Path | None = None,
    engine: Literal["hf", "vllm"] = "hf",
    data: Mapping[str, str | Path | Rows] | None = None,
    limit: int | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    against: Evaluation | str | Path | None = None,
    display: Display = SILENT,
    stop: StopRequest | None = None,
) -> Evaluation:
    """Has a model answer benchmarks and checks every answer; goes on where it was interrupted.

    Prints nothing and installs no signal handler.

    Args:
        model: A directory; a repository of the hub; a checkpoint of a run, which answers with the
            prompt, program checking, environment and device of its run; a Hugging Face model with
            its weights as they are now, or a pair of model and tokenizer; None or "self-check" for
            the benchmarks' own solutions.
        benchmarks: Names (docs/evaluation.md).
        n: Answers to each question.
        out: Where answers go; a new temporary directory by default. With answers there already,
            only what is missing is answered.
        engine: Who writes: "hf", the model in this process, or "vllm" with its weights.
        data: Benchmark -> a `.jsonl` or `.parquet` file, or rows, such as a `datasets.Dataset`, in
            the place of the hub. Any other name, with rows of `problem` and `answer`, is a
            benchmark of one's own, checked as mathematics.
        limit: First so many questions of each benchmark; None for all.
        settings: More of `EvalConfig`: nested, or as `section.key=value`.
        against: An evaluation, or its directory, that this one is to be compared with; other
            questions than it answered are refused before any is answered.
        display: Receives progress.
        stop: Asked after every portion of answers.

    Returns:
        Summaries and answers.

    Raises:
        ConfigError: A setting, a benchmark or its rows are wrong, or `out` holds answers of another
            model, with other settings, or to other questions.
        RunLockedError: Another process writes to `out`.
    """
    names = list(dict.fromkeys([benchmarks] if isinstance(benchmarks, str) else benchmarks))
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise ConfigError(f"a benchmark's name has letters and digits, got {wrong[0]!r}")
    data = data or {}
    if unused := sorted(set(data) - set(names)):
        raise ConfigError(f"data for {unused[0]} is of no benchmark asked for ({', '.join(names)})")
    config, given = _settings_of(model, {"samples": n, "engine": engine}, settings)
    loaded = [_load(name, data.get(name, ""), config, limit, display) for name in names]
    digests = {each.name: digest_of(each) for each in loaded}
    if against is not None:
        other = against if isinstance(against, Evaluation) else evaluation_in(against, names)
        other.check_same_questions(digests)
    directory = Path(out or tempfile.mkdtemp(prefix="effopd-eval-"))
    weights = _weights_of(config, given)
    summary, answers = dict[str, Row](), dict[str, list[GradedAnswer]]()
    with ExitStack() as stack:
        # Refuse what cannot go on before anything is answered.
        journals = []
        for each in loaded:
            identity = _identity(config, weights, each, digests[each.name])
            journals.append(stack.enter_context(_journal(directory / each.name, identity)))
        writer = cache(lambda: stack.enter_context(_open_writer(config, given, display)))
        for questions, journal in zip(loaded, journals, strict=True):
            found = _answers(writer, config, questions, journal, display, stop)
            if stop:
                break
            row = summarise(found, votes=questions.verifier == "math")
            row |= {"source": questions.source, "licence": questions.licence}
            row |= {"left_out": dict(questions.counts.dropped)}
            if questions.rules.relative_error:
                row["relative_error"] = questions.rules.relative_error
            write_json_atomic(directory / questions.name / SUMMARY, {"schema": 1, **row})
            summary[questions.name], answers[questions.name] = row, found
            for one in found if config.model is None else ():
                if not one.reward:
                    display.say(f"  {one.question}: {one.verdict}, boxed {one.answer!r:.80}")
        else:
            write_json_atomic(directory / "results.json", {"schema": 1, "results": summary})
    return Evaluation(
        directory=directory,
        finished=len(summary) == len(names),
        summary=summary,
        answers=answers,
        digests={name: digests[name] for name in summary},
    )


# What is asked ------------------------------------------------------------------------------------


def _settings_of(
    model: Any, raw: Row, settings: Mapping[str, Any] | Sequence[str]
) -> tuple[EvalConfig, tuple[Any, Any] | None]:
    """The settings, and model and tokenizer if they are in memory."""
    given = None
    if isinstance(model, str | Path) and str(model) != SELF_CHECK:
        path = Path(model)
        raw |= {"model": {"path": str(model)}}
        if run := run_of_checkpoint(path):
            config = started_from(config_of_run(run), path)
            raw |= {"model": config.student, "prompt": config.prompt}
            raw |= {"code": config.code, "device": config.device}
            raw |= {"environment": config.environment} if config.environment else {}
    elif model is not None and not isinstance(model, str | Path):
        given = model_and_tokenizer(model)
        name, dtype = str(given[0].name_or_path) or "model in memory", str(given[0].dtype)
        raw |= {"model": {"path": name, "dtype": dtype.removeprefix("torch.")}}
        raw |= {"device": str(given[0].device)}
    if isinstance(settings, Mapping):
        raw, settings = merged(raw_of(raw), raw_of(settings)), ()
    return placed(read(EvalConfig, raw, settings)), given


def _weights_of(config: EvalConfig, given: tuple[Any, Any] | None) -> str:
    """Changes with the weights; "" for a repository of the hub, and without a model."""
    if given is not None:
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in given[0].state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
    lora = config.model and config.model.lora
    places = [config.model and config.model.path, lora and lora.adapter]
    return weights_fingerprint(Path(place).expanduser() for place in places if place)


def _load(
    name: str, source: str | Path | Rows, config: EvalConfig, limit: int | None, display: Display
) -> Questions:
    """The questions of a benchmark that answers, or its own solutions, can be checked against."""
    questions, left_out = readable(load_benchmark(name, source, seed=config.seed, limit=limit))
    if left_out:
        display.say(
            f"{name}: left out {len(left_out)} questions, whose reference answers cannot be read "
            f"as mathematics: {some(left_out)}"
        )
    display.say(f"{name}: {len(questions)} questions of {questions.source}")
    if questions.counts.dropped:
        display.say(f"  {questions.counts}")
    if config.model is None and not all(question.solution for question in questions.questions):
        raise ConfigError(f"{name} brings no solutions that could be checked")
    return questions


# The directory of a benchmark ---------------------------------------------------------------------


def _identity(config: EvalConfig, weights: str, questions: Questions, digest: str) -> Row:
    """What makes an answer what it is: settings, weights and questions."""
    settings = tomllib.loads(to_toml(config))
    for name in _CHANGEABLE:
        del settings[name]
    if config.model is not None:
        settings["model"]["files"] = weights
    settings["questions"] = {"name": questions.name, "digest": digest}
    if questions.rules.relative_error:
        settings["questions"]["relative_error"] = questions.rules.relative_error
    return settings


@contextmanager
def _journal(directory: Path, settings: Row) -> Iterator[Journal[tuple[str, int]]]:
    """The answers in a directory, which are kept only under the same settings."""
    with Workspace(directory, "evaluation") as workspace:
        if (directory / SAMPLES).exists() and not (directory / SETTINGS).exists():
            raise ConfigError(
                f"{directory} holds answers but no {SETTINGS}, so it is not known to what: restore "
                "the file, or choose another directory (--out)"
            )
        workspace.settle(SETTINGS, settings)
        with Journal(directory / SAMPLES, lambda row: (row["question"], row["sample"])) as journal:
            yield journal


# Answering ----------------------------------------------------------------------------------------


def _answers(
    open_writer: "Callable[[], _ModelWriter]",
    config: EvalConfig,
    questions: Questions,
    journal: Journal[tuple[str, int]],
    display: Display,
    stop: StopRequest | None,
) -> list[GradedAnswer]:
    """Writes, checks and records what is missing; all answers, fewer when asked to stop."""
    ids = [question.problem.id for question in questions.questions]
    places = [(i, sample) for sample in range(config.samples) for i in range(len(ids))]
    missing = [(i, sample) for i, sample in places if (ids[i], sample) not in journal.rows]
    with ExitStack() as stack:
        if missing:
            writer = None if config.model is None else open_writer()
            for remark in writer.remarks(questions) if writer else ():
                display.say(f"{questions.name}: {remark}")
            verifier: JudgingVerifier = (
                CodeVerifier(config.code) if questions.verifier == "code" else MathVerifier()
            )
            stack.callback(verifier.close)
            finished = len(places) - len(missing)
            progress = stack.enter_context(
                display.progress(questions.name, len(places), done=finished)
            )
        right = 0.0
        for start in range(0, len(missing), config.batch):
            if stop:
                break
            portion = missing[start : start + config.batch]
            seeds = [derive_seed(config.seed, questions.name, *place) for place in portion]
            asked = [questions.questions[i] for i, _ in portion]
            if writer is None:  # the benchmark's own solutions, which have no tokens
                own = partial(Completion, token_ids=(), log_probs=(), finish_reason="stop")
                rollouts = [
                    Rollout(problem=each.problem, prompt_ids=(), completion=own(text=each.solution))
                    for each in asked
                ]
            else:
                rollouts = writer.answer([question.problem for question in asked], seeds)
            graded = grade(verifier, rollouts, [sample for _, sample in portion], seeds)
            for each in graded:
                journal.add(each.row())
            journal.sync()
            right += sum(each.reward for each in graded)
            share = f"{right / (start + len(graded)):.3f} right"
            progress.advance(share, work=len(graded), counts=len(graded))
    keys = [(ids[i], sample) for i, sample in sorted(places)]
    return [GradedAnswer.from_row(journal.rows[key]) for key in keys if key in journal.rows]


@dataclass(frozen=True, kw_only=True)
class _ModelWriter(Writer):
    """A writer that knows its model."""

    model: Any

    def remarks(self, questions: Questions) -> Iterable[str]:
        """Encodes every prompt, so that one that is too long is refused before any is answered."""
        problems = [question.problem for question in questions.questions]
        for problem in problems:
            self.template.encode(self.tokenizer, problem)
        if self.interaction is not None:
            self.interaction.check(self.tokenizer, self.template, problems[0])
        return prompt_remarks(
            self.template,
            self.tokenizer,
            problems,
            ends=end_token_ids(self.tokenizer, self.model),
            cap=self.sampling.max_new_tokens,
            positions=position_limit(self.model.config.to_dict()),
        )


@contextmanager
def _open_writer(
    config: EvalConfig, given: tuple[Any, Any] | None, display: Display
) -> Iterator[_ModelWriter]:
    """Loads the model and its engine; PyTorch has as many threads as before afterwards."""
    assert config.model is not None
    tokenizer = given[1] if given else load_tokenizer(config.model)
    config.prompt.check_arguments(tokenizer)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.threads)
        model = given[0] if given else load_model(config.model, config.device, display.say)
        size = min(model.get_output_embeddings().weight.shape[0], len(tokenizer))
        if config.engine == "vllm":
            longest = config.prompt.max_tokens + config.sampling.max_new_tokens
            path = config.model.path
            vllm = open_vllm(
                config.vllm, path, model, tokenizer, vocabulary_size=size, longest=longest
            )
            engine: Engine = stack.enter_context(closing(vllm))
            engine.sync_weights()
        else:
            engine = HFEngine(
                model,
                tokenizer,
                batch_size=config.batch,
                batch_tokens=config.generation_tokens or None,
                vocabulary_size=size,
            )
        yield _ModelWriter(
            engine=engine,
            tokenizer=tokenizer,
            template=config.prompt,
            sampling=config.sampling,
            interaction=Interaction.of(config.environment),
            model=model,
        )
