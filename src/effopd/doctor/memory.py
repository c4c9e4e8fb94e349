"""Memory, time and disk of a run on one card, and the settings that would make it fit."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from effopd.doctor.checks import CheckedRun, Finding, Level
from effopd.doctor.phases import Estimate, step_seconds
from effopd.models.gpus import Gpu
from effopd.training.config import Config

FULL = 0.9
"""Share of a card's memory beyond which an estimate is no comfort."""
_LONG_DAYS = 14
_DAY_S = 86_400
_LARGER = (
    "no setting makes it fit: train adapters (student.lora), or take several cards: the launches "
    "in examples/verl (docs/verl.md, effopd doctor --gpus)"
)

Saving = Mapping[str, Any]
"""Settings that save memory -> their values."""


def memory(run: CheckedRun) -> Iterator[Finding]:
    """Each phase against the card, with what would make it fit; then time and disk."""
    if "student" not in run.models:
        return
    config, gpu = run.config, run.gpu
    estimate = Estimate(config=config, shapes=run.shapes, gpu=gpu, served_width=run.served_width)
    phases = estimate.phases()
    wanted = "" if gpu is None or fits(estimate, gpu) else remedy(estimate, gpu)
    for phase in phases:
        device, host = phase.memory.device, phase.memory.host
        text = f"{gb(device)} on the device, {gb(host)} on the host"
        if phase.seconds is not None:
            text += f", at most {duration(phase.seconds)}"
        level: Level = "ok"
        if gpu is not None and device > FULL * gpu.memory_bytes:
            level = "problem" if device > gpu.memory_bytes else "warning"
            text += f"; {gpu.name} has {gb(gpu.memory_bytes)}"
        yield Finding(level, phase.name, text, "" if level == "ok" else wanted)
    if gpu is not None and not estimate.has_engine_room:
        share = config.rollouts.vllm.gpu_memory
        text = f"its share of {share:g} is {gb(share * gpu.memory_bytes)}, "
        text += f"weights and one answer take {gb(estimate.engine_needs)}"
        yield Finding("problem", "rollouts.vllm", text, wanted)
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not run.offline and here < (host := phases[0].memory.host):
        text = f"the run keeps {gb(host)} on the host, this one has {gb(here)}"
        yield Finding("warning", "host memory", text)
    if (seconds := step_seconds(phases)) is not None:
        whole = config.train.steps * seconds
        text = f"at most {seconds / 3600:.1f} hours a step, every answer as long as it may be; "
        text += f"{duration(whole)} for {config.train.steps} steps"
        long = whole > _LONG_DAYS * _DAY_S
        said = "fewer steps, or several cards: examples/verl (docs/verl.md)" if long else ""
        yield Finding(level="warning" if long else "ok", check="time", text=text, remedy=said)
    # Room for the checkpoints that are kept, and the one that is being written.
    needed = estimate.checkpoint_bytes() * (config.checkpoint.keep + 1)
    free = shutil.disk_usage(Path.cwd()).free
    text = f"checkpoints take {gb(needed)}, {gb(free)} are free here"
    said = "write elsewhere (--out) or keep fewer" if needed > free else ""
    yield Finding(level="warning" if said else "ok", check="disk", text=text, remedy=said)


def gb(count: float) -> str:
    """Bytes, for people."""
    return f"{count / 1e9:,.0f} GB" if count >= 1e11 else f"{count / 1e9:.3g} GB"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for size, unit in ((_DAY_S, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def fits(estimate: Estimate, gpu: Gpu) -> bool:
    """Whether every phase is below `FULL` of the card, and vLLM has room in its share."""
    limit = FULL * gpu.memory_bytes
    within = all(phase.memory.device <= limit for phase in estimate.phases())
    return within and estimate.has_engine_room


def remedy(estimate: Estimate, gpu: Gpu) -> str:
    """The settings that make a run fit: as few as do, and none that change what is trained.

    But for the precision: a student in float32 may become one in bfloat16 with float32 masters.
    """
    savings = list(_savings(estimate, gpu))

    def fit(chosen: Sequence[Saving]) -> bool:
        config = estimate.config
        for setting, value in (item for saving in chosen for item in saving.items()):
            config = _changed(config, setting.split("."), value)
        return fits(replace(estimate, config=config), gpu)

    # Everything at once; where that is too little, no setting is enough.
    chosen = [saving[-1] for saving in savings]
    if not fit(chosen):
        return _LARGER
    # What costs most time comes first, and goes first if it may.
    for saving in savings:
        fewer = [each for each in chosen if each is not saving[-1]]
        chosen = fewer if fit(fewer) else chosen
    # Of what stays, the most generous value that fits.
    for saving in (each for each in savings if each[-1] in chosen):
        place = chosen.index(saving[-1])
        tried = ([*chosen[:place], each, *chosen[place + 1 :]] for each in saving)
        chosen = next(each for each in tried if fit(each))
    settings = [(name, value) for saving in chosen for name, value in saving.items()]
    shown = (f"{n}={str(v).lower() if isinstance(v, bool) else v}" for n, v in settings)
    return f"set {' '.join(shown)}"


def _changed(settings: Any, path: Sequence[str], value: Any) -> Any:
    """Settings with another value at `path`."""
    name, *inner = path
    value = _changed(getattr(settings, name), inner, value) if inner else value
    if isinstance(settings, Config):
        return settings.model_copy(update={name: value})
    return replace(settings, **{name: value})


def _savings(estimate: Estimate, gpu: Gpu) -> Iterator[list[Saving]]:
    """What can be saved that is not saved yet; each with its values from the most generous on."""
    config, longest, student = estimate.config, estimate.longest, estimate.student
    if student.lora is None and not config.memory.offload_optimizer:
        low = {"student.dtype": "bfloat16"} if student.dtype == "float32" else {}
        yield [low | {"memory.master_weights": True, "memory.offload_optimizer": True}]
    if config.memory.anchor_device == "student":
        yield [{"memory.anchor_device": "cpu"}]
    if not config.memory.teacher_offload and config.self_teacher is None:
        yield [{"memory.teacher_offload": True}]
    if not student.gradient_checkpointing:
        yield [{"student.gradient_checkpointing": True}]
    if config.train.micro_batch_tokens > longest:
        yield [{"train.micro_batch_tokens": longest}]
    if config.memory.scoring_tokens > longest:
        yield [{"memory.scoring_tokens": longest}]
    if config.rollouts.engine == "vllm":  # which gives its share back while it sleeps
        least = math.ceil(100 * estimate.engine_needs / gpu.memory_bytes)
        shares = [share / 100 for share in (*range(90, least, -5), min(least, 99))]
        sleep = {} if config.rollouts.vllm.sleep else {"rollouts.vllm.sleep": True}
        yield [{"rollouts.vllm.gpu_memory": share} | sleep for share in shares]
    together = [2**n for n in range(config.train.rollout_batch.bit_length() - 1, -1, -1)]
    yield [{"memory.generation_tokens": answers * longest} for answers in together]
