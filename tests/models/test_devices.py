"""Which device a setting stands for."""

import pytest
import torch

from effopd.config.reading import read
from effopd.errors import ConfigError
from effopd.evaluation.config import EvalConfig
from effopd.models.devices import real_device
from effopd.training.config import make_config
from effopd.training.devices import placed

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def test_auto_is_the_default_and_becomes_the_device_that_is_there() -> None:
    assert real_device("auto") == HERE
    run, evaluation = make_config({}), read(EvalConfig, {})
    assert run.device == evaluation.device == "auto"
    assert placed(run).device == placed(evaluation).device == HERE
    assert placed(run).teacher_device is None


def test_the_teachers_device_may_be_auto_too() -> None:
    config = make_config({"device": "cpu", "teacher_device": "auto"})
    assert placed(config).teacher_device == HERE
    assert placed(placed(config)) == placed(config)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpu", "a device is 'auto', 'cpu'"),
        ("", "a device is 'auto', 'cpu'"),
        ("Auto", "a device is 'auto', 'cpu'"),
        ("meta", "a device is 'auto', 'cpu'"),
        ("mps", "it has no float64"),
        ("cuda:99", "(PyTorch finds no GPU here|the GPUs here are 0 to)"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^device '{name}' cannot be used: {reason}") as refusal:
        placed(make_config({"device": name}))
    assert len(str(refusal.value)) < 200
