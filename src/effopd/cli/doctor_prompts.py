"""What the doctor sees of tokenizers, problems, and who checks or serves."""

from collections.abc import Iterator
from glob import glob
from typing import Any

from effopd.cli.data import Rendered, rendered
from effopd.cli.doctor_visit import Finding, Level, Model, Patient
from effopd.data.dataset import DatasetSpec
from effopd.data.problem import CountingVerifier, Problem
from effopd.data.world import TinyWorld
from effopd.errors import EffopdError, ParameterMismatchError
from effopd.models.end_tokens import end_token_ids_in, token_names
from effopd.models.vocabularies import shared_vocabulary
from effopd.rewards.build import verifier_for
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rollouts.prompts import lend_template_, prompt_remarks
from effopd.training.problems import check_teacher_prompts, load_problems

_QUESTION = Problem(id="doctor", prompt="What is 2 + 2?", answer="4")


def tokenizers(patient: Patient) -> Iterator[Finding]:
    """Tokens, ends and rendered prompts of every model, the others against the student's."""
    shapes = [model.known_shape for model in patient.models.values()]
    rows = {shape.vocabulary for shape in shapes if shape is not None}
    if len(rows) > 1:
        text = f"heads have {', '.join(map(str, sorted(rows)))} rows; those without a token are cut"
        yield Finding(level="warning", check="vocabulary", text=text)
    student = patient.models.get("student")
    if student is None:
        return
    if student.tokenizer is None:
        text = "tokenizers are not on this disk and were not compared"
        yield Finding(level="warning", check="tokenizers", text=text)
        return
    own = rendered(patient.config, student.tokenizer, _QUESTION)
    for name, model in patient.models.items():
        if name != "student" and model.tokenizer is not None:
            yield from _compared(patient, model, student.tokenizer, own)
    yield from _prompt(patient, student, own)


def _compared(patient: Patient, model: Model, student: Any, own: Rendered) -> Iterator[Finding]:
    """Tokens, special tokens and rendered prompts of another model against the student's."""
    other, name = model.tokenizer, model.name
    try:
        shared = shared_vocabulary(student, other, name if "." in name else f"the {name}")
    except ParameterMismatchError as error:
        yield Finding(level="problem", check="tokenizers", text=str(error))
        return
    if shared.remark:
        yield Finding(level="warning", check="tokenizers", text=shared.remark)
    else:
        yield Finding(level="ok", check="tokenizers", text=f"{name} has the student's tokens")
    if student.eos_token_id != other.eos_token_id:
        text = f"the student ends with {student.eos_token!r}, {name} with {other.eos_token!r}"
        yield Finding(level="warning", check="special tokens", text=text)
    if patient.config.prompt.chat and lend_template_(student, other):
        text = f"{name} has no chat template: its own evaluation uses the student's"
        yield Finding(level="ok", check="chat template", text=text)
    seen = rendered(patient.config, other, _QUESTION)
    if seen.ids != own.ids:
        text = f"{name} would get another prompt: {seen.text!r}"
        remedy = "the teacher scores the student's tokens: give both one chat template"
        yield Finding(level="warning", check="chat template", text=text, remedy=remedy)


def _prompt(patient: Patient, student: Model, own: Rendered) -> Iterator[Finding]:
    """The prompt as the student gets it, where its answers end, and what is odd about both."""
    assert student.directory is not None  # its tokenizer is from there
    tokenizer, config = student.tokenizer, patient.config
    ends = end_token_ids_in(student.directory, tokenizer)
    text = f"{own.text!r}; answers end with {token_names(tokenizer, ends)}"
    yield Finding(level="ok", check="prompt", text=f"{text}, {tokenizer.pad_token!r} pads")
    for remark in prompt_remarks(
        config.prompt,
        tokenizer,
        [_QUESTION],
        ends=ends,
        cap=config.sampling.max_new_tokens,
        positions=None,  # what the settings allow is looked at with the model
    ):
        level: Level = "problem" if own.ids[-1] in ends else "warning"
        yield Finding(level=level, check="prompt", text=remark)


def sandbox(patient: Patient) -> Iterator[Finding]:
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


def problems(patient: Patient) -> Iterator[Finding]:
    """The problems as the run would have them: what is left out, and what is there twice."""
    task = patient.config.task
    if isinstance(task, TinyWorld):
        yield Finding(level="ok", check="problems", text="brought by the tiny world")
        return
    student = patient.models.get("student")
    if student is None or student.tokenizer is None or (patient.offline and _is_away(patient)):
        yield from _missing_files(patient)
        text = "not looked at: that takes the student's tokenizer, and the data, on this disk"
        yield Finding(level="warning", check="problems", text=text)
        return
    verifier = verifier_for(task, patient.config.code)
    said: list[str] = []
    try:
        found = load_problems(patient.config, student.tokenizer, verifier, said.append)
    finally:
        if isinstance(verifier, CountingVerifier):
            verifier.close()
    harmless = {str(counts) for counts in found.counts if not counts.dropped}
    for line in said:
        level: Level = "ok" if line in harmless else "warning"
        yield Finding(level=level, check="problems", text=line)
    text = f"{len(found.train)} to train on, {len(found.test)} held out"
    yield Finding(level="ok", check="problems", text=text)
    evaluation, teacher = patient.config.evaluation, patient.models.get("teacher")
    if evaluation.problems and evaluation.teacher and teacher and teacher.tokenizer is not None:
        check_teacher_prompts(patient.config.prompt, teacher.tokenizer, found.test)
    prompts = [problem.prompt for problem in found.train]
    if twice := len(prompts) - len(set(prompts)):
        text = f"{twice} training problems are there twice"
        yield Finding(level="warning", check="problems", text=text, remedy="remove the copies")
    if shared := len(set(prompts) & {problem.prompt for problem in found.test}):
        text = f"{shared} test problems are among the training problems"
        yield Finding(level="problem", check="problems", text=text, remedy="remove them from one")


def _is_away(patient: Patient) -> bool:
    """Whether a data set is of the Hub."""
    return any(source.hub for source in _sources(patient))


def _sources(patient: Patient) -> list[DatasetSpec]:
    task = patient.config.task
    sources = (task.train, task.test) if task.type == "dataset" else ()
    return [source for source in sources if source is not None]


def _missing_files(patient: Patient) -> Iterator[Finding]:
    """Files of problems that are not there, where the problems themselves are not read."""
    named = [source.path for source in _sources(patient) if not source.hub]
    for path in (path for path in named if path and not glob(path)):
        level: Level = "warning" if patient.offline else "problem"
        remedy = "put the file there, or name another in the recipe"
        yield Finding(level=level, check="problems", text=f"no file at {path}", remedy=remedy)


def servers(patient: Patient) -> Iterator[Finding]:
    """Keys of servers; whether they answer is for the run to find out."""
    for name, server in (
        ("teacher_server", patient.config.teacher_server),
        ("rollouts.server", patient.config.rollouts.server),
    ):
        if server is not None:
            server.api_key()
            text = f"{server.url}: the run itself shakes hands with it before the first step"
            yield Finding(level="warning", check=name, text=text)
