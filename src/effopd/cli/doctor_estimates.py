"""Memory and time of a run on a card, from its settings and the sizes of its models."""

from collections.abc import Iterator
from dataclasses import dataclass

from effopd.config import RunConfig
from effopd.models.footprint import (
    Bytes,
    Gpu,
    activation_bytes,
    cache_bytes,
    forward_seconds,
    search_bytes,
    tile_bytes,
    trained_bytes,
    writing_seconds,
)
from effopd.models.loading import ModelSettings
from effopd.models.shapes import ModelShape

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PER_TRAINED_TOKEN = {False: 3, True: 4}
"""Forward passes that a trained token costs, without and with recomputed activations."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a step: its peak, and how long it takes; None where the card is not known."""

    name: str
    memory: Bytes
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The student and everything that scores, with their settings."""

    student: ModelShape
    student_settings: ModelSettings
    scoring: tuple[tuple[ModelShape, ModelSettings], ...] = ()


def phases(config: RunConfig, sizes: Sizes, gpu: Gpu | None) -> Iterator[Phase]:
    """The phases of a step in their order, each with what is on the device throughout.

    Answers are taken to be as long as they may be, and prompts too: the most that can happen.
    """
    kept = _kept(config, sizes)
    timed = gpu if gpu is not None and gpu.flops and gpu.bandwidth else None
    shape, element = sizes.student, _element(sizes.student_settings)
    answers = config.train.prompts_per_step * config.train.responses_per_prompt
    longest = config.prompt.max_tokens + config.sampling.max_new_tokens
    width = _width(config, answers, longest)
    tokens = answers * longest
    logits = 4 * width * shape.vocabulary
    cache = cache_bytes(shape, width * longest, element) if config.rollouts.engine == "hf" else 0
    writing = (
        writing_seconds(shape, answers, config.sampling.max_new_tokens, width, element, timed)
        if timed
        else None
    )
    yield Phase(name="writing", memory=kept + Bytes(device=cache + logits), seconds=writing)
    if sizes.scoring:
        portion = max(longest, config.memory.scoring_tokens)
        there = max(_scored(each, own, portion, config) for each, own in sizes.scoring)
        seconds = (
            sum(forward_seconds(each, tokens, timed, longest) for each, _ in sizes.scoring)
            if timed
            else None
        )
        yield Phase(name="scoring", memory=kept + Bytes(device=there), seconds=seconds)
    yield _update(config, sizes, kept, tokens, longest, timed)
    if config.searches:
        prompts = config.validation.prompts
        trial = Bytes(device=_scored(shape, sizes.student_settings, longest, config))
        seconds = forward_seconds(shape, prompts * longest, timed, longest) if timed else None
        if timed and config.validation.type != "cached_kl":
            seconds = writing_seconds(
                shape, prompts, config.sampling.max_new_tokens, width, element, timed
            )
        yield Phase(name="one trial of the search", memory=kept + trial, seconds=seconds)


def checkpoint_bytes(config: RunConfig, sizes: Sizes) -> int:
    """One checkpoint: weights, masters, moments, and what the search remembers."""
    shape, settings = sizes.student, sizes.student_settings
    trained, element = _trained(shape, settings)
    precise = 4 if config.memory.master_weights else element
    masters = 4 * trained if config.memory.master_weights else 0
    remembered = 2 * precise * trained if config.searches else 0
    return trained * element + masters + 2 * precise * trained + remembered


def _update(
    config: RunConfig, sizes: Sizes, kept: Bytes, tokens: int, longest: int, gpu: Gpu | None
) -> Phase:
    shape, settings = sizes.student, sizes.student_settings
    portion = max(longest, config.train.micro_batch_tokens)
    checkpointing = settings.gradient_checkpointing
    there = activation_bytes(shape, portion, _element(settings), checkpointing=checkpointing)
    there += tile_bytes(shape, portion)
    passes = _PER_TRAINED_TOKEN[checkpointing] * config.train.epochs
    seconds = passes * forward_seconds(shape, tokens, gpu, longest) if gpu else None
    return Phase(name="update", memory=kept + Bytes(device=there), seconds=seconds)


def _kept(config: RunConfig, sizes: Sizes) -> Bytes:
    """What stays from phase to phase."""
    memory, settings = config.memory, sizes.student_settings
    trained, element = _trained(sizes.student, settings)
    kept = trained_bytes(
        trained, element, masters=memory.master_weights, offload=memory.offload_optimizer
    )
    if settings.lora is not None:
        kept += Bytes(device=sizes.student.parameters * _element(settings))
    if config.searches:
        on_device = memory.anchor_device == "student"
        kept += search_bytes(trained, element, masters=memory.master_weights, on_device=on_device)
    for shape, own in sizes.scoring:
        weights = shape.parameters * _element(own)
        kept += Bytes(host=weights) if memory.teacher_offload else Bytes(device=weights)
    return kept


def _trained(shape: ModelShape, settings: ModelSettings) -> tuple[int, int]:
    """How many numbers are trained, and the bytes of one of them."""
    if settings.lora is None:
        return shape.parameters, _element(settings)
    return shape.adapter_parameters(settings.lora.r, settings.lora.target_modules), 4


def _scored(shape: ModelShape, settings: ModelSettings, tokens: int, config: RunConfig) -> int:
    """A pass without gradient: one layer's tensors, tiles, and weights that come for it."""
    element = _element(settings)
    there = activation_bytes(shape, tokens, element, checkpointing=True) // max(1, shape.layers)
    came = shape.parameters * element if config.memory.teacher_offload else 0
    return there + tile_bytes(shape, tokens) + came


def _width(config: RunConfig, answers: int, longest: int) -> int:
    """Sequences that are written together."""
    width = min(config.train.rollout_batch, answers)
    if config.memory.generation_tokens:
        width = min(width, max(1, config.memory.generation_tokens // longest))
    return width


def _element(settings: ModelSettings) -> int:
    return _ELEMENT_BYTES[settings.dtype]
