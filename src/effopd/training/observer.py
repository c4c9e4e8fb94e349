"""Who is told while a run goes on."""

from collections.abc import Callable
from dataclasses import dataclass

from effopd.search.scales import Trial
from effopd.training.rows import Row


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Called while the run goes on; for progress display only.

    Attributes:
        on_step: Metrics and timing row of each finished step.
        on_evaluation: Row of each evaluation.
        on_trial: Step, index and trial of a search.
        on_message: Plain sentences: resumes, fallbacks, alarms.
    """

    on_step: Callable[[Row, Row], None] = lambda metrics, timing: None
    on_evaluation: Callable[[Row], None] = lambda row: None
    on_trial: Callable[[int, int, Trial], None] = lambda step, index, trial: None
    on_message: Callable[[str], None] = lambda text: None
