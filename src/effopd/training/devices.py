"""Settings with the devices that this machine has."""

from typing import TypeVar

from effopd.evaluation.config import EvalConfig
from effopd.models.loading import real_device
from effopd.training.config import Config

Settings = TypeVar("Settings", Config, EvalConfig)


def placed(config: Settings) -> Settings:
    """The same settings with real devices in the place of "auto", as they are recorded."""
    update = {"device": real_device(config.device)}
    teacher = getattr(config, "teacher_device", None)
    if teacher is not None:
        update["teacher_device"] = real_device(teacher)
    return config.model_copy(update=update)
