"""Progress of a run: a live bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from effopd.records import display_text
from effopd.search.scales import Trial
from effopd.training.loop import Observer
from effopd.training.rows import Row


class ProgressLines:
    """Turns the loop's events into lines, and moves a bar if there is one.

    Args:
        console: Where lines go.
        name: Label of the run.
        steps: Last step.
        bar: Live progress display; None outside a terminal.
    """

    def __init__(self, console: Console, name: str, steps: int, bar: Progress | None) -> None:
        self._console, self._steps, self._bar = console, steps, bar
        self._name = display_text(name)
        self._task = bar.add_task(self._name, total=steps, status="") if bar else None
        self._started, self._first_step = 0.0, 0
        self._trials = ""

    @property
    def observer(self) -> Observer:
        """The callbacks for the loop."""
        return Observer(
            on_step=self._on_step,
            on_evaluation=self._on_evaluation,
            on_trial=self._on_trial,
            on_message=self._print,
        )

    def _print(self, text: str) -> None:
        line = f"{self._name}: {display_text(text)}"
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _on_step(self, metrics: Row, timing: Row) -> None:
        step = metrics["step"]
        if not self._first_step:  # loading and the first evaluation say nothing about the rest
            self._first_step, self._started = step, time.monotonic() - step_seconds(timing)
        line = step_line(metrics, timing, self._steps, self._time_left_s(step))
        if self._trials:
            line += f"  search {self._trials} -> {metrics['accepted_scale'] or 1:g}"
            self._trials = ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, status=line)
        if self._bar is None or "search" in line:
            self._print(line)

    def _time_left_s(self, step: int) -> float:
        done = step - self._first_step + 1
        return (time.monotonic() - self._started) / done * (self._steps - step)

    def _on_evaluation(self, row: Row) -> None:
        parts = [f"step {row['step']:>3}", f"evaluation of the {row['model']}"]
        if row["accuracy"] is not None:
            parts.append(f"accuracy {row['accuracy']:.3f}")
        if row["reverse_kl"] is not None:
            parts.append(f"KL to teacher {row['reverse_kl']:.4f} nats")
        self._print("  ".join(parts))

    def _on_trial(self, step: int, index: int, trial: Trial) -> None:
        score = "unscored" if trial.score is None else f"{trial.score.value:.4f}"
        mark = {True: "+", False: "-", None: ""}[trial.accepted]
        self._trials += f"{' ' if self._trials else ''}{trial.scale:g}:{score}{mark}"


def step_line(metrics: Row, timing: Row, steps: int, left_s: float) -> str:
    """One step in one line."""
    numbers = [
        ("loss", "loss", ".4f"),
        ("KL", "reverse_kl", ".4f"),
        ("length", "mean_length", ".1f"),
    ]
    shown = [f"{name} {metrics[key]:{f}}" for name, key, f in numbers if metrics[key] is not None]
    return "  ".join(
        [
            f"step {metrics['step']:>3}/{steps}",
            *shown,
            f"{metrics['sampled_tokens'] / max(timing['elapsed_s'], 1e-9):.0f} tokens/s",
            f"{step_seconds(timing):.2f} s",
            f"{left_s:.0f} s left",
        ]
    )


def step_seconds(timing: Row) -> float:
    """Wall time of one step, evaluation and checkpoint excluded."""
    return sum(v for k, v in timing.items() if k.endswith("_s") and k != "elapsed_s")


@contextmanager
def progress_lines(name: str, steps: int) -> Iterator[ProgressLines]:
    """Progress of one run on standard output."""
    console = Console()
    if not console.is_terminal:
        yield ProgressLines(console, name, steps, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        yield ProgressLines(console, name, steps, bar)
