"""What the doctor says about memory, time and disk, and which settings would make a run fit."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from effopd.cli.doctor_estimates import Estimate, step_seconds
from effopd.cli.doctor_visit import Finding, Level, Patient
from effopd.config import RunConfig
from effopd.models.footprint import Gpu

FULL = 0.9
"""Share of a card's memory beyond which an estimate is no comfort."""
_LONG_DAYS = 14
_DAY_S = 86_400
_LARGER = (
    "no setting makes it fit: train adapters (student.lora), or take several cards: the launches "
    "in examples/verl (docs/verl.md, effopd plan)"
)

Change = Callable[[RunConfig], RunConfig]


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


def _time(config: RunConfig, seconds: float | None) -> Iterator[Finding]:
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


def _disk(config: RunConfig, one: int) -> Finding:
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
    chosen = _savings(estimate, gpu)
    if not fits(_after(estimate, chosen), gpu):
        return _LARGER
    for name in list(chosen):  # what costs most time comes first, and goes first if it may
        fewer = {other: change for other, change in chosen.items() if other != name}
        if fits(_after(estimate, fewer), gpu):
            chosen = fewer
    return f"set {' '.join(chosen)}"


def _after(estimate: Estimate, changes: dict[str, Change]) -> Estimate:
    config = estimate.config
    for change in changes.values():
        config = change(config)
    return replace(estimate, config=config)


def _savings(estimate: Estimate, gpu: Gpu) -> dict[str, Change]:
    """What can be saved that is not saved yet: the override, and what it does."""
    config, longest = estimate.config, estimate.longest
    student = config.student
    assert student is not None
    found: dict[str, Change] = {}
    if student.lora is None and not config.memory.offload_optimizer:
        names = "memory.master_weights=true memory.offload_optimizer=true"
        change = _in("memory", master_weights=True, offload_optimizer=True)
        if student.dtype == "float32":
            low = _in("student", dtype="bfloat16")
            found[f"student.dtype=bfloat16 {names}"] = lambda c: low(change(c))
        else:
            found[names] = change
    if config.memory.anchor_device == "student":
        found["memory.anchor_device=cpu"] = _in("memory", anchor_device="cpu")
    if not config.memory.teacher_offload and config.self_teacher is None:
        found["memory.teacher_offload=true"] = _in("memory", teacher_offload=True)
    if not student.gradient_checkpointing:
        name = "student.gradient_checkpointing=true"
        found[name] = _in("student", gradient_checkpointing=True)
    if config.train.micro_batch_tokens > longest:
        name = f"train.micro_batch_tokens={longest}"
        found[name] = _in("train", micro_batch_tokens=longest)
    if config.memory.scoring_tokens > longest:
        found[f"memory.scoring_tokens={longest}"] = _in("memory", scoring_tokens=longest)
    if config.rollouts.engine == "vllm":
        share = -(-estimate.engine_needs * 100 // gpu.memory_bytes) / 100 + 0.05
        vllm = replace(config.rollouts.vllm, gpu_memory=min(0.95, share), sleep=True)
        name = f"rollouts.vllm.gpu_memory={vllm.gpu_memory:.2f} rollouts.vllm.sleep=true"
        found[name] = _in("rollouts", vllm=vllm)
    together = _most_together(_after(estimate, found), gpu)
    found[f"memory.generation_tokens={together}"] = _in("memory", generation_tokens=together)
    return found


def _in(section: str, **values: object) -> Change:
    """Sets values of one section."""
    return lambda config: config.model_copy(
        update={section: replace(getattr(config, section), **values)}
    )


def _most_together(estimate: Estimate, gpu: Gpu) -> int:
    """Tokens that transformers can write together: those of 2**n answers, the most that fit."""
    tokens, most = estimate.longest, estimate.longest * estimate.config.train.rollout_batch
    while 2 * tokens <= most:
        change = _in("memory", generation_tokens=2 * tokens)
        if not fits(replace(estimate, config=change(estimate.config)), gpu):
            break
        tokens *= 2
    return tokens
