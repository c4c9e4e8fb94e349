"""The experiment trackers, each by its own library, and what they are told of a record.

A tracker that is opened again goes on with the run that it has. Of a process that was killed it may
have less than it was given, so it says itself what it has where it can.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from effopd.errors import ConfigError
from effopd.records import Row
from effopd.training.run_directory import LOGS

Position = tuple[int, int]
"""Step of a row, and its place among the rows of that step in its log."""
Sent = dict[str, Position]
"""Log -> the last row that a tracker has."""

WHOLE = 10**9
"""Place of the last row of a step, whichever that is."""
COMPLETIONS = (
    "step", "problem", "prompt", "completion", "reward", "finish_reason", "tokens", "kl_mean",
    "kl_by_token",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A run as trackers are told of it: `id` is its own, kept in its directory."""

    run: Path
    project: str
    name: str
    id: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """One tracker, opened with a run and what it has of it by then.

    `sent` is what it has where it can say so itself, else what it was opened with.
    """

    sent: Sent

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Takes numbers by name."""

    def table(self, rows: Sequence[Row], step: int) -> None:
        """Takes completions, with the columns `COMPLETIONS`."""

    def flush(self) -> None:
        """Puts what was taken where a killed process does not lose it."""

    def finish(self) -> None:
        """Ends the run there, everything delivered."""


# The trackers, each by its own library ------------------------------------------------------------


class _Trackio(Tracker):
    """trackio, which keeps runs in a database on this machine, or sends them to a Space."""

    def __init__(self, tracked: Tracked, sent: Sent) -> None:
        import trackio

        # A run is found again by its name, so that has to be its own.
        name, self._table = f"{tracked.name}-{tracked.id}", trackio.Table
        self._run = trackio.init(
            project=tracked.project, name=name, config={**tracked.config}, resume="allow",
            embed=False,
        )  # fmt: skip
        self.sent = sent
        if not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")):
            # It writes in a thread of its own: a killed process loses what that had not written.
            from trackio.sqlite_storage import SQLiteStorage

            self.sent = _of_rows(SQLiteStorage.get_logs(tracked.project, name))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values}, step=step)

    def table(self, rows: Sequence[Row], step: int) -> None:
        cells = [[row[name] for name in COMPLETIONS] for row in rows]
        self._run.log({"completions": self._table([*COMPLETIONS], cells)}, step=step)

    def finish(self) -> None:
        self._run.finish()


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> Sent:
    """What a tracker has, read from its own rows, which are in the order they were sent in."""
    logs = {prefix: log for log, prefixes in PREFIXES.items() for prefix in prefixes}
    found: Sent = {}
    for row in rows:
        log = next((logs[p] for p in (key.split("/")[0] for key in row) if p in logs), None)
        if log is not None:
            step, place = found.get(log, (-1, -1))
            found[log] = (row["step"], place + 1 if row["step"] == step else 0)
            if log == "rollouts":  # all of a step at once
                found[log] = (row["step"], WHOLE)
    return found


class _Wandb(Tracker):
    """Weights & Biases; `WANDB_MODE=offline` keeps the run below its directory."""

    def __init__(self, tracked: Tracked, sent: Sent) -> None:
        import wandb

        # It would ask for a key at the terminal.
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise ConfigError("not logged in: run `wandb login`, or set WANDB_MODE=offline")
        self._table, self.sent = wandb.Table, sent
        self._run = wandb.init(
            project=tracked.project, name=tracked.name, id=tracked.id, resume="allow",
            config={**tracked.config}, dir=str(tracked.run),
            # Written every second: a process that is killed loses no more.
            settings=wandb.Settings(console="off", x_transaction_log_flush_interval=1.0),
        )  # fmt: skip
        # Its own steps may not go back, and records of one step come at different times.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def table(self, rows: Sequence[Row], step: int) -> None:
        cells = [[row[name] for name in COMPLETIONS] for row in rows]
        table = self._table(columns=[*COMPLETIONS], data=cells)
        self._run.log({"completions": table, "step": step})

    def finish(self) -> None:
        self._run.finish()


class _TensorBoard(Tracker):
    """Event files in `tensorboard/` of the run directory."""

    def __init__(self, tracked: Tracked, sent: Sent) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Readers leave out what earlier files have of the step to begin with and later ones, so
        # everything from there on is sent again.
        first = sent["metrics"][0] if "metrics" in sent else 0
        self.sent = dict.fromkeys(LOGS, (first - 1, WHOLE)) if sent else {}
        folder = tracked.run / "tensorboard"
        begun = bool(sent) or folder.exists()  # a kill may come before what was written is noted
        # They read files by name, and names of one second in any order.
        files = [name.split(".") for name in os.listdir(folder)] if folder.exists() else []
        last = max((int(name[3]) for name in files if name[3:] and name[3].isdigit()), default=0)
        while int(time.time()) == last:
            time.sleep(0.02)
        self._writer = SummaryWriter(str(folder), purge_step=first if begun else None)
        if not first:
            lines = (f"    {name} = {value}" for name, value in tracked.config.items())
            self._writer.add_text("config", "\n".join(lines), 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, rows: Sequence[Row], step: int) -> None:
        lines = ["|".join(COMPLETIONS), "|".join(["---"] * len(COMPLETIONS))]
        lines += ["|".join(_cell(row[name]) for name in COMPLETIONS) for row in rows]
        self._writer.add_text("completions", "\n".join(f"|{line}|" for line in lines), step)

    def flush(self) -> None:
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


def _cell(value: object) -> str:
    """A cell of a table in Markdown, whatever a model wrote."""
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    for mark in "\\`*_{}[]<>()#+-.!|~&":
        text = text.replace(mark, f"&#{ord(mark)};" if mark in "<>&|`" else f"\\{mark}")
    return " ".join(text.split("\n"))


TRACKERS: dict[str, Callable[[Tracked, Sent], Tracker]] = {
    "trackio": _Trackio,
    "wandb": _Wandb,
    "tensorboard": _TensorBoard,
}


# From records to what trackers take ---------------------------------------------------------------

PREFIXES: Mapping[str, Sequence[str]] = {
    "metrics": ("train",),
    "timing": ("time",),
    "search": ("search",),
    "evals": ("eval", "teacher"),
    "monitor": ("monitor",),
    "rollouts": ("completions",),
}
"""Log -> first parts of the names that its numbers have in trackers."""

_PLACES = {"schema", "step", "trial", "n"}
_SPENT = {"sampled_tokens", "teacher_tokens", "student_passes"}
"""What training had taken by then; 0 where the teacher is evaluated."""


def scalars_of(log: str, row: Row) -> dict[str, float]:
    """The numbers of a row by name, places left out; of a list of sentences its length."""
    prefix, left_out = PREFIXES[log][0], _PLACES
    if log == "evals" and row["model"] == "teacher":
        prefix, left_out = "teacher", _PLACES | _SPENT
    found: dict[str, float] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, int | float):
            found[name] = float(value) if isinstance(value, float) else int(value)
        elif isinstance(value, Mapping):
            for key, each in value.items():
                collect(f"{name}/{key}", each)
        elif isinstance(value, list) and all(isinstance(each, str) for each in value):
            found[name] = len(value)
        elif isinstance(value, list):
            for index, each in enumerate(value):
                collect(f"{name}/{index}", each)

    for key, value in row.items():
        if key not in left_out:
            collect(f"{prefix}/{key}", value)
    return found


def completion_of(row: Row) -> Row:
    """A row of the table of completions; divergences in nats, token by token in one text."""
    values = zip(row["tokens"], row["kl_nats"], strict=False)
    known = [kl for kl in row["kl_nats"] if kl is not None]
    shown = (f"{token} {'-' if kl is None else format(kl, '.3f')}" for token, kl in values)
    return {
        "step": row["step"],
        "problem": row["problem_id"],
        "prompt": row["prompt"],
        "completion": row["completion"],
        "reward": row["reward"],
        "finish_reason": row["finish_reason"],
        "tokens": len(row["tokens"]),
        "kl_mean": round(sum(known) / len(known), 4) if known else None,
        "kl_by_token": " · ".join(shown),
    }
