"""A disk that fails on demand: crashes, refusals and limits at any operation on files."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
"""Audit events that count as operations; calls of `os.fsync` do too."""


class Crash(BaseException):
    """The machine stops here: nothing after it reaches the disk."""


class _Watch:
    """What an audit hook does; hooks cannot be removed, so this one sleeps when not armed."""

    def __init__(self) -> None:
        self.on_operation: Callable[[str], None] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.on_operation is not None and event in WATCHED:
            self.on_operation(event)


_watch: list[_Watch] = []


@contextmanager
def watching(on_operation: Callable[[str], None]) -> Iterator[None]:
    """Calls `on_operation` before each operation on files inside; what it raises is raised."""
    if not _watch:
        _watch.append(_Watch())
    real = os.fsync

    def fsync(descriptor: int) -> None:
        on_operation("fsync")
        real(descriptor)

    os.fsync = fsync
    _watch[0].on_operation = on_operation
    try:
        yield
    finally:
        _watch[0].on_operation = None
        os.fsync = real


@contextmanager
def crash_before(number: int) -> Iterator[None]:
    """Raises `Crash` at operation `number` (1 is the first) and at each one after it.

    So no clean-up code can touch the disk, as after a power cut.
    """
    left = [number]

    def crash(event: str) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise Crash

    with watching(crash):
        yield


@contextmanager
def refuse_at(number: int, reason: int) -> Iterator[list[str]]:
    """Raises `OSError(reason)` at operation `number` alone; yields the operation once refused."""
    left = [number]
    refused: list[str] = []

    def refuse(event: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            refused.append(event)
            raise OSError(reason, os.strerror(reason))

    with watching(refuse):
        yield refused


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file can grow beyond `size_bytes`, whoever writes it: EFBIG, also in compiled code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
