"""The slope rate in Hugging Face's Trainer: its rates, its schedule, and a run that is resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.reference.slope_twin import followed
from tests.support.trl import Killed, distillation, weights
from torch import Tensor
from transformers import TrainerCallback

from effopd.errors import ConfigError
from effopd.integrations.slope import SlopeCallback


class Seen(TrainerCallback):
    """Notes gradients and rates of all updates, as they reach the optimizer."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.rates: list[float] = []
        self.scheduled: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        flat = [p.grad.flatten() for group in groups for p in group["params"]]
        self.gradients.append(torch.cat(flat).clone())
        self.rates.append(groups[0]["lr"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.scheduled.append(kwargs["optimizer"].param_groups[0]["lr"])


def test_rates_are_those_of_the_twin_and_the_schedule_comes_back(tmp_path: Path) -> None:
    trainer = distillation(
        tmp_path, max_steps=6, max_grad_norm=0.0, lr_scheduler_type="linear", weight_decay=0.0
    )
    callback, seen = SlopeCallback(), Seen()
    trainer.add_callback(callback)
    trainer.add_callback(seen)
    trainer.train()
    assert seen.scheduled == pytest.approx([3e-3 * (1 - i / 6) for i in range(6)])
    rates, _ = followed(
        torch.zeros_like(seen.gradients[0]), seen.gradients, seen.scheduled, (0.9, 0.999)
    )
    assert seen.rates == pytest.approx(rates, rel=1e-3)
    assert seen.rates != pytest.approx(seen.scheduled)
    logged = [row["slope_factor"] for row in trainer.state.log_history if "slope_factor" in row]
    assert logged[-1] == callback.factor
    assert seen.rates[-1] == pytest.approx(seen.scheduled[-1] * callback.factor)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def begun(output: Path, **changes: Any) -> Any:
        trainer = distillation(output, max_steps=4, save_strategy="steps", save_steps=2, **changes)
        trainer.add_callback(SlopeCallback())
        return trainer

    whole = begun(tmp_path / "whole")
    whole.train()
    cut = begun(tmp_path / "cut")
    cut.add_callback(Killed(3))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = begun(tmp_path / "cut")
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    expected, found = weights(whole), weights(again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_optimizers_are_refused_before_training(tmp_path: Path) -> None:
    trainer = distillation(tmp_path, optim="sgd")
    trainer.add_callback(SlopeCallback())
    with pytest.raises(ConfigError, match="got SGD"):
        trainer.train()
