"""What a program finds when it starts, and what the interpreter does when it ends.

Both are CPython's for a script, with one difference: integers of any length can be printed and
read, as in PyPy and in LiveCodeBench's grader.
"""

import _io
import atexit
import contextlib
import gc
import os
import sys
import threading
import traceback
from collections.abc import Iterable
from typing import Any

OUT_OF_MEMORY = 86
"""Exit status of a program that ran out of memory and was told so by an exception."""
_FLUSH_FAILED = 120
"""Exit status of CPython when standard output cannot be written at the end."""


class Ending:
    """Turns whatever is raised within it into an exit status, as CPython does."""

    status = 0

    def __enter__(self) -> "Ending":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, SystemExit):
            self.status = 1
            if error.code is None or isinstance(error.code, int):
                self.status = int(error.code or 0) & 0xFF
            else:
                _complain(f"{error.code}\n")
        elif error is not None:
            self.status = OUT_OF_MEMORY if isinstance(error, MemoryError) else 1
            _complain("".join(traceback.format_exception(error, limit=-20)))
        return True


def _complain(text: str) -> None:
    """Writes to standard error, whatever a program made of `sys.stderr`."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def begin() -> None:
    """Opens the standard streams over descriptors 0 to 2, and lifts the limit on digits."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = open(  # noqa: SIM115 - it stays open
            descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False,
            errors="backslashreplace" if name == "stderr" else "surrogateescape",
        )  # fmt: skip
        stream.buffer.raw.name = f"<{name}>"
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["program.py"]
    sys.set_int_max_str_digits(0)


def end(status: int) -> int:
    """Does what the interpreter does at the end; nothing else may refer to the program's module.

    Threads are waited for, exit functions run, every file that is open is flushed, and objects of
    the program are destroyed. Taking the whole interpreter apart would do the same, and costs ten
    times what a short test does.

    Returns:
        The exit status of a program that came to `status` so far.
    """
    with Ending():
        threading._shutdown()  # type: ignore[attr-defined]  # ends executors, joins threads
    atexit._run_exitfuncs()
    status = status or _flushed((sys.stdout, sys.stderr))
    with Ending():  # there may be no memory for the list of all objects
        _flushed(each for each in gc.get_objects() if issubclass(type(each), _io._IOBase))
    sys.modules.pop("__main__", None)
    gc.collect()
    return status or _flushed((sys.stdout, sys.stderr))


def _flushed(streams: Iterable[Any]) -> int:
    """Flushes streams that are open; the status of an interpreter that could not."""
    status = 0
    for stream in streams:
        if stream is not None and not _is_closed(stream):
            with Ending() as ending:
                stream.flush()
            if ending.status and stream is sys.stdout:
                status = _FLUSH_FAILED
    return status


def _is_closed(stream: Any) -> bool:
    """Whether a file is closed; one that cannot say counts as open."""
    with Ending():
        return bool(getattr(stream, "closed", False))
    return False
