"""A process of a comparison: jobs come in on standard input, answers go out on standard output.

Both are JSON, one object a line. The process belongs to no terminal: it stops when it is told to,
and at once when its parent is gone, so that a killed comparison can be started again.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from effopd.errors import EffopdError
from effopd.training.signals import StopRequest

Message = dict[str, Any]


def work() -> None:
    """Does jobs until there are no more.

    A job is `{"kind": "world" | "cell", "settings": {...}, "out": DIRECTORY}`; the answer is
    `{"finished": bool}` or `{"error": text}`, after any number of `{"message": text}`. Any other
    exception ends the process, which is an answer too.
    """
    answers = _claim_stdout()
    stop = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda received, _: setattr(stop, "signal_number", received))
    jobs: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs, stop), daemon=True).start()
    while (job := jobs.get()) is not None:
        try:
            answer: Message = {"finished": _do(job, stop, answers)}
        except (EffopdError, OSError) as error:
            if job["debug"]:
                traceback.print_exc()
            answer = {"error": str(error)}
        _write(answers, answer)


def _do(job: Message, stop: StopRequest, answers: TextIO) -> bool:
    """Makes the models of a world, or trains a cell; whether it came to its end."""
    from transformers.utils import logging

    from effopd.data.world import TinyWorld
    from effopd.demo.cache import world_models
    from effopd.training.config import make_config
    from effopd.training.loop import Observer
    from effopd.training.run import train

    logging.disable_progress_bar()
    config = make_config(job["settings"])
    if job["kind"] == "cell":
        return train(config, Path(job["out"]), Observer(), stop=stop)
    assert isinstance(config.task, TinyWorld)
    world_models(config.task, lambda text: _write(answers, {"message": text}))
    return True


def _listen(jobs: queue.SimpleQueue[Message | None], stop: StopRequest) -> None:
    """Hands on jobs and the wish to stop; ends the process when the parent is gone."""
    for line in sys.stdin:
        message = json.loads(line)
        if message["kind"] == "stop":
            stop.signal_number = signal.SIGTERM
        else:
            jobs.put(None if message["kind"] == "end" else message)
    os._exit(1)  # a run that is killed goes on bit for bit; one without a parent would block it


def _claim_stdout() -> TextIO:
    """Standard output for answers alone: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _write(answers: TextIO, message: Message) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    work()
