"""Base and teacher of a tiny world, trained once and kept in the user's cache directory.

The teacher is the base sharpened by reinforcement learning in the one loop.
"""

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from effopd.data.problem import Task
from effopd.data.world import TinyWorld, make_model, make_tokenizer, teacher_tokenizer
from effopd.demo.pretrain import (
    CHECK_PROBLEMS,
    Report,
    accuracy,
    exchange_ends_,
    pretrain_base,
    train_demonstrated,
    world_writer,
)
from effopd.errors import CheckpointError
from effopd.methods import PolicyGradient, Resources
from effopd.models.checkpoints import verify_checkpoint, write_checkpoint
from effopd.models.loading import load_model
from effopd.models.policy import Policy
from effopd.training.collect import Collector, rewards_differ
from effopd.training.settings import LoopSettings, OptimizerSettings, TrainSettings
from effopd.training.update import Updater

RECIPE_VERSION = 2
"""Raised whenever the same settings would train different models."""
TEACHER_CHECK_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class WorldModels:
    """Directories of the two models, readable by `from_pretrained`."""

    base: Path
    teacher: Path


def cache_directory() -> Path:
    """`$EFFOPD_CACHE`, else `$XDG_CACHE_HOME/effopd`, else `~/.cache/effopd`."""
    if "EFFOPD_CACHE" in os.environ:
        return Path(os.environ["EFFOPD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "effopd"


def world_models(
    world: TinyWorld,
    report: Report,
    *,
    cache: Path | None = None,
    teacher: bool = True,
    device: str = "cpu",
) -> WorldModels:
    """Takes base and teacher from the cache, training what is missing or damaged.

    Without `teacher` only the base is looked at. What differs by `device` is the rounding.
    """
    directory = (cache or cache_directory()) / f"tiny-world-{content_key(world)}"
    name = "teacher-calculator" if world.calculator else "teacher"
    models = WorldModels(base=directory / "base", teacher=directory / name)
    task, alone = world.load(), replace(world, calculator=False)

    def write(model: Any, tokenizer: Any, to: Path) -> None:
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)

    ensure(
        models.base,
        report,
        lambda to: write(pretrain_base(alone, task, report, device), make_tokenizer(world), to),
    )
    if not teacher:
        return models
    if world.teacher_differs_in == "tokens":  # it is the teacher of the world without a difference
        plain = replace(world, teacher_differs_in="")
        same = world_models(plain, report, cache=cache, device=device)
        return replace(models, teacher=same.teacher)

    def taught() -> Any:
        if world.teacher_differs_in == "head":
            model = make_model(world, "granite").to(device)
            return train_demonstrated(world, task, model, report)
        base = load_model(str(models.base), device)
        if world.calculator:
            return train_demonstrated(world, task, base, report)
        found = train_teacher(world, task, base, report)
        return exchange_ends_(found, world) if world.teacher_differs_in == "end" else found

    ensure(models.teacher, report, lambda to: write(taught(), teacher_tokenizer(world), to))
    return models


def content_key(world: TinyWorld) -> str:
    """Hash of everything the base depends on; the calculator is the teacher's alone."""
    settings = dataclasses.asdict(world)
    for name in ("careful_prompt", "teacher_differs_in"):
        if not settings[name]:  # the models of before there was one are the same
            del settings[name]
    del settings["calculator"]
    content = {"recipe": RECIPE_VERSION, "torch": torch.__version__, "world": settings}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def ensure(directory: Path, report: Report, make: Callable[[Path], None]) -> None:
    """Makes and stores a model, unless an undamaged one is there."""
    if directory.exists():
        try:
            verify_checkpoint(directory)
        except CheckpointError as error:
            report(f"making it again, the cached model is damaged: {error}")
        else:
            return
    write_checkpoint(directory, make)


def train_teacher(world: TinyWorld, task: Task, base: Any, report: Report) -> Any:
    """Sharpens a copy of the base until it samples right answers.

    Group advantages over a token mean, groups whose rewards are all equal left out.
    """
    settings = LoopSettings(
        seed=world.seed,
        train=TrainSettings(
            steps=world.teacher_steps,
            prompts_per_step=48,
            responses_per_prompt=8,
            micro_batch_tokens=32_768,
        ),
        optimizer=OptimizerSettings(lr=world.teacher_lr),
    )
    model = copy.deepcopy(base)
    writer = world_writer(world, model)
    policy = Policy(model, writer.tokenizer)
    resources = Resources(student=policy, longest=writer.sampling.max_new_tokens)
    learner = PolicyGradient().learner(resources)
    collector = Collector(
        writer=writer, problems=task.train, settings=settings.train, seed=world.seed,
        verifier=world.verifier, informative=rewards_differ,
    )  # fmt: skip
    updater = Updater(policy, learner, settings)
    checks = list(task.test[:CHECK_PROBLEMS])
    for step in range(1, world.teacher_steps + 1):
        batch = collector.collect(step)
        learner.prepare(batch)
        updater.set_lr_(step)
        updater.update_(batch.rollouts, step)
        if step % TEACHER_CHECK_EVERY == 0:
            right = accuracy(world, model, checks, temperature=1.0)
            report(f"teacher: step {step}, sampled accuracy {right:.2f}")
            if right >= world.teacher_accuracy:
                break
    return model.eval()
