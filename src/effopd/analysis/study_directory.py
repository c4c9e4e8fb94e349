"""The directory of an analysis: what it is of, which units are finished, and the lock."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from effopd.errors import ConfigError
from effopd.records import SCHEMA, JsonlWriter, Row, read_json, read_jsonl, write_json_atomic
from effopd.training.lock import take_lock

Key = tuple[str, str | None]
"""Place and checkpoint of a unit; None for all checkpoints."""
IDENTITY = ("base", "checkpoints", "final", "options")
"""Fields of `analysis.json` that may not change while the analysis goes on."""


class AnalysisDirectory:
    """Holds the lock of an analysis directory.

    Args:
        path: The directory; created with its parents.

    Raises:
        ConfigError: The directory cannot be created or written to.
        RunLockedError: Another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables = path / "tables"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "analysis.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be an analysis directory: {error}. Choose another one (--out)."
            ) from None
        take_lock(self._lock, path, holder="the analysis that writes to it")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    def describe(self, info: Mapping[str, Any]) -> None:
        """Writes `analysis.json`, unless it is of something else."""
        path = self.path / "analysis.json"
        if not path.exists() and any(self.path.glob("*.json*")):
            raise ConfigError(f"{self.path} holds something else: choose another directory (--out)")
        known = json.loads(json.dumps({"schema": SCHEMA, **info}))  # tuples become lists
        if path.exists():
            before = read_json(path)
            changed = [name for name in IDENTITY if before.get(name) != known[name]]
            if changed:
                raise ConfigError(
                    f"{self.path} holds an analysis of other inputs: {_changes(before, known)}. "
                    "Choose another directory (--out)."
                )
            known["what"] = list(dict.fromkeys([*before.get("what", []), *known["what"]]))
        write_json_atomic(path, known)

    def finished(self, name: str, wanted: Collection[Key]) -> dict[Key, Row]:
        """Records of finished units."""
        path = self._rows(name)
        rows = read_jsonl(path) if path.exists() else []
        return {key: row for row in rows if (key := (row["place"], row["checkpoint"])) in wanted}

    def writer(self, name: str) -> JsonlWriter:
        """Appends records of units."""
        return JsonlWriter(self._rows(name))

    def _rows(self, name: str) -> Path:
        return self.path / "rows" / f"{name}.jsonl"


def _changes(before: Row, now: Row) -> str:
    """What differs, in words."""
    if before.get("base") != now["base"]:
        return f"its base is {before['base']['path']} as it was, now {now['base']['path']}"
    old, new = ([each["label"] for each in info["checkpoints"]] for info in (before, now))
    if old != new:
        return f"its checkpoints are {', '.join(old)}, now {', '.join(new)}"
    for was, has in zip(before["checkpoints"], now["checkpoints"], strict=True):
        if was != has:
            return f"checkpoint {was['label']} in {was['path']} is not what it was"
    if before["final"] != now["final"]:
        return f"its final checkpoint is {before['final']['path']}, now {now['final']['path']}"
    return f"its options are {before['options']}, now {now['options']}"
