"""Base and teacher of a tiny world, trained once and kept in the user's cache directory."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from effopd.data.world import TinyWorld, make_tokenizer
from effopd.demo.pretrain import Report, pretrain_base
from effopd.demo.teacher import train_teacher
from effopd.errors import CheckpointError
from effopd.models.checkpoints import verify_checkpoint, write_checkpoint
from effopd.models.loading import ModelSettings, load_model

RECIPE_VERSION = 2
"""Raised whenever the same settings would train different models."""


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


def world_models(world: TinyWorld, report: Report, *, cache: Path | None = None) -> WorldModels:
    """Takes base and teacher from the cache, training what is missing or damaged."""
    directory = (cache or cache_directory()) / f"tiny-world-{content_key(world)}"
    models = WorldModels(base=directory / "base", teacher=directory / "teacher")
    task = world.load()
    _ensure(models.base, world, report, lambda: pretrain_base(world, task, report))
    _ensure(
        models.teacher,
        world,
        report,
        lambda: train_teacher(world, task, _load(models.base), report),
    )
    return models


def content_key(world: TinyWorld) -> str:
    """Hash of everything the models depend on."""
    content = {
        "recipe": RECIPE_VERSION,
        "torch": torch.__version__,
        "world": dataclasses.asdict(world),
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _load(directory: Path) -> Any:
    return load_model(ModelSettings(path=str(directory)))


def _ensure(directory: Path, world: TinyWorld, report: Report, train: Callable[[], Any]) -> None:
    """Trains and stores a model unless an undamaged one is there."""
    if directory.exists():
        try:
            verify_checkpoint(directory)
        except CheckpointError as error:
            report(f"training again, the cached model is damaged: {error}")
        else:
            return
    model = train()

    def write(target: Path) -> None:
        model.save_pretrained(target)
        make_tokenizer(world).save_pretrained(target)

    write_checkpoint(directory, write)
