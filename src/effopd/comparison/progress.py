"""Progress of a comparison: one live line in a terminal, a plain line per run elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from effopd.comparison.pool import Outcome
from effopd.records import display_text


class CompareProgress:
    """Counts runs and estimates the time left from those that this command trained.

    Args:
        console: Where lines go.
        total: Runs of the plan.
        left: Those that were not finished before.
        work: Estimated work of these, in any unit.
        bar: Live display; None outside a terminal.
    """

    def __init__(
        self, console: Console, total: int, left: int, work: float, bar: Progress | None
    ) -> None:
        self._console, self._bar, self._total = console, bar, total
        self._done, self._work, self._work_done = total - left, work, 0.0
        self._started = time.monotonic()
        self._task = bar.add_task("", total=total, completed=self._done, clock="") if bar else None

    def begin(self) -> None:
        """Starts the clock again: what came before says nothing about the runs."""
        self._started = time.monotonic()

    def say(self, name: str, text: str) -> None:
        """Prints one line about a run or a world."""
        line = display_text(f"{name}: {text}")
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def count(self, outcome: Outcome, work: float) -> None:
        """Takes note of a run that ended; `work` is its share of the total."""
        self._work_done += work
        if outcome.ending == "finished":
            self._done += 1
        if self._bar is None or outcome.ending == "failed":
            what = f"failed: {outcome.error}" if outcome.error else outcome.ending
            place = f"[{self._done}/{self._total}] {outcome.job.name}"
            self.say(place, f"{what}  {self.clock()}")
        self.refresh()

    def refresh(self) -> None:
        """Moves the live line on."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, clock=self.clock())

    def clock(self) -> str:
        """Time since the start and, once a run has ended, time left."""
        elapsed = time.monotonic() - self._started
        text = f"{duration(elapsed)} elapsed"
        if not self._work_done:
            return text
        left = elapsed / self._work_done * (self._work - self._work_done)
        return f"{text}, about {duration(left)} left"


def duration(seconds: float) -> str:
    """A time such as `0:07`, `12:30` or `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def compare_progress(total: int, left: int, work: float) -> Iterator[CompareProgress]:
    """Progress of a comparison on standard output."""
    console = Console()
    if not console.is_terminal:
        yield CompareProgress(console, total, left, work, None)
        return
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[clock]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        yield CompareProgress(console, total, left, work, bar)
