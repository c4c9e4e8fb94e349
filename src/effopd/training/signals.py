"""Stopping at the end of a step when asked to."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """First time: remember. A second Ctrl-C: stop at once."""
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
        with suppress(OSError):  # not print: it may be what the signal interrupted
            os.write(2, b"\nstopping: finishing this step, then saving; Ctrl-C stops at once\n")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM, SIGINT and SIGUSR1 request a stop inside; the previous handlers return after."""
    request = StopRequest()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.signal(number, request._receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
