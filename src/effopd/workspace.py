"""A directory of resumable work: one process at a time, fixed settings, finished units."""

import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import tomli_w
from filelock import FileLock, Timeout

from effopd.config.reading import settings_of
from effopd.errors import ConfigError, RunLockedError
from effopd.records import JsonlWriter, Row, read_jsonl, write_text_atomic

Key = TypeVar("Key", bound=Hashable)


class Workspace:
    """Creates a directory and keeps other processes out of it until it is closed.

    The kernel releases the lock of a process that was killed.

    Args:
        path: The directory; created with its parents.
        what: What it holds, for messages: "run", "analysis", "evaluation", "comparison".
        wait_s: How long another process may take to leave it, in seconds.

    Raises:
        ConfigError: The directory cannot be created or written to.
        RunLockedError: Another process is writing to it.
    """

    def __init__(self, path: Path, what: str, *, wait_s: float = 0.0) -> None:
        self.path, self._what = path, what
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / f"{what}.lock", timeout=wait_s)
            self._lock.acquire()
        except Timeout:
            raise RunLockedError(
                f"{path} is in use by another process: wait for the {what} that writes to it, stop "
                "it, or choose another directory (--out)"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise ConfigError(
                f"{path} cannot hold the {what}: {error}. Choose another directory (--out)."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def refuse(self, changed: Iterable[str], hint: str = "") -> None:
        """Refuses to go on under other settings.

        Args:
            changed: What differs, one sentence each: `optimizer.lr: 0.0001 -> 0.0003`.
            hint: More for the user, after what to do.

        Raises:
            ConfigError: Something differs.
        """
        if lines := list(changed):
            raise ConfigError(
                f"{self.path} holds the {self._what} of other settings:\n  "
                + "\n  ".join(lines)
                + "\nGo on with the old settings, or choose another directory (--out)."
                + hint
            )

    def settle(self, name: str, settings: Mapping[str, Any]) -> None:
        """Keeps the settings of the work in a TOML file, and refuses to go on under others.

        Raises:
            ConfigError: The file holds other settings, or is damaged.
        """
        path = self.path / name
        if path.exists():
            try:
                before = tomllib.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(
                    f"{path} is damaged ({error}): restore it, or choose another directory (--out)"
                ) from None
            old, new = settings_of(before), settings_of(settings)
            keys = sorted(old.keys() | new.keys())
            self.refuse(
                f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)
            )
        write_text_atomic(path, tomli_w.dumps(settings))


class Journal(Generic[Key]):
    """Finished units of work, one JSON line each; a unit is known by a key of its row.

    Args:
        path: The JSON Lines file, created if need be.
        key: The key of a row. Of two rows with one key, the later counts.
    """

    def __init__(self, path: Path, key: Callable[[Row], Key]) -> None:
        self.path, self._key = path, key
        self.rows: dict[Key, Row] = {}
        if path.exists():
            self.rows = {key(row): row for row in read_jsonl(path)}
        self._writer = JsonlWriter(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def add(self, row: Row) -> None:
        """Appends a finished unit."""
        self._writer.write(row)
        self.rows[self._key(row)] = row

    def sync(self) -> None:
        """Forces what was added to the disk."""
        self._writer.sync()
