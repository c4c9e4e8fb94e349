"""Who is told while a run goes on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

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


def joined(observers: Sequence[Observer]) -> Observer:
    """One observer that tells all of them, in order."""

    def tell(name: str) -> Callable[..., None]:
        def all_of(*event: object) -> None:
            for each in observers:
                getattr(each, name)(*event)

        return all_of

    return Observer(**{field.name: tell(field.name) for field in fields(Observer)})
