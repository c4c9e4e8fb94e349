"""What would go wrong in a run: devices, models, tokenizers, problems, servers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any, Literal

from effopd.data.problem import CountingVerifier, Problem
from effopd.data.smollm2 import World
from effopd.doctor.phases import ELEMENT_BYTES
from effopd.doctor.preview import render
from effopd.doctor.sizes import ModelShape, model_config, model_shape
from effopd.errors import EffopdError, ParameterMismatchError
from effopd.models.architecture import architecture_of, described_by, position_limit
from effopd.models.directory import find_model, read_config
from effopd.models.gpus import Gpu
from effopd.models.loading import AUTO, ModelSettings, load_tokenizer, real_device
from effopd.models.token_map import match_vocabularies
from effopd.models.tokenizers import (
    end_token_ids_in,
    ends_remark,
    shared_vocabulary,
    token_names,
)
from effopd.models.weights import stored_tensors
from effopd.records import display_text
from effopd.rewards.build import verifier_for
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rollouts.prompts import TeacherPrompt, lend_template_, prompt_remarks
from effopd.servers.client import Client, ServerRequest
from effopd.servers.hidden_states import TEACHER, EffopdApi
from effopd.training.build import check_teacher_prompts, load_problems, prompt_of
from effopd.training.config import Config
from effopd.training.teachers import MOVES_WITH_STUDENT

Level = Literal["ok", "warning", "problem"]

_PATIENCE_S = 5.0
_LARGE = 500_000_000
"""Parameters above which a CPU is no place to train."""
_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling")
_QUESTION = Problem(id="doctor", prompt="What is 2 + 2?", answer="4")


@dataclass(frozen=True)
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
class Model:
    """A model that the settings name, as far as it can be seen."""

    name: str
    settings: ModelSettings
    recipe: Path | None
    offline: bool

    @cached_property
    def directory(self) -> Path | None:
        """Its directory, None if it is away; configuration and tokenizer are fetched if need be."""
        path = Path(self.settings.path).expanduser()
        if path.is_dir():
            return path
        if self.offline or path.is_file() or self.settings.path.startswith((".", "/", "~")):
            return None
        return find_model(self.settings.path, self.settings.revision, weights=False)

    @cached_property
    def content(self) -> tuple[Mapping[str, Any], Path]:
        """Content of config.json, and the file it is from."""
        path = self.settings.path if self.directory is None else str(self.directory)
        return model_config(path, self.recipe)

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes, of any architecture that transformers knows."""
        return model_shape(*self.content)

    @cached_property
    def known_shape(self) -> ModelShape | None:
        """Its sizes; None where nothing says them, which the check of the models is about."""
        try:
            return self.shape
        except EffopdError:
            return None

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer; None where it is not on this disk."""
        return None if self.directory is None else load_tokenizer(self.settings)


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """A run that is looked at, and what it is judged for."""

    config: Config
    recipe: Path | None
    offline: bool
    gpu: Gpu | None

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models by name."""
        config = self.config
        named = {"student": config.student, "teacher": config.teacher}
        named["reference"] = config.reference
        named |= {f"teachers.{name}": each for name, each in config.teachers.items()}
        return {
            name: Model(name=name, settings=each, recipe=self.recipe, offline=self.offline)
            for name, each in named.items()
            if each is not None
        }

    @cached_property
    def shapes(self) -> dict[str, ModelShape]:
        """The sizes of the models by name."""
        return {name: model.shape for name, model in self.models.items()}

    @cached_property
    def served_width(self) -> tuple[int, int] | None:
        """Width of the hidden states of our teacher server, and bytes a number: as it says, once.

        None where there is none, or where it cannot be asked.
        """
        server = self.config.teacher_server
        if server is None or server.flavor != "effopd" or self.offline:
            return None
        api = EffopdApi(server.model)
        try:
            client = Client(replace(server, request_s=min(server.request_s, _PATIENCE_S)))
            asked = ServerRequest(path=TEACHER), api.read_description, client.deadline()
            said = client.ask_once(*asked)
            return said["width"], ELEMENT_BYTES[said["dtype"]]
        except (EffopdError, KeyError):  # the run itself says what is wrong with it
            return None

    @property
    def student(self) -> Model | None:
        """The student, where a recipe names one."""
        return self.models.get("student")


def devices(run: CheckedRun) -> Iterator[Finding]:
    """Which device the run would take here, or which card it is judged for."""
    asked, elsewhere = run.config.device, run.offline or run.gpu is not None
    judged = f"; judged for {run.gpu.name}" if run.gpu is not None else ""
    try:
        found = real_device(asked)
    except EffopdError as error:
        # Offline, or with a card named, the recipe may be meant for another machine.
        text = str(error) if not elsewhere else f"{asked}, which this machine does not have"
        level: Level = "ok" if judged else "warning" if elsewhere else "problem"
        yield Finding(level, "device", text + judged)
        return
    why = {AUTO: f", {'a' if found != 'cpu' else 'no'} GPU was found here"}.get(asked, "")
    shape = None if run.student is None else run.student.known_shape
    slow = found == "cpu" and not elsewhere and shape and shape.parameters > _LARGE
    remedy = "run it on a machine with a GPU, and name that card here with --gpu" if slow else ""
    text = f"{found} (device = {asked!r}{why}){judged}"
    yield Finding("warning" if slow else "ok", "device", text, remedy)


# Models -------------------------------------------------------------------------------------------


def models(run: CheckedRun) -> Iterator[Finding]:
    """Sizes and files of each model, and whether its architecture can be loaded and trained."""
    for model in run.models.values():
        try:
            yield from _model(run.config, model)
        except EffopdError as error:
            yield Finding("problem", model.name, str(error))


def _model(config: Config, model: Model) -> Iterator[Finding]:
    """One model, by its files and by what transformers says about its configuration."""
    settings, name, shape, path = model.settings, model.name, model.shape, model.settings.path
    # Its parameters, and whether the files hold as many as config.json describes.
    text, remedy = f"{path}, {shape.parameters / 1e9:.3g} billion parameters", ""
    level: Level = "ok"
    if model.directory is None:
        level, text = "warning", f"{text}, not here"
        remedy = "put its directory there, or download it"
    elif Path(path).expanduser().is_dir():  # weights of a repository may not be here yet
        stored = stored_tensors(model.directory).values()
        elements = sum(math.prod(tensor.shape) for tensor in stored)
        quantized = read_config(model.directory).get("quantization_config")
        tied = shape.parameters + shape.tied * shape.vocabulary * shape.hidden
        if elements not in {shape.parameters, tied} and not quantized:
            level, remedy = "problem", "complete the download"
            text = f"{path} holds {elements} numbers, its config.json describes "
            text += str(shape.parameters)
    yield Finding(level, name, text, remedy)
    content, file = model.content
    described = described_by(content, file)
    try:
        found = architecture_of(described, path, settings.attention)
    except EffopdError as error:
        yield Finding("problem", name, str(error))
    else:
        if found.attention != settings.attention:
            text = f"{found.model_class.__name__} runs with attention {found.attention!r}"
            yield Finding("ok", name, text)
    low = f'set {name}.dtype = "bfloat16"'
    if settings.attention == "flash_attention_2" and settings.dtype == "float32":
        text = "flash_attention_2 computes in bfloat16 or float16, the model is in float32"
        yield Finding("problem", name, text, low)
    # Positions: vLLM and learned embeddings fail beyond the last, rotary ones get worse.
    text_config, known = described.get_text_config(), position_limit(content)
    prompt, answer = config.prompt.max_tokens, config.sampling.max_new_tokens
    if known is not None and prompt + answer > known:
        learned = not any(getattr(text_config, each, None) is not None for each in _ROTARY)
        by_vllm = name == "student" and config.rollouts.engine == "vllm"
        level = "problem" if by_vllm or (learned and answer >= known) else "warning"
        text = f"prompts of {prompt} and answers of {answer} tokens go beyond its {known} positions"
        yield Finding(level, name, text, "lower sampling.max_new_tokens or prompt.max_tokens")
    # Precision: weights that cannot learn, or that leave the range of their type.
    if name == "student" and config.rounds_updates:
        text = f"bfloat16 weights round updates of {config.optimizer.lr:g} away"
        yield Finding("warning", name, text, "set memory.master_weights = true")
    if settings.dtype == "float16" and str(described.dtype).endswith("bfloat16"):
        text = "published in bfloat16; float16 ends at 65,504, which activations may pass"
        yield Finding("warning", name, text, low)


# Tokenizers and prompts ---------------------------------------------------------------------------


def tokenizers(run: CheckedRun) -> Iterator[Finding]:
    """Tokens, ends and rendered prompts of every model, the others against the student's."""
    shapes = [model.known_shape for model in run.models.values()]
    rows = {shape.vocabulary for shape in shapes if shape is not None}
    if len(rows) > 1:
        text = f"heads have {', '.join(map(str, sorted(rows)))} rows; those without a token are cut"
        yield Finding("warning", "vocabulary", text)
    if (student := run.student) is None:
        return
    if student.tokenizer is None:
        text = "tokenizers are not on this disk and were not compared"
        yield Finding("warning", "tokenizers", text)
        return
    for name, model in run.models.items():
        if name != "student" and model.tokenizer is not None:
            yield from _compared(run, name, student.tokenizer, model.tokenizer)
            ours, theirs = student.directory, model.directory
            assert ours is not None  # its tokenizer is from there
            assert theirs is not None
            text = ends_remark(
                student.tokenizer,
                end_token_ids_in(ours, student.tokenizer),
                model.tokenizer,
                end_token_ids_in(theirs, model.tokenizer),
                name,
                exchanges=_reads_other_tokens(run.config, name),
            )
            if text:
                yield Finding("warning", "ends of answers", text)
    # The prompt as the student gets it, where its answers end, and what is odd about both.
    assert student.directory is not None  # its tokenizer is from there
    tokenizer, config = student.tokenizer, run.config
    own = render(config, tokenizer, _QUESTION)
    ends = end_token_ids_in(student.directory, tokenizer)
    text = f"{own.text!r}; answers end with {token_names(tokenizer, ends)}"
    yield Finding(level="ok", check="prompt", text=f"{text}, {tokenizer.pad_token!r} pads")
    most = config.sampling.max_new_tokens  # positions are looked at with the model
    for remark in prompt_remarks(
        config.prompt, tokenizer, [_QUESTION], ends=ends, cap=most, positions=None
    ):
        yield Finding("problem" if own.ids[-1] in ends else "warning", "prompt", remark)


def _reads_other_tokens(config: Config, name: str) -> bool:
    """Whether a model is a teacher, which a mapping or an alignment may stand before."""
    return name.startswith("teacher") and config.self_teacher is None


def _other_tokens(
    config: Config, name: str, student: Any, other: Any, error: Exception, *, is_teacher: bool
) -> Finding:
    """Tokens with other ids: a teacher may have them under a mapping, or aligned by bytes."""
    if not is_teacher:
        return Finding("problem", "tokenizers", str(error))
    try:
        mapped = match_vocabularies(student, other, name)
    except ParameterMismatchError:
        if config.alignment is None:
            return Finding("problem", "tokenizers", f"{error} Or set [alignment].")
        text = f"{name} has another tokenizer: answers are aligned by bytes"
        return Finding("warning", "tokenizers", text)
    return Finding("warning", "tokenizers", "; ".join(mapped.lines))


def _compared(run: CheckedRun, name: str, student: Any, other: Any) -> Iterator[Finding]:
    """Tokens, special tokens and rendered prompts of another model against the student's."""
    try:
        shared = shared_vocabulary(student, other, name if "." in name else f"the {name}")
    except ParameterMismatchError as error:
        is_teacher = _reads_other_tokens(run.config, name)
        yield _other_tokens(run.config, name, student, other, error, is_teacher=is_teacher)
        return
    if shared.remark:
        yield Finding("warning", "tokenizers", shared.remark)
    else:
        yield Finding("ok", "tokenizers", f"{name} has the student's tokens")
    config, own = run.config, name.removeprefix("teachers.").removeprefix("teacher")
    own_prompt = config.reference_prompt if name == "reference" else prompt_of(config, own)
    if (own_prompt or config.prompt).chat and lend_template_(student, other):
        text = f"{name} has no chat template: its own evaluation uses the student's"
        yield Finding("ok", "chat template", text)
    if isinstance(own_prompt, TeacherPrompt):
        if own_prompt.text == "{prompt}":  # fields are those of the run's own problems
            seen = render(config, other, _QUESTION, own_prompt)
            yield Finding("ok", "chat template", f"{name} reads a prompt of its own: {seen.text!r}")
        else:
            yield Finding("ok", "chat template", f"{name} reads a prompt of its own")
        return
    seen = render(run.config, other, _QUESTION)
    if seen.ids != render(run.config, student, _QUESTION).ids:
        text = f"{name} would get another prompt: {seen.text!r}"
        remedy = (
            "the teacher scores the student's tokens: give both one chat template, or the teacher "
            "a [teacher_prompt]"
        )
        yield Finding("warning", "chat template", text, remedy)


def self_teacher(run: CheckedRun) -> Iterator[Finding]:
    """A teacher that moves with the student."""
    own = run.config.self_teacher
    if own is not None and own.weights == "current":
        text, remedy = MOVES_WITH_STUDENT.split(": ")
        yield Finding("warning", "self_teacher", text, remedy)


# Problems, and who checks and serves --------------------------------------------------------------


def sandbox(run: CheckedRun) -> Iterator[Finding]:
    """A boundary for programs, shown to hold; offline a recipe may be meant for another machine."""
    task = run.config.task
    if isinstance(task, World) or task.verifier != "code":
        return
    settings = run.config.code.sandbox
    if settings.kind in {"url", "none"}:
        text = "programs run without a boundary" if settings.kind == "none" else settings.url
        yield Finding("warning", "sandbox", f"not tried: {text}")
        return
    try:
        open_sandbox(settings).close()
    except EffopdError as error:
        yield Finding("warning" if run.offline else "problem", "sandbox", str(error))
    else:
        yield Finding("ok", "sandbox", "programs that try to get out fail")


def problems(run: CheckedRun) -> Iterator[Finding]:
    """The problems as the run would have them: what is left out, and what is there twice."""
    task = run.config.task
    if isinstance(task, World):
        yield Finding("ok", "problems", f"brought by {task.type}")
        return
    student = run.student
    of_hub = any(source.hub for source in task.sources)
    if student is None or student.tokenizer is None or (run.offline and of_hub):
        level: Level = "warning" if run.offline else "problem"
        remedy = "put the file there, or name another in the recipe"
        for path in (source.path for source in task.sources if not source.hub):
            if path and not glob(path):
                yield Finding(level, "problems", f"no file at {path}", remedy)
        text = "not looked at: that takes the student's tokenizer, and the data, on this disk"
        yield Finding("warning", "problems", text)
        return
    verifier = verifier_for(task, run.config.code)
    said: list[str] = []
    try:
        found = load_problems(run.config, student.tokenizer, verifier, said.append)
    finally:
        if isinstance(verifier, CountingVerifier):
            verifier.close()
    harmless = {str(counts) for counts in found.counts if not counts.dropped}
    for line in said:
        yield Finding("ok" if line in harmless else "warning", "problems", line)
    yield Finding("ok", "problems", f"{len(found.train)} to train on, {len(found.test)} held out")
    evaluation, teacher = run.config.evaluation, run.models.get("teacher")
    if evaluation.problems and evaluation.teacher and teacher and teacher.tokenizer is not None:
        check_teacher_prompts(prompt_of(run.config, ""), teacher.tokenizer, found.test)
    prompts = [problem.prompt for problem in found.train]
    if twice := len(prompts) - len(set(prompts)):
        text = f"{twice} training problems are there twice"
        yield Finding("warning", "problems", text, "remove the copies")
    if shared := len(set(prompts) & {problem.prompt for problem in found.test}):
        text = f"{shared} test problems are among the training problems"
        yield Finding("problem", "problems", text, "remove them from one")


def servers(run: CheckedRun) -> Iterator[Finding]:
    """Keys of servers, and a teacher's width; whether they work is for the run to find out."""
    named = {"teacher_server": run.config.teacher_server}
    named["rollouts.server"] = run.config.rollouts.server
    for name, server in named.items():
        if server is not None:
            server.api_key()
            text = f"{server.url}: the run itself shakes hands with it before the first step"
            yield Finding("warning", name, text)
    teacher = run.config.teacher_server
    if teacher is None or teacher.flavor != "effopd" or run.student is None:
        return  # there is no estimate that it would be part of
    if run.served_width is not None:
        text = f"its hidden states have {run.served_width[0]} numbers"
        yield Finding("ok", "teacher_server", text)
    else:
        why = "not asked offline" if run.offline else "it did not answer"
        text = (
            f"the width of its hidden states is unknown ({why}): they and its head are not counted"
        )
        yield Finding("warning", "teacher_server", text, "run the doctor where the server answers")


Check = Callable[[CheckedRun], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    devices, models, tokenizers, self_teacher, sandbox, problems, servers,
)  # fmt: skip
"""In the order in which a run would meet what they look at; memory comes last."""
