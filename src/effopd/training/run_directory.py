"""One run, one directory, one process: the lock, the records and the resolved settings."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effopd.errors import CheckpointError, ConfigError, RecordError
from effopd.models.checkpoints import newest_good
from effopd.records import (
    JsonlWriter,
    list_checkpoints,
    read_jsonl,
    truncate_jsonl,
    write_json_atomic,
    write_text_atomic,
)
from effopd.workspace import Workspace

LOGS = ("metrics", "timing", "search", "evals", "rollouts", "monitor")


class RunDirectory:
    """The lock of a run directory, created with its parents, and the writers of its records."""

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self._workspace = Workspace(path, "run")
        self.refuse = self._workspace.refuse
        try:
            self.checkpoints.mkdir(exist_ok=True)
        except BaseException:
            self._workspace.close()  # the caller has nothing to close
            raise
        self._writers: dict[str, JsonlWriter] = {}

    @property
    def holds_records(self) -> bool:
        """Whether something was recorded or saved here."""
        logs = (self._log(name).exists() for name in LOGS)
        return bool(list_checkpoints(self.checkpoints)) or any(logs)

    def describe(
        self,
        config_toml: str,
        info: Mapping[str, Any],
        step: int = 0,
        changes: Sequence[str] = (),
    ) -> None:
        """Writes `config.toml` and `run.json`."""
        resumed = _info(self.path).get("resumed", [])
        if changes:
            resumed = [*resumed, {"step": step, "changes": list(changes)}]
        history = {"resumed": resumed} if resumed else {}
        write_text_atomic(self.path / "config.toml", config_toml)
        write_json_atomic(self.path / "run.json", {"schema": 1, **info, **history})

    def finished(self) -> dict[str, Any] | None:
        """Step and reason of the end as `run.json` has them; None while the run is not over."""
        return _info(self.path).get("finished")

    def finish(self, step: int, reason: str) -> None:
        """Notes in `run.json` that the run is over, and why."""
        path = self.path / "run.json"
        info = json.loads(path.read_text(encoding="utf-8"))
        write_json_atomic(path, info | {"finished": {"step": step, "reason": reason}})

    def resume_point(self, every: int) -> tuple[Path | None, list[str]]:
        """The checkpoint to continue from, None to begin at step 0, and what to tell the user."""
        directory, problems = newest_good(self.checkpoints)
        if directory is not None:
            skipped = [f"skipping a damaged checkpoint: {problem}" for problem in problems]
            return directory, [*skipped, f"resuming from {directory.name}"]
        recorded, config = len(self.rows("metrics")), self.path / "config.toml"
        before = tomllib.loads(config.read_text("utf-8")) if config.exists() else {}
        every = max(every, int(before.get("checkpoint", {}).get("every", 0)))
        if problems or recorded > every:
            raise CheckpointError(
                f"{self.checkpoints} holds no undamaged checkpoint, but {recorded} steps are "
                "recorded. Restore a checkpoint, or start again in another directory (--out)."
                + "".join(f"\n  {problem}" for problem in problems)
            )
        return None, ["no checkpoint yet: starting again from step 0"] if recorded else []

    def rewind(self, offsets: Mapping[str, int], step: int) -> None:
        """Cuts every log back to where it was at the checkpoint of `step`."""
        if self._writers:
            raise ConfigError("rewind the logs before the first row is written")
        for name in LOGS:
            truncate_jsonl(self._log(name), offsets.get(name, 0))
        steps = [row["step"] for row in self.rows("metrics")]
        if steps != list(range(1, step + 1)):
            raise CheckpointError(
                f"{self._log('metrics')} holds {len(steps)} rows, expected one for each step from "
                f"1 to {step}: the checkpoint of step {step} belongs to another run, or the file "
                "was edited. Restore the file or resume from another checkpoint."
            )

    def write(self, log: str, row: Mapping[str, Any]) -> None:
        """Appends one row to a log."""
        with self._writer(log) as writer:
            writer.write(row)

    def rows(self, log: str) -> list[dict[str, Any]]:
        """The rows written so far."""
        return read_jsonl(self._log(log)) if self._log(log).exists() else []

    def offsets(self) -> dict[str, int]:
        """Current length of every log in bytes, after forcing them to the disk."""
        found = {}
        for name in LOGS:
            with self._writer(name) as writer:
                writer.sync()
                found[name] = writer.offset
        return found

    def close(self) -> None:
        """Closes the logs and releases the lock."""
        for writer in self._writers.values():
            writer.close()
        self._workspace.close()

    def _log(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    @contextmanager
    def _writer(self, log: str) -> Iterator[JsonlWriter]:
        """The writer of a log, opened at first; errors of the disk say what to do."""
        try:
            if log not in self._writers:
                self._writers[log] = JsonlWriter(self._log(log))
            yield self._writers[log]
        except OSError as error:
            raise RecordError(
                f"cannot write {self._log(log)}: {error}. The checkpoints are intact: free space "
                "or fix permissions, then run the same command to resume."
            ) from error


def recorded_date(run: Path) -> str | None:
    """The day on which a run started, "2026-01-31"; None where its `run.json` names none."""
    return _info(run).get("date")


def _info(run: Path) -> dict[str, Any]:
    """Content of `run.json`; nothing where it is damaged: it is written anew."""
    try:
        found = json.loads((run / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
