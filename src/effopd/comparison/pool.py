"""Runs of a comparison over a few processes that stay: each imports PyTorch once."""

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any, Literal, Self

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from effopd.errors import ConfigError, EffopdError
from effopd.training.signals import StopRequest

SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What keeps the libraries of a process from starting threads of their own."""

POLL_S = 0.2
"""How often the stop request and the processes' messages are looked at."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something for a process to do: a "world" makes models, a "cell" trains into `out`."""

    name: str
    kind: Literal["world", "cell"]
    settings: Mapping[str, Any]
    out: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; one that was "stopped" is saved and can go on."""

    job: Job
    ending: Literal["finished", "stopped", "failed"]
    error: str = ""


class Pool:
    """Processes that do jobs; `on_message` receives (name of the job, sentence)."""

    def __init__(self, size: int, *, on_message: Callable[[str, str], None]) -> None:
        if size < 1:
            raise ConfigError(f"at least 1 worker is needed, got {size}")
        context = multiprocessing.get_context("spawn")
        self._on_message, self._messages = on_message, context.SimpleQueue()
        self._stop = context.Event()
        self._pool = ProcessPool(
            size, context=context, initializer=_begin, initargs=(self._stop, self._messages)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._pool.close()
        else:
            self._pool.stop()
        self._pool.join()

    def run(
        self,
        jobs: Sequence[Job],
        stop: StopRequest,
        on_outcome: Callable[[Outcome], None],
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Does the jobs in order, as many at a time as there are processes."""
        running = {self._pool.schedule(_do, args=(job,)): job for job in jobs}
        while running:
            done, _ = wait(list(running), timeout=POLL_S, return_when="FIRST_COMPLETED")
            while not self._messages.empty():
                self._on_message(*self._messages.get())
            if stop and not self._stop.is_set():
                self._stop.set()
                for future, job in running.items():
                    if job.kind == "world" or not future.running():
                        future.cancel()
            for future in [each for each in running if each in done]:
                if (outcome := _outcome(running.pop(future), future)) is not None:
                    on_outcome(outcome)
            on_poll()


def _outcome(job: Job, future: "ProcessFuture[bool]") -> Outcome | None:
    """How a job ended; None for one that was given up."""
    try:
        return Outcome(job=job, ending="finished" if future.result() else "stopped")
    except CancelledError:
        return None
    except ProcessExpired as died:
        status = died.exitcode
        cause = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
        error = f"its process ended with {cause}, see above; memory may have run out"
    except (EffopdError, OSError) as refused:
        error = str(refused)
    except Exception as unexpected:  # one cell must not take the others down
        error = f"{type(unexpected).__name__}: {unexpected}"
    return Outcome(job=job, ending="failed", error=error)


# In a process -------------------------------------------------------------------------------------

_process: "dict[str, Any]" = {}


def _begin(stop: Event, messages: Any) -> None:
    """Prepares a process: one thread, no signals, and an end with its parent."""
    os.environ.update(SINGLE_THREADED)
    os.dup2(2, 1)  # what libraries print is no result
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes the wish to stop on

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        with suppress(OSError):
            parent.join()
        os._exit(1)  # a run that is killed resumes exactly; one without a parent would block it

    threading.Thread(target=end_with_parent, daemon=True).start()
    _process.update(stop=stop, messages=messages)


class _StopRequest(StopRequest):
    """Asks the pool."""

    def __bool__(self) -> bool:
        return bool(_process["stop"].is_set())


def _do(job: Job) -> bool:
    """Makes the models of a world, or trains a cell; whether it came to its end."""
    from effopd.data.smollm2 import World
    from effopd.demo.smollm2 import models_of
    from effopd.training.config import make_config
    from effopd.training.run import train

    try:
        config = make_config(job.settings)
        if job.kind == "cell":
            return train(config, job.out, stop=_StopRequest()).finished
        assert isinstance(config.task, World)
        models_of(config.task, lambda text: _process["messages"].put((job.name, text)))
    except (EffopdError, OSError):
        raise
    except Exception:  # the parent gets its text alone
        traceback.print_exc()
        raise
    finally:
        return_memory()
    return True


def return_memory() -> None:
    """Gives the system what a run has freed, which glibc keeps and the next run may not fit in."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
