"""Progress of long work: a live bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from effopd.records import display_text


class Progress:
    """Counts finished units and estimates the time that the rest takes.

    Args:
        name: What is being done; begins every line.
        total: Units.
        done: Units that were finished before.
        work: Total of the `work` of the units to come; their number by default.
        every_s: Without a bar, seconds between two lines of `advance` without a text.
        say: Receives lines.
        bar: Live display, if there is one.
    """

    def __init__(
        self, name: str, total: int, *, done: int = 0, work: float | None = None,
        every_s: float = 5.0, say: Callable[[str], None], bar: Bar | None = None,
    ) -> None:  # fmt: skip
        self.name, self.total, self.done = display_text(name), total, done
        self._work, self._work_done = float(total - done if work is None else work), 0.0
        self._every_s, self._say, self._bar = every_s, say, bar
        self.is_live = bar is not None
        self._task = (
            bar.add_task(self.name, total=total, completed=done, status="") if bar else None
        )
        self.restart()

    def restart(self) -> None:
        """Starts the clock again: what came before says nothing about the units to come."""
        self._started = self._told = time.monotonic()

    def advance(self, text: str = "", *, work: float = 1.0, counts: int = 1) -> None:
        """Notes a unit that ended.

        Args:
            text: Printed with the count and the clock; "" for a line now and then, and at the end.
            work: Its share of the whole work.
            counts: Units that it finished; 0 for one that was given up.
        """
        self.done += counts
        self._work_done += work
        now = time.monotonic()
        is_due = now - self._told >= self._every_s or self.done == self.total
        if text or (self._bar is None and is_due):
            self._told = now
            between = f"  {text}" if text else ""
            self._say(f"{self.name}: {self.done}/{self.total}{between}  {self.clock()}")
        self.refresh()

    def refresh(self, status: str = "") -> None:
        """Redraws the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, status=status or self.clock())

    def left_s(self) -> float | None:
        """Estimated seconds until the end; None before the first unit."""
        if not self._work_done:
            return None
        elapsed = time.monotonic() - self._started
        return elapsed / self._work_done * max(0.0, self._work - self._work_done)

    def clock(self) -> str:
        """Time since the start and, once a unit has ended, time left."""
        elapsed, left = time.monotonic() - self._started, self.left_s()
        text = f"{duration(elapsed)} elapsed"
        return text if left is None else f"{text}, about {duration(left)} left"


class Display:
    """Where long work tells what it does; this one is silent. Subclass it to listen."""

    def say(self, text: str) -> None:
        """Receives one line about what goes on."""

    @contextmanager
    def progress(
        self, name: str, total: int, *, done: int = 0, work: float | None = None,
        every_s: float = 5.0,
    ) -> Iterator[Progress]:  # fmt: skip
        """Shows the progress of some units, see `Progress`, while the context lasts."""
        with nullcontext() if done == total else self.live_bar() as bar:
            yield Progress(
                name, total, done=done, work=work, every_s=every_s, say=self.say, bar=bar
            )

    def live_bar(self) -> AbstractContextManager[Bar | None]:
        """A live bar that `progress` draws on; None for lines alone."""
        return nullcontext()


SILENT = Display()


class Terminal(Display):
    """Prints lines on standard output, and shows a live bar where that is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def say(self, text: str) -> None:
        """Prints a line; what files and models brought along cannot command the terminal."""
        shown = "\n".join(map(display_text, text.split("\n")))
        self.console.print(shown, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def live_bar(self) -> AbstractContextManager[Bar | None]:
        """A bar in a terminal; lines elsewhere."""
        if not self.console.is_terminal:
            return nullcontext()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
        )
        return Bar(*columns, console=self.console)


def duration(seconds: float) -> str:
    """A time such as `0:07`, `12:30` or `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
