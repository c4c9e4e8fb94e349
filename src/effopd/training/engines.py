"""Servers, engines and scoring models of a run, made from its settings."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effopd.data.smollm2 import SmolLM2
from effopd.errors import ConfigError
from effopd.evaluation.kept_states import KeptStates, teacher_key
from effopd.evaluation.readings import Reading
from effopd.evaluation.routing import Teacher
from effopd.evaluation.served_teacher import ServedTeacher
from effopd.models.architecture import Attention
from effopd.models.directory import ADAPTER_CONFIG
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.lora import without_adapters
from effopd.models.policy import Offloaded, Policy
from effopd.models.tokenizers import default_ends
from effopd.rollouts.engine import Engine
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.server import ServerEngine, WeightReload
from effopd.rollouts.vllm import VLLMEngine, open_vllm
from effopd.servers.client import Client
from effopd.servers.handshake import Identity, api_of, verify_server
from effopd.training.config import Config
from effopd.training.teachers import (
    MOVES_WITH_STUDENT,
    SelfTeacher,
    aligned_reading,
    frozen,
    frozen_copy,
)


def served_teacher(
    config: Config, student: Policy, report: Callable[[str], None]
) -> ServedTeacher | None:
    """The teacher behind a server, checked against the student; None where there is none.

    Head rows of the student that no token uses are trimmed, as with a local teacher.
    """
    if config.teacher_server is None:
        return None
    student.vocabulary_size = min(student.vocabulary_size, len(student.tokenizer))
    tokenizer, size = student.tokenizer, student.vocabulary_size
    if config.alignment is not None and config.alignment.tokenizer:
        tokenizer = load_tokenizer(ModelSettings(path=config.alignment.tokenizer))
        size = len(tokenizer)
    teacher = ServedTeacher(
        config.teacher_server,
        tokenizer,
        vocabulary_size=size,
        longest=_longest(config),
        seed=config.seed,
        device=student.device,
    )
    report(f"teacher {teacher}: {_described(teacher.identity)}")
    return teacher


def served_reading(
    config: Config, student: Policy, served: ServedTeacher | None
) -> dict[str, Reading]:
    """How the teacher behind a server reads, where it has another tokenizer than the student."""
    if served is None or served.tokenizer.get_vocab() == student.tokenizer.get_vocab():
        return {}
    assert config.alignment is not None  # the tokenizer is from there
    ends = default_ends(served.tokenizer)
    return {"": aligned_reading(student, served.tokenizer, ends, "the teacher", config.alignment)}


def student_engine(
    config: Config, student: Policy, start_path: str, report: Callable[[str], None]
) -> Engine | None:
    """What samples for the student, with its weights; None where its live model does.

    The student's vocabulary is aligned with the teachers'; `start_path` is the directory or
    repository of the model it started from.
    """
    settings = config.rollouts
    if settings.engine == "hf":
        return None
    size = student.vocabulary_size
    own = max(student.tokenizer.get_vocab().values()) + 1
    if own > size:
        raise ConfigError(
            f"rollouts.engine = {settings.engine!r} may write any of the student's {own} tokens, "
            f"of which the teacher knows {size}: set rollouts.engine = 'hf', which writes those "
            "alone"
        )
    engine: VLLMEngine | ServerEngine
    if settings.engine == "vllm":
        engine = open_vllm(
            settings.vllm,
            start_path,
            student.model,
            student.tokenizer,
            vocabulary_size=size,
            longest=_longest(config),
        )
    else:
        assert settings.server is not None  # RolloutSettings checked it
        client, api = Client(settings.server, config.seed), api_of(settings.server)
        usable = min(size, len(student.tokenizer))
        identity = verify_server(client, api, student.tokenizer, usable, _longest(config))
        report(f"engine {client}: {_described(identity)}")
        directory = Path(settings.weights_directory)
        reload = WeightReload(student.model, client, api, directory, vocabulary_size=usable)
        engine = ServerEngine(
            client,
            api,
            student.tokenizer,
            vocabulary_size=size,
            ends=student.end_ids,
            reload=reload,
        )
    engine.sync_weights()
    return engine


def engine_of(config: Config, policy: Teacher, ends: tuple[int, ...]) -> Engine:
    """What samples for a policy: its server, or its live model. `ends` are the student's."""
    size = policy.vocabulary_size
    if isinstance(policy, ServedTeacher):
        if config.alignment is not None:
            ends = default_ends(policy.tokenizer)
        return ServerEngine(
            policy.client, policy.api, policy.tokenizer, vocabulary_size=size, ends=ends
        )
    return HFEngine(
        policy.model,
        policy.tokenizer,
        batch_size=config.train.rollout_batch,
        batch_tokens=config.memory.generation_tokens or None,
        during=policy.during,
        vocabulary_size=size,
    )


def _longest(config: Config) -> int:
    return config.prompt.max_tokens + config.sampling.max_new_tokens


def _described(identity: Identity) -> str:
    return (
        f"context {identity.context} tokens; scores of one text twice differ by "
        f"{identity.repeat_nats:.2g} nats a token, of its own text as a prompt by "
        f"{identity.self_score_nats:.2g}"
    )


# Models that score -------------------------------------------------------------------------------


def policy_from(settings: ModelSettings, device: str, report: Callable[[str], None]) -> Policy:
    """A model and its tokenizer."""
    return Policy(load_model(settings, device, report), load_tokenizer(settings))


def scoring_policy(
    config: Config, settings: ModelSettings, report: Callable[[str], None]
) -> Policy:
    """A model that only scores: on its device, or there only while it does."""
    device = config.teacher_device or config.device
    if not config.memory.teacher_offload:
        return frozen(policy_from(settings, device, report))
    return _offloaded(load_model(settings, report=report), load_tokenizer(settings), device)


def _offloaded(model: Any, tokenizer: Any, device: str, size: int | None = None) -> Policy:
    """A policy whose model is on the device while it scores, and on the host otherwise."""
    model.requires_grad_(False)
    during = Offloaded(model, device)
    return Policy(model, tokenizer, vocabulary_size=size, during=during)


def reference_of(config: Config, student: Policy, report: Callable[[str], None]) -> Policy | None:
    """What the objective moves away from or holds on to; the untrained student by default."""
    if not config.objective.needs_reference:
        return None
    if config.reference is not None:
        return scoring_policy(config, config.reference, report)
    return untrained(config, student)


def untrained(config: Config, student: Policy) -> Policy:
    """The student as it is before the first step: with its adapters off, or a copy."""
    lora = config.student.lora if config.student is not None else None
    size = student.vocabulary_size
    if lora is not None and lora.adapter is None:
        during = partial(without_adapters, student.model)
        return Policy(student.model, student.tokenizer, vocabulary_size=size, during=during)
    if config.memory.teacher_offload:
        copied = copy.deepcopy(student.model).cpu()
        return _offloaded(copied, student.tokenizer, config.teacher_device or config.device, size)
    return frozen_copy(student)


def own_teacher(
    config: Config, own: SelfTeacher, student: Policy, report: Callable[[str], None]
) -> Policy:
    """The student itself, with a warning, or as it is before the first step."""
    if own.weights == "base":
        return untrained(config, student)
    report(f"warning: {MOVES_WITH_STUDENT}")
    return student


def kept_states(config: Config, student: Policy, report: Callable[[str], None]) -> KeptStates:
    """Room for the hidden states of the answers at hand."""
    memory = config.memory
    device = "cpu" if memory.teacher_states_device == "cpu" else str(student.device)
    moves = config.self_teacher is not None and config.self_teacher.weights == "current"
    moving = [teacher_key("")] if moves else []
    return KeptStates(memory.teacher_states_gb, device=device, moving=moving, report=report)


# Models that were given -------------------------------------------------------------------------


def world_model(config: Config, directory: Path) -> ModelSettings:
    """A model of the recipe's world, in the precision that the world asks for."""
    if not isinstance(config.task, SmolLM2):
        return ModelSettings(path=str(directory))
    # Of 50 tokens sdpa's backward pass takes a CPU a fifth of an update more.
    attention: Attention = "eager" if config.device == "cpu" else "auto"
    return ModelSettings(path=str(directory), dtype=config.task.dtype, attention=attention)


def started_from(config: Config, directory: Path) -> Config:
    """The same settings with another model in the place of the student, loaded in the same way.

    The directory may be a checkpoint of a student with adapters, which holds those alone.
    """
    original = config.student or world_model(config, directory)
    if original.lora is not None and (directory / ADAPTER_CONFIG).is_file():
        lora = replace(original.lora, adapter=str(directory))
        student = replace(original, lora=lora)
    else:
        student = replace(original, path=str(directory), revision=None, lora=None)
    return config.model_copy(update={"student": student})


def policy_of(source: Any) -> Policy:
    """A policy of a model object, or of a pair of model and tokenizer."""
    model, tokenizer = model_and_tokenizer(source)
    return Policy(model.eval(), tokenizer)


def model_and_tokenizer(source: Any) -> tuple[Any, Any]:
    """The objects of a model, whose tokenizer may be that of its name, or of a pair."""
    model, tokenizer = source if isinstance(source, tuple) else (source, None)
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"a model must be a directory, a repository of the hub, a Hugging Face model or a pair "
            f"of model and tokenizer, got {type(source).__name__}"
        )
    if tokenizer is None:
        if not getattr(model, "name_or_path", ""):
            raise ConfigError("the model names no directory or repository: give (model, tokenizer)")
        tokenizer = load_tokenizer(ModelSettings(path=str(model.name_or_path)))
    return model, tokenizer
