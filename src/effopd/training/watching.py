"""The monitor in a run: its looks, their records and alarms."""

from collections.abc import Mapping

from torch import Tensor

from effopd.analysis.monitor import Monitor, monitored_matrices
from effopd.errors import NonFiniteError
from effopd.models.policy import Policy
from effopd.training.observer import Observer
from effopd.training.run_directory import RunDirectory
from effopd.training.settings import LoopSettings


class Watch:
    """Looks at the student when a look is due; does nothing where the monitor is off.

    Args:
        student: The live student; its weights as they are now are the base.
        run: Where records go.
        settings: When to look, at what.
        observer: Told of alarms.
    """

    def __init__(
        self, student: Policy, run: RunDirectory, settings: LoopSettings, observer: Observer
    ) -> None:
        self._run, self._observer = run, observer
        self._monitor: Monitor | None = None
        if settings.monitor.every:
            self._monitor = Monitor(
                monitored_matrices(student.model),
                settings.monitor,
                momentum=settings.optimizer.betas[0],
                updates_per_step=settings.train.updates_per_step * settings.train.epochs,
            )

    @property
    def foresight(self) -> bool | None:
        """Whether foresight holds; None when that is not known."""
        return None if self._monitor is None else self._monitor.foresight

    def look(self, step: int) -> None:
        """Looks and records after the updates of a step, before a search moves the weights."""
        if self._monitor is None:
            return
        try:
            look = self._monitor.look_if_due(step)
        except NonFiniteError as error:
            self._observer.on_message(f"step {step}: look skipped, {error}")
            return
        if look is not None:
            self._run.write("monitor", {"step": step, **look.row()})
            for alarm in look.alarms:
                self._observer.on_message(f"step {step}: {alarm}")

    def jump_(self) -> None:
        """Takes note that a search moved the weights."""
        if self._monitor is not None:
            self._monitor.jump_()

    def state(self) -> dict[str, Tensor]:
        """The monitor's; empty where it is off."""
        return {} if self._monitor is None else self._monitor.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        if self._monitor is not None:
            self._monitor.load_state(tensors)
