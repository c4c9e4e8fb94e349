"""Settings with the devices that this machine has."""

from typing import TypeVar

from effopd.config import EvalConfig, RunConfig
from effopd.models.loading import real_device

Config = TypeVar("Config", RunConfig, EvalConfig)


def placed(config: Config) -> Config:
    """The same settings with real devices in the place of "auto", as they are recorded.

    Raises:
        ConfigError: A device is unknown or not there.
    """
    update = {"device": real_device(config.device)}
    teacher = getattr(config, "teacher_device", None)
    if teacher is not None:
        update["teacher_device"] = real_device(teacher)
    return config.model_copy(update=update)
