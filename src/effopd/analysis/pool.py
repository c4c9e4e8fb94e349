"""Runs the units of an analysis in threads, writes each when it is finished, shows progress."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from effopd.analysis.study_directory import AnalysisDirectory, Key
from effopd.analysis.units import CheckpointSeries, Measurement, Unit
from effopd.errors import NonFiniteError
from effopd.records import Row

MOST_WORKERS = 4
"""Workers by default, where there are as many cores: each holds two tensors in memory."""
LINE_EVERY_S = 5.0
"""Time between two lines of progress outside a terminal."""


def default_workers() -> int:
    """One per core, `MOST_WORKERS` at most."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def measured(
    series: CheckpointSeries,
    name: str,
    measurement: Measurement,
    directory: AnalysisDirectory,
    workers: int,
) -> dict[Key, Row]:
    """The record of every unit; those that were finished before are read, not measured."""
    units = {unit.key(series): unit for unit in measurement.units(series)}
    records = directory.finished(name, units.keys())
    waiting = [unit for key, unit in units.items() if key not in records]
    if records and waiting:
        print(f"{name}: {len(records)} of {len(units)} were finished before")
    with directory.writer(name) as writer, _progress(name, len(waiting)) as show:
        for unit, record in _finishing(series, measurement, waiting, workers):
            place, checkpoint = key = unit.key(series)
            writer.write({"place": place, "checkpoint": checkpoint, **record})
            records[key] = record
            show.advance()
    return {key: records[key] for key in units}


def _finishing(
    series: CheckpointSeries, measurement: Measurement, units: Sequence[Unit], workers: int
) -> Iterator[tuple[Unit, Row]]:
    """Units as they finish; the first failure ends the command, and so does the caller."""
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0))

    def share_cores() -> None:
        torch.set_num_threads(max(1, min(threads, cores // workers)))

    pool = ThreadPoolExecutor(workers, initializer=share_cores)
    try:
        running = {pool.submit(measurement.measure, series, unit): unit for unit in units}
        for future in as_completed(running):
            unit = running.pop(future)
            yield unit, _result(future, unit.key(series)[1])
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _result(future: Future[Row], checkpoint: str | None) -> Row:
    """The record of a unit; what is not finite is said to be of its checkpoint."""
    try:
        return future.result()
    except NonFiniteError as error:
        if checkpoint is None:
            raise
        raise NonFiniteError(f"checkpoint {checkpoint}: {error}") from None


class _Progress:
    """A bar in a terminal; elsewhere a line now and then, and at the end."""

    def __init__(self, name: str, units: int, console: Console, bar: Progress | None) -> None:
        self._name, self._units, self._console, self._bar = name, units, console, bar
        self._task = bar.add_task(name, total=units) if bar else None
        self._done, self._started = 0, time.monotonic()
        self._told = self._started

    def advance(self) -> None:
        """One more unit is finished."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
            return
        now = time.monotonic()
        if self._done == self._units or now - self._told >= LINE_EVERY_S:
            self._told = now
            spent = now - self._started
            left = spent / self._done * (self._units - self._done)
            line = f"{self._name}: {self._done}/{self._units}  {spent:.0f} s  {left:.0f} s left"
            self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(name: str, units: int) -> Iterator[_Progress]:
    console = Console()
    if not console.is_terminal or not units:
        yield _Progress(name, units, console, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield _Progress(name, units, console, bar)
