"""One run, one directory, one process: the lock, the records and the resolved settings."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effopd.errors import ConfigError, RunLockedError
from effopd.records import (
    JsonlWriter,
    read_jsonl,
    truncate_jsonl,
    write_json_atomic,
    write_text_atomic,
)

LOGS = ("metrics", "timing", "search", "evals", "rollouts")


class RunDirectory:
    """Holds the lock of a run directory and the writers of its records.

    Args:
        path: The directory; created with its parents.

    Raises:
        RunLockedError: Another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise RunLockedError(
                f"{path} is in use by another process: wait for it, stop it, or choose another "
                "directory (--out)"
            ) from None
        self._writers: dict[str, JsonlWriter] = {}

    def describe(self, config_toml: str, info: Mapping[str, Any]) -> None:
        """Writes `config.toml` and `run.json`."""
        write_text_atomic(self.path / "config.toml", config_toml)
        write_json_atomic(self.path / "run.json", {"schema": 1, **info})

    def rewind(self, offsets: Mapping[str, int]) -> None:
        """Cuts every log back to where it was at a checkpoint; logs not named become empty.

        Raises:
            ConfigError: Called after the first row was written.
        """
        if self._writers:
            raise ConfigError("rewind the logs before the first row is written")
        for name in LOGS:
            if self._log(name).exists():
                truncate_jsonl(self._log(name), offsets.get(name, 0))

    def write(self, log: str, row: Mapping[str, Any]) -> None:
        """Appends one row to a log."""
        self._writer(log).write(row)

    def rows(self, log: str) -> list[dict[str, Any]]:
        """The rows written so far."""
        return read_jsonl(self._log(log)) if self._log(log).exists() else []

    def offsets(self) -> dict[str, int]:
        """Current length of every log in bytes, after forcing them to the disk."""
        for name in LOGS:
            self._writer(name).sync()
        return {name: self._writer(name).offset for name in LOGS}

    def close(self) -> None:
        """Closes the logs and releases the lock."""
        for writer in self._writers.values():
            writer.close()
        os.close(self._lock)

    def _log(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def _writer(self, name: str) -> JsonlWriter:
        if name not in self._writers:
            self._writers[name] = JsonlWriter(self._log(name))
        return self._writers[name]
