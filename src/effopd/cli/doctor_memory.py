"""What the doctor says about memory, time and disk, and which settings would make a run fit."""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from effopd.cli.doctor_estimates import Estimate, step_seconds
from effopd.cli.doctor_visit import Finding, Level, Patient
from effopd.models.footprint import Gpu
from effopd.training.config import Config

FULL = 0.9
"""Share of a card's memory beyond which an estimate is no comfort."""
_LONG_DAYS = 14
_DAY_S = 86_400
_LARGER = (
    "no setting makes it fit: train adapters (student.lora), or take several cards: the launches "
    "in examples/verl (docs/verl.md, effopd plan)"
)

Change = Callable[[Config], Config]


def memory(patient: Patient) -> Iterator[Finding]:
    """Each phase against the card, with what would make it fit; then time and disk."""
    student = patient.models.get("student")
    if student is None:
        return
    shapes = {name: model.shape for name, model in patient.models.items()}
    gpu = patient.gpu
    estimate = Estimate(config=patient.config, shapes=shapes, gpu=gpu)
    phases = list(estimate.phases())
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
        said = "" if level == "ok" else wanted
        yield Finding(level=level, check=phase.name, text=text, remedy=said)
    if gpu is not None and not _has_room_for_vllm(estimate, gpu):
        share = patient.config.rollouts.vllm.gpu_memory
        text = f"its share of {share:g} is {gb(share * gpu.memory_bytes)}, "
        text += f"weights and one answer take {gb(estimate.engine_needs)}"
        yield Finding(level="problem", check="rollouts.vllm", text=text, remedy=wanted)
    if not patient.offline and (here := _host_bytes()) < (host := phases[0].memory.host):
        text = f"the run keeps {gb(host)} on the host, this one has {gb(here)}"
        yield Finding(level="warning", check="host memory", text=text)
    yield from _time(patient.config, step_seconds(phases))
    yield _disk(patient.config, estimate.checkpoint_bytes())


def _time(config: Config, seconds: float | None) -> Iterator[Finding]:
    if seconds is None:
        return
    steps, whole = config.train.steps, config.train.steps * seconds
    text = f"at most {seconds / 3600:.1f} hours a step, every answer as long as it may be; "
    text += f"{duration(whole)} for {steps} steps"
    if whole <= _LONG_DAYS * _DAY_S:
        yield Finding(level="ok", check="time", text=text)
        return
    remedy = "fewer steps, or several cards: examples/verl (docs/verl.md)"
    yield Finding(level="warning", check="time", text=text, remedy=remedy)


def _host_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _disk(config: Config, one: int) -> Finding:
    """Room for the checkpoints that are kept, and the one that is being written."""
    needed, free = one * (config.checkpoint.keep + 1), shutil.disk_usage(Path.cwd()).free
    text = f"checkpoints take {gb(needed)}, {gb(free)} are free here"
    if needed <= free:
        return Finding(level="ok", check="disk", text=text)
    return Finding(
        level="warning", check="disk", text=text, remedy="write elsewhere (--out) or keep fewer"
    )


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
    return within and _has_room_for_vllm(estimate, gpu)


def _has_room_for_vllm(estimate: Estimate, gpu: Gpu) -> bool:
    rollouts = estimate.config.rollouts
    if rollouts.engine != "vllm":
        return True
    return estimate.engine_needs <= rollouts.vllm.gpu_memory * gpu.memory_bytes


def remedy(estimate: Estimate, gpu: Gpu) -> str:
    """The settings that make a run fit: as few as do, and none that change what is trained.

    But for the precision: a student in float32 may become one in bfloat16 with float32 masters.
    """
    savings = list(_savings(estimate, gpu))
    chosen = [saving[-1] for saving in savings]
    if not fits(_after(estimate, chosen), gpu):
        return _LARGER
    # What costs most time comes first, and goes first if it may.
    for saving in savings:
        fewer = [each for each in chosen if each is not saving[-1]]
        if fits(_after(estimate, fewer), gpu):
            chosen = fewer
    # Of what stays, the most generous value that fits.
    for saving in (each for each in savings if each[-1] in chosen):
        place = chosen.index(saving[-1])
        for each in saving:
            chosen[place] = each
            if fits(_after(estimate, chosen), gpu):
                break
    return f"set {' '.join(saving.settings for saving in chosen)}"


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Overrides that save memory, and what they do to the settings."""

    settings: str
    change: Change


def _after(estimate: Estimate, chosen: Sequence[Saving]) -> Estimate:
    config = estimate.config
    for saving in chosen:
        config = saving.change(config)
    return replace(estimate, config=config)


def _savings(estimate: Estimate, gpu: Gpu) -> Iterator[list[Saving]]:
    """What can be saved that is not saved yet; each with its values from the most generous on."""
    config, longest = estimate.config, estimate.longest
    student = config.student
    assert student is not None
    if student.lora is None and not config.memory.offload_optimizer:
        masters = _in("memory", master_weights=True, offload_optimizer=True)
        if student.dtype == "float32":
            low = _in("student", dtype="bfloat16")
            names, change = f"{low.settings} {masters.settings}", masters.change
            yield [Saving(settings=names, change=lambda config: low.change(change(config)))]
        else:
            yield [masters]
    if config.memory.anchor_device == "student":
        yield [_in("memory", anchor_device="cpu")]
    if not config.memory.teacher_offload and config.self_teacher is None:
        yield [_in("memory", teacher_offload=True)]
    if not student.gradient_checkpointing:
        yield [_in("student", gradient_checkpointing=True)]
    if config.train.micro_batch_tokens > longest:
        yield [_in("train", micro_batch_tokens=longest)]
    if config.memory.scoring_tokens > longest:
        yield [_in("memory", scoring_tokens=longest)]
    if config.rollouts.engine == "vllm":
        least = math.ceil(100 * estimate.engine_needs / gpu.memory_bytes)
        shares = [share / 100 for share in (*range(90, least, -5), min(least, 99))]
        yield [_share(config, share) for share in shares]
    together = [2**n for n in range(config.train.rollout_batch.bit_length() - 1, -1, -1)]
    yield [_in("memory", generation_tokens=answers * longest) for answers in together]


def _in(section: str, **values: bool | int | str) -> Saving:
    """Sets values of one section."""
    named = [f"{section}.{name}={_toml(value)}" for name, value in values.items()]

    def change(config: Config) -> Config:
        return config.model_copy(update={section: replace(getattr(config, section), **values)})

    return Saving(settings=" ".join(named), change=change)


def _share(config: Config, share: float) -> Saving:
    """Another share for vLLM, which it gives back while it sleeps."""
    vllm = replace(config.rollouts.vllm, gpu_memory=share, sleep=True)
    sleep = "" if config.rollouts.vllm.sleep else " rollouts.vllm.sleep=true"
    return Saving(
        settings=f"rollouts.vllm.gpu_memory={share:g}{sleep}",
        change=lambda config: config.model_copy(
            update={"rollouts": replace(config.rollouts, vllm=vllm)}
        ),
    )


def _toml(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
