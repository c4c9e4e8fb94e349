"""A directory of resumable work: one process at a time, fixed settings, finished units."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from filelock import FileLock, Timeout

from effopd.errors import ConfigError, RunLockedError
from effopd.records import JsonlWriter, Row, read_jsonl

Key = TypeVar("Key", bound=Hashable)


class Workspace:
    """Creates a directory and keeps other processes out of it until it is closed.

    The kernel releases the lock of a process that was killed.

    Args:
        path: The directory; created with its parents.
        what: What it holds, for messages: "run", "analysis", "evaluation", "comparison".

    Raises:
        ConfigError: The directory cannot be created or written to.
        RunLockedError: Another process is writing to it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / f"{what}.lock", timeout=0)
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def refuse(self, changed: Iterable[str], hint: str = "") -> None:
        """Refuses to go on under other settings.

        Args:
            changed: What differs, one sentence each, as `differences` gives them.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def add(self, row: Row) -> None:
        """Appends a finished unit."""
        self._writer.write(row)
        self.rows[self._key(row)] = row

    def sync(self) -> None:
        """Forces what was added to the disk."""
        self._writer.sync()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that differ, one sentence each: `optimizer.lr: 0.0001 -> 0.0003`."""
    before, now = flat(old), flat(new)
    keys = sorted(before.keys() | now.keys())
    return [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of nested mappings by its dotted name."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        is_nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return found
