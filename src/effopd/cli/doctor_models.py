"""What the doctor sees of the models without their weights, whatever their architecture."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedConfig

from effopd.cli.doctor_visit import Finding, Level, Model, Patient
from effopd.errors import EffopdError
from effopd.models.architecture import architecture_of
from effopd.models.counted import described_by
from effopd.models.devices import AUTO, real_device
from effopd.models.directory import check_model
from effopd.models.positions import position_limit

_LARGE = 500_000_000
"""Parameters above which a CPU is no place to train."""
_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling")


def devices(patient: Patient) -> Iterator[Finding]:
    """Which device the run would take here, or which card it is judged for."""
    asked = patient.config.device
    elsewhere = patient.offline or patient.gpu is not None
    try:
        found = real_device(asked)
    except EffopdError as error:
        # Offline, or with a card named, the recipe may be meant for another machine.
        text = str(error) if not elsewhere else f"{asked}, which this machine does not have"
        text += f"; judged for {patient.gpu.name}" if patient.gpu is not None else ""
        level: Level = "ok" if patient.gpu is not None else "warning" if elsewhere else "problem"
        yield Finding(level=level, check="device", text=text)
        return
    why = {AUTO: "a GPU was found" if found != "cpu" else "no GPU was found here"}.get(asked, "")
    judged = f"; judged for {patient.gpu.name}" if patient.gpu is not None else ""
    text = f"{found} (device = {asked!r}{', ' if why else ''}{why}){judged}"
    student = patient.models.get("student")
    shape = None if student is None else student.known_shape
    large = shape is not None and shape.parameters > _LARGE
    if found == "cpu" and large and not elsewhere:
        remedy = "run it on a machine with a GPU, and name that card here with --gpu"
        yield Finding(level="warning", check="device", text=text, remedy=remedy)
        return
    yield Finding(level="ok", check="device", text=text)


def models(patient: Patient) -> Iterator[Finding]:
    """Sizes and files of each model, and whether its architecture can be loaded and trained."""
    for model in patient.models.values():
        try:
            yield _size(patient, model)
            content, path = model.content
            described = described_by(content, path)
            yield from _architecture(model, described)
            yield from _positions(patient, model, described)
            yield from _precision(patient, model, described)
        except EffopdError as error:
            yield Finding(level="problem", check=model.name, text=str(error))


def _size(patient: Patient, model: Model) -> Finding:
    shape, path = model.shape, model.settings.path
    size = f"{path}, {shape.parameters / 1e9:.3g} billion parameters"
    if model.directory is None:
        remedy = "put its directory there, or download it"
        return Finding(level="warning", check=model.name, text=f"{size}, not here", remedy=remedy)
    if not Path(path).expanduser().is_dir():  # of the Hub, and its weights may not be here yet
        return Finding(level="ok", check=model.name, text=size)
    contents = check_model(model.directory)
    tied = shape.parameters + shape.tied * shape.vocabulary * shape.hidden
    if contents.elements not in {shape.parameters, tied} and not contents.quantized:
        text = f"{path} holds {contents.elements} numbers, its config.json describes "
        return Finding(
            level="problem",
            check=model.name,
            text=text + str(shape.parameters),
            remedy="complete the download",
        )
    return Finding(level="ok", check=model.name, text=size)


def _architecture(model: Model, described: PreTrainedConfig) -> Iterator[Finding]:
    """Whether it can be trained and scored, with the attention that the settings ask for."""
    asked = model.settings.attention
    try:
        found = architecture_of(described, model.settings.path, asked)
    except EffopdError as error:
        yield Finding(level="problem", check=model.name, text=str(error))
    else:
        if found.attention != asked:
            text = f"{found.model_class.__name__} runs with attention {found.attention!r}"
            yield Finding(level="ok", check=model.name, text=text)
    if asked == "flash_attention_2" and model.settings.dtype == "float32":
        text = "flash_attention_2 computes in bfloat16 or float16, the model is in float32"
        remedy = f'set {model.name}.dtype = "bfloat16"'
        yield Finding(level="problem", check=model.name, text=text, remedy=remedy)


def _positions(patient: Patient, model: Model, described: PreTrainedConfig) -> Iterator[Finding]:
    """Prompt and answer against the positions that the model was trained on."""
    text_config, known = described.get_text_config(), position_limit(model.content[0])
    prompt, answer = patient.config.prompt.max_tokens, patient.config.sampling.max_new_tokens
    if known is None or prompt + answer <= known:
        return
    learned = not any(getattr(text_config, name, None) is not None for name in _ROTARY)
    by_vllm = model.name == "student" and patient.config.rollouts.engine == "vllm"
    fails = by_vllm or (learned and answer >= known)
    level: Level = "problem" if fails else "warning"
    text = f"prompts of {prompt} and answers of {answer} tokens go beyond its {known} positions"
    remedy = "lower sampling.max_new_tokens or prompt.max_tokens"
    yield Finding(level=level, check=model.name, text=text, remedy=remedy)


def _precision(patient: Patient, model: Model, described: PreTrainedConfig) -> Iterator[Finding]:
    """Weights that cannot learn, or that leave the range of their type."""
    config, dtype = patient.config, model.settings.dtype
    if model.name == "student" and config.rounds_updates:
        text = f"bfloat16 weights round updates of {config.optimizer.lr:g} away"
        remedy = "set memory.master_weights = true"
        yield Finding(level="warning", check=model.name, text=text, remedy=remedy)
    published = str(getattr(described, "dtype", None) or "").removeprefix("torch.")
    if dtype == "float16" and published == "bfloat16":
        text = "published in bfloat16; float16 ends at 65,504, which activations may pass"
        remedy = f'set {model.name}.dtype = "bfloat16"'
        yield Finding(level="warning", check=model.name, text=text, remedy=remedy)
