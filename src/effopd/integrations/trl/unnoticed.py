"""Generation and scoring in the middle of a run that leave no trace in the trainer."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

_ATTRIBUTES = (
    "_buffered_inputs",
    "_current_train_step_time",
    "_logs",
    "_metrics",
    "_pending_extra_logs",
    "_pending_metrics",
    "_step",
    "_total_train_tokens",
    "num_generations_eval",
)
"""What TRL's trainers count, log and buffer; not every trainer has all of them."""
_SHARED = {"_buffered_inputs"}
"""Replaced as a whole, never changed in place."""


@contextmanager
def unnoticed(trainer: Any) -> Iterator[None]:
    """Puts back everything but torch's random generators, which the search puts back itself.

    Metrics, token counts, buffered completions, control flags, state of the run, Python's and
    NumPy's generators, and whether each module trains. Inside, modules are in evaluation mode and
    nothing is reported to a tracker. An inference engine is told to take the weights again.

    Args:
        trainer: TRL's trainer.

    Yields:
        Nothing.
    """
    own = vars(trainer)
    attributes = {
        name: own[name] if name in _SHARED else copy.deepcopy(own[name])
        for name in _ATTRIBUTES
        if name in own
    }
    state, control = copy.copy(vars(trainer.state)), copy.copy(vars(trainer.control))
    history = list(trainer.state.log_history)
    reports, generators = trainer.args.report_to, (random.getstate(), np.random.get_state())
    modes = {module: module.training for module in _modules(trainer)}
    trainer.args.report_to = []
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        trainer.args.report_to = reports
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        vars(trainer.control).update(control)
        vars(trainer.state).update(state | {"log_history": history})
        for name, value in attributes.items():
            setattr(trainer, name, value)


def _modules(trainer: Any) -> Iterator[nn.Module]:
    """Every module of the student, its wrappers included, and of the teacher."""
    for model in (trainer.model, trainer.model_wrapped, vars(trainer).get("teacher_model")):
        if model is not None:
            yield from model.modules()
