"""The slope rate as a callback of Hugging Face's Trainer and of all that are built on it."""

from typing import Any

from torch.optim import Optimizer
from transformers import TrainerCallback

from effopd.search.slope import SlopeRate, SlopeSettings


class SlopeCallback(TrainerCallback):
    """Multiplies the scheduled rate of each update by what the slopes say.

        trainer = DistillationTrainer(...)  # AdamW; learning_rate is where it starts
        trainer.add_callback(SlopeCallback())

    Works in TRL's trainers and in others that call the events of `transformers.Trainer` on AdamW,
    with DDP and FSDP2. What it remembers is in the optimizer's state, so that a checkpoint of the
    trainer has it. The factor is `factor`, and `slope_factor` in `trainer.state.log_history`.

    Where the trainer clips gradients the slopes are of clipped ones: they are comparable as long as
    clipping takes about the same from one update to the next. `max_grad_norm=0` avoids that.

    Args:
        settings: How fast to follow.

    Raises:
        ConfigError: At the begin of training, an optimizer that is not AdamW.
    """

    def __init__(self, settings: SlopeSettings | None = None) -> None:
        self._settings = settings
        self._rate: SlopeRate | None = None

    @property
    def factor(self) -> float:
        """What the scheduled rate is multiplied by; 1 before training."""
        return 1.0 if self._rate is None else self._rate.factor

    def _of(self, optimizer: Any) -> SlopeRate:
        """The rate of the trainer's optimizer, out of accelerate's wrapper."""
        inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
        if self._rate is None or not self._rate.is_of(inner):
            self._rate = SlopeRate(inner, self._settings)
        return self._rate

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuses other optimizers before anything is trained."""
        self._of(kwargs["optimizer"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reads the slopes off the gradients and sets the rate of this update."""
        self._of(kwargs["optimizer"]).before_step_()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the rate back to its schedule."""
        self._of(kwargs["optimizer"]).after_step_()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds the factor to the trainer's history."""
        if state.log_history:
            state.log_history[-1]["slope_factor"] = self.factor
