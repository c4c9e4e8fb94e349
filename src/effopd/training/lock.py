"""One process a directory: what runs, comparisons and analyses lock."""

import fcntl
import os
from pathlib import Path

from effopd.errors import RunLockedError


def take_lock(descriptor: int, directory: Path, *, holder: str = "it") -> None:
    """Locks an open file until it is closed; closes it where that cannot be done."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        is_held = isinstance(error, BlockingIOError)
        what = "is in use by another process" if is_held else f"cannot be locked ({error})"
        raise RunLockedError(
            f"{directory} {what}: wait for {holder}, stop it, or choose another directory (--out)"
        ) from None
