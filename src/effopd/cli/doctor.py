"""`effopd doctor`: what would go wrong in a run, found before it starts."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from effopd.cli.data import rendered
from effopd.cli.doctor_estimates import Sizes, checkpoint_bytes, phases
from effopd.cli.problems import load_problems
from effopd.cli.shipped_shapes import model_config
from effopd.cli.stand_in import with_stand_ins
from effopd.cli.verifiers import verifier_for
from effopd.config import RunConfig, load_config
from effopd.demo.world import TinyWorld
from effopd.errors import EffopdError
from effopd.models.directory import check_model
from effopd.models.footprint import Gpu, gpu_named
from effopd.models.hub import fetch
from effopd.models.loading import ModelSettings, load_tokenizer, tokenizers_agree
from effopd.models.shapes import ModelShape, shape_of
from effopd.objectives import ExOPD
from effopd.records import display_text
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.tasks.problem import CountingVerifier, Problem

Level = Literal["ok", "warning", "problem"]
_FULL = 0.9
"""Share of a card's memory beyond which an estimate is no comfort."""
_QUESTION = Problem(id="doctor", prompt="What is 2 + 2?", answer="4")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    check: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return display_text(f"{self.level:7}  {self.check}: {self.text}{remedy}")


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A run to look at."""

    config: RunConfig
    recipe: Path
    offline: bool
    gpu: Gpu | None


def doctor(
    recipe: Path, overrides: Sequence[str], *, offline: bool, gpu: str | None, as_json: bool
) -> bool:
    """Prints what was found about a recipe; loads no weights and trains nothing.

    Args:
        recipe: Recipe.
        overrides: Settings.
        offline: Use nothing but this disk.
        gpu: Card that the estimates are held against.
        as_json: Print one JSON list.

    Returns:
        Whether nothing stands in the way of the run.
    """
    card = gpu_named(gpu) if gpu is not None else None
    found = list(examine(recipe, overrides, offline=offline, gpu=card))
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        print("\n".join(map(str, found)))
    return all(finding.level != "problem" for finding in found)


def examine(
    recipe: Path, overrides: Sequence[str], *, offline: bool, gpu: Gpu | None
) -> Iterator[Finding]:
    """The findings, in the order in which a run would meet them."""
    try:
        config = with_stand_ins(load_config(recipe, overrides), recipe)
    except EffopdError as error:
        yield Finding(level="problem", check="settings", text=str(error))
        return
    yield Finding(level="ok", check="settings", text=f"{config.name}, {config.train.steps} steps")
    patient = Patient(config=config, recipe=recipe, offline=offline, gpu=gpu)
    for look in (_models, _tokenizers, _sandbox, _problems, _servers, _estimates):
        yield from _caught(look, patient)


def _caught(look: Callable[[Patient], Iterator[Finding]], patient: Patient) -> Iterator[Finding]:
    """What a check refuses is its finding; the others still have their turn."""
    try:
        yield from look(patient)
    except (EffopdError, OSError) as error:
        name = look.__name__.removeprefix("_")
        yield Finding(level="problem", check=name, text=str(error))


def _named(config: RunConfig) -> Iterator[tuple[str, ModelSettings]]:
    """The models that the settings name."""
    for name in ("student", "teacher", "reference"):
        settings = getattr(config, name)
        if settings is not None:
            yield name, settings
    yield from ((f"teachers.{name}", settings) for name, settings in config.teachers.items())


def _here(patient: Patient, settings: ModelSettings) -> Path | None:
    """Directory of a model, configuration and tokenizer fetched if need be; None if it is away."""
    if Path(settings.path).is_dir():
        return Path(settings.path)
    if patient.offline:
        return None
    return fetch(settings.path, settings.revision, weights=False)


def _models(patient: Patient) -> Iterator[Finding]:
    for name, settings in _named(patient.config):
        try:
            yield _model(patient, name, settings)
        except EffopdError as error:
            yield Finding(level="problem", check=name, text=str(error))


def _model(patient: Patient, name: str, settings: ModelSettings) -> Finding:
    shape = _shape(patient, settings)
    size = f"{settings.path}, {shape.parameters / 1e9:.3g} billion parameters"
    if not Path(settings.path).is_dir():
        remedy = "" if not patient.offline else "its weights are not on this disk: download them"
        level: Level = "warning" if patient.offline else "ok"
        return Finding(level=level, check=name, text=size, remedy=remedy)
    contents = check_model(Path(settings.path))
    tied = shape.parameters + shape.tied * shape.vocabulary * shape.hidden
    if contents.elements not in {shape.parameters, tied} and not contents.quantized:
        text = f"{settings.path} holds {contents.elements} numbers, its config.json describes "
        return Finding(
            level="problem",
            check=name,
            text=text + str(shape.parameters),
            remedy="complete the download",
        )
    return Finding(level="ok", check=name, text=size)


def _shape(patient: Patient, settings: ModelSettings) -> ModelShape:
    directory = _here(patient, settings)
    path = settings.path if directory is None else str(directory)
    return shape_of(*model_config(path, patient.recipe))


def _tokenizers(patient: Patient) -> Iterator[Finding]:
    named = dict(_named(patient.config))
    if "student" not in named:
        return
    loaded: dict[str, Any] = {
        name: load_tokenizer(settings)
        for name, settings in named.items()
        if _here(patient, settings) is not None
    }
    rows = {_shape(patient, settings).vocabulary for settings in named.values()}
    if len(rows) > 1:
        text = f"heads have {', '.join(map(str, sorted(rows)))} rows; those without a token are cut"
        yield Finding(level="warning", check="vocabulary", text=text)
    student = loaded.pop("student", None)
    if student is None:
        text = "tokenizers are not on this disk and were not compared"
        yield Finding(level="warning", check="tokenizers", text=text)
        return
    prompt = rendered(patient.config, student, _QUESTION)
    for name, other in loaded.items():
        yield from _compared(patient, name, student, other, prompt.ids)
    ends = f"ends with {student.eos_token!r}, pads with {student.pad_token!r}"
    yield Finding(level="ok", check="prompt", text=f"{prompt.text!r}, {ends}")


def _compared(
    patient: Patient, name: str, student: Any, other: Any, ids: tuple[int, ...]
) -> Iterator[Finding]:
    """Tokens, special tokens and rendered prompts of another model against the student's."""
    if not tokenizers_agree(student, other):
        text = f"{name} has other tokens than the student"
        remedy = "use models that share a tokenizer"
        yield Finding(level="problem", check="tokenizers", text=text, remedy=remedy)
        return
    yield Finding(level="ok", check="tokenizers", text=f"{name} has the student's tokens")
    if student.eos_token_id != other.eos_token_id:
        text = f"the student ends with {student.eos_token!r}, {name} with {other.eos_token!r}"
        yield Finding(level="warning", check="special tokens", text=text)
    seen = rendered(patient.config, other, _QUESTION)
    if seen.ids != ids:
        thinking = patient.config.prompt.enable_thinking
        text = f"{name} would get another prompt (enable_thinking = {thinking}): {seen.text!r}"
        remedy = "the teacher scores the student's tokens: give both one chat template"
        yield Finding(level="warning", check="chat template", text=text, remedy=remedy)


def _sandbox(patient: Patient) -> Iterator[Finding]:
    """A boundary for programs, shown to hold; offline a recipe may be meant for another machine."""
    task = patient.config.task
    if isinstance(task, TinyWorld) or task.verifier != "code":
        return
    settings = patient.config.code.sandbox
    if settings.kind in {"url", "none"}:
        text = "programs run without a boundary" if settings.kind == "none" else settings.url
        yield Finding(level="warning", check="sandbox", text=f"not tried: {text}")
        return
    try:
        open_sandbox(settings).close()
    except EffopdError as error:
        level: Level = "warning" if patient.offline else "problem"
        yield Finding(level=level, check="sandbox", text=str(error))
    else:
        yield Finding(level="ok", check="sandbox", text="programs that try to get out fail")


def _problems(patient: Patient) -> Iterator[Finding]:
    config = patient.config
    level: Level
    sources = () if config.task.type != "dataset" else (config.task.train, config.task.test)
    away = any(source is not None and source.hub for source in sources)
    directory = _here(patient, config.student) if config.student is not None else None
    if isinstance(config.task, TinyWorld) or directory is None or (patient.offline and away):
        why = "brought by the tiny world" if isinstance(config.task, TinyWorld) else "not looked at"
        level = "ok" if isinstance(config.task, TinyWorld) else "warning"
        yield Finding(level=level, check="problems", text=why)
        return
    assert config.student is not None
    verifier = verifier_for(config.task, config.code)
    said: list[str] = []
    try:
        task = load_problems(config, load_tokenizer(config.student), verifier, said.append)
    finally:
        if isinstance(verifier, CountingVerifier):
            verifier.close()
    harmless = {str(counts) for counts in task.counts if not counts.dropped}
    for line in said:
        level = "ok" if line in harmless else "warning"
        yield Finding(level=level, check="problems", text=line)
    text = f"{len(task.train)} to train on, {len(task.test)} held out"
    yield Finding(level="ok", check="problems", text=text)
    prompts = [problem.prompt for problem in task.train]
    if twice := len(prompts) - len(set(prompts)):
        text = f"{twice} training problems are there twice"
        yield Finding(level="warning", check="problems", text=text, remedy="remove the copies")
    if shared := len(set(prompts) & {problem.prompt for problem in task.test}):
        text = f"{shared} test problems are among the training problems"
        yield Finding(level="problem", check="problems", text=text, remedy="remove them from one")


def _servers(patient: Patient) -> Iterator[Finding]:
    for name, server in (
        ("teacher_server", patient.config.teacher_server),
        ("rollouts.server", patient.config.rollouts.server),
    ):
        if server is not None:
            server.api_key()
            text = f"{server.url}: the run itself shakes hands with it before the first step"
            yield Finding(level="warning", check=name, text=text)


def _estimates(patient: Patient) -> Iterator[Finding]:
    config, gpu = patient.config, patient.gpu
    if config.student is None:
        return
    scoring = [settings for name, settings in _named(config) if name != "student"]
    needs_copy = isinstance(config.objective, ExOPD) or getattr(
        config.objective, "needs_reference", False
    )
    if needs_copy and config.reference is None and config.student.lora is None:
        scoring.append(config.student)
    sizes = Sizes(
        student=_shape(patient, config.student),
        student_settings=config.student,
        scoring=tuple((_shape(patient, settings), settings) for settings in scoring),
    )
    for phase in phases(config, sizes, gpu):
        device, host = phase.memory.device, phase.memory.host
        text = f"{device / 1e9:.3g} GB on the device, {host / 1e9:.3g} GB on the host"
        if phase.seconds is not None:
            text += f", {phase.seconds / 60:.3g} minutes a step at most"
        level: Level = "ok"
        if gpu is not None and device > _FULL * gpu.memory_bytes:
            level = "problem" if device > gpu.memory_bytes else "warning"
        remedy = "" if level == "ok" else "lower what docs/memory.md lists, or take adapters"
        yield Finding(level=level, check=phase.name, text=text, remedy=remedy)
    yield _disk(config, checkpoint_bytes(config, sizes))


def _disk(config: RunConfig, one: int) -> Finding:
    """Room for the checkpoints that are kept, and the one that is being written."""
    needed, free = one * (config.checkpoint.keep + 1), shutil.disk_usage(Path.cwd()).free
    text = f"checkpoints take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free here"
    if needed <= free:
        return Finding(level="ok", check="disk", text=text)
    return Finding(
        level="warning", check="disk", text=text, remedy="write elsewhere (--out) or keep fewer"
    )
