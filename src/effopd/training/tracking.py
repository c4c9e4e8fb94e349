"""Experiment trackers that follow a run (docs/trackers.md).

Each tracker has a thread of its own, which reads the records of the run as they reach the disk. So
the disk is the queue: a tracker that is slow, blocks or fails takes no time, no memory and no row
from the run. What each tracker has is noted in `tracking.json`; a run that goes on, and writes the
steps after its checkpoint again, sends each row once.
"""

import importlib.util
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from effopd.errors import ConfigError, MissingExtraError
from effopd.records import SCHEMA, Row, write_json_atomic
from effopd.training.observer import Observer
from effopd.training.run_directory import LOGS
from effopd.training.trackers import (
    TRACKERS,
    Position,
    Sent,
    Tracked,
    Tracker,
    completion_of,
    scalars_of,
)

FILE = "tracking.json"


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Experiment trackers that follow the run.

    Attributes:
        to: Any of "trackio", "wandb" and "tensorboard"; each is an extra of this package.
        project: Project in trackio and Weights & Biases.
        name: Name of the run there; the label, or the method's name, by default.
        wait_s: Seconds that the end of a run waits for trackers that have not taken every row.
    """

    to: tuple[str, ...] = ()
    project: str = "effopd"
    name: str = ""
    wait_s: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "to", tuple(dict.fromkeys(self.to)))
        if unknown := [name for name in self.to if name not in TRACKERS]:
            known = ", ".join(map(repr, TRACKERS))
            raise ConfigError(f"tracking.to may name {known}, got {unknown[0]!r}")
        if not self.project or not self.wait_s >= 0:
            raise ConfigError(
                f"tracking needs a project and wait_s >= 0, got {self.project!r} and {self.wait_s}"
            )


class Tail:
    """The records of a run as they grow: each row once, log by log, in order."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._offsets = dict.fromkeys(LOGS, 0)
        self._last: Sent = {}

    def rows(self, *, over: bool) -> Iterator[tuple[str, Position, Row]]:
        """The rows that are new; rollouts of the last step only when the run is `over`.

        Rollouts of a step make one table, and while the run goes on more of them may follow.
        """
        newest = 0
        for log in LOGS:
            path = self._run / f"{log}.jsonl"
            if not path.exists():
                continue
            with open(path, "rb") as file:
                file.seek(self._offsets[log])
                while (line := file.readline()).endswith(b"\n"):
                    row: Row = json.loads(line)
                    step = row["step"]
                    if log == "rollouts" and step >= newest and not over:
                        break
                    before, place = self._last.get(log, (-1, -1))
                    self._last[log] = (step, place + 1 if step == before else 0)
                    self._offsets[log] += len(line)
                    yield log, self._last[log], row
            if log == "metrics":
                newest = self._last.get(log, (0, 0))[0]


# Following a run ----------------------------------------------------------------------------------


@dataclass
class _Follower:
    """One tracker and its thread."""

    kind: str
    tracked: Tracked
    sent: Sent
    note: Callable[[str, Sent], None]
    woken: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    failure: str | None = None

    def __post_init__(self) -> None:
        # A daemon: what hangs in a tracker does not keep the process from ending.
        name = f"effopd-{self.kind}"
        self.thread = threading.Thread(target=self._follow, name=name, daemon=True)

    def _follow(self) -> None:
        try:
            tracker = TRACKERS[self.kind](self.tracked, self.sent)
            self.sent, tail = {**tracker.sent}, Tail(self.tracked.run)
            is_over = False
            while not is_over:
                is_over = self.over.is_set()  # looked at before the rows, so that none is left
                self._send(tracker, tail.rows(over=is_over))
                if not is_over:
                    self.woken.wait()
                    self.woken.clear()
            tracker.finish()
        except Exception as error:  # whatever a tracker does, the run goes on
            self.failure = f"{type(error).__name__}: {error}"

    def _send(self, tracker: Tracker, rows: Iterator[tuple[str, Position, Row]]) -> None:
        """Sends the rows that the tracker does not have, and notes what it has then."""
        sent: Sent = {}
        table: list[Row] = []
        for log, position, row in rows:
            if position <= self.sent.get(log, (-1, -1)):
                continue
            if table and (log != "rollouts" or row["step"] != table[0]["step"]):
                tracker.table(table, table[0]["step"])
                table = []
            if log == "rollouts":
                table.append(completion_of(row))
            else:
                tracker.scalars(scalars_of(log, row), row["step"])
            sent[log] = position
        if table:
            tracker.table(table, table[0]["step"])
        if sent:
            tracker.flush()
            self.sent |= sent
            self.note(self.kind, self.sent)


class Tracking:
    """The trackers of a run; its `observer` wakes them, and leaving the context ends them.

    Args:
        settings: Which trackers.
        run: The run directory.
        name: Of the run, where the settings have none.
        say: Told once of a tracker that fails, in the thread of the run.

    Raises:
        MissingExtraError: A tracker that is named is not installed.
    """

    def __init__(
        self, settings: TrackingSettings, run: Path, name: str, say: Callable[[str], None]
    ) -> None:
        for kind in settings.to:
            found = importlib.util.find_spec(kind)
            if found is None or found.origin is None:  # a directory of that name is no package
                raise MissingExtraError(
                    f"tracking.to names {kind!r}, which is not installed: "
                    f"pip install 'effopd[{kind}]'"
                )
        self.settings, self._run, self._say = settings, run, say
        self._name = settings.name or name
        self._followers: list[_Follower] = []
        self._lock = threading.Lock()
        self.observer = Observer(
            on_step=lambda *_: self._wake(),
            on_evaluation=lambda *_: self._wake(),
            on_trial=lambda *_: self._wake(),
        )

    def start(self, config: Mapping[str, Any]) -> None:
        """Starts the threads; the records must have been cut back to the checkpoint by then."""
        if not self.settings.to:
            return
        try:
            self._state = json.loads((self._run / FILE).read_text("utf-8"))
            had = {
                kind: {log: (step, place) for log, (step, place) in sent.items()}
                for kind, sent in self._state["sent"].items()
            }
            id_ = str(self._state["id"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged
            id_, had = uuid.uuid4().hex[:8], {}
            self._state = {"schema": SCHEMA, "id": id_, "sent": {}}
            write_json_atomic(self._run / FILE, self._state)
        tracked = Tracked(
            run=self._run.absolute(), project=self.settings.project, name=self._name, id=id_,
            config=config,
        )  # fmt: skip
        for kind in self.settings.to:
            follower = _Follower(kind, tracked, had.get(kind, {}), self._note)
            self._followers.append(follower)
            follower.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Lets the trackers take the rest, for `wait_s` at most; a second Ctrl-C does not wait."""
        wait_s = 0.0 if isinstance(error, KeyboardInterrupt) else self.settings.wait_s
        for follower in self._followers:
            follower.over.set()
            follower.woken.set()
        until = time.monotonic() + wait_s
        for follower in self._followers:
            follower.thread.join(max(0.0, until - time.monotonic()))
        self._report()
        for follower in self._followers:
            if follower.thread.is_alive():
                self._say(
                    f"{follower.kind} has not taken every row {wait_s:g} s after the end "
                    "(tracking.wait_s): the records have them all"
                )

    def _wake(self) -> None:
        for follower in self._followers:
            follower.woken.set()
        self._report()

    def _report(self) -> None:
        """Says what failed, once, in the thread of the run."""
        for follower in self._followers:
            failure, follower.failure = follower.failure, None
            if failure is not None:
                self._say(
                    f"{follower.kind} failed and is given no more rows ({failure}): the run goes "
                    "on, its records have them all, and the same command sends what is missing "
                    "when the run is continued"
                )

    def _note(self, kind: str, sent: Sent) -> None:
        """Notes what a tracker has; called by its thread."""
        with self._lock:
            self._state["sent"][kind] = {log: [*position] for log, position in sent.items()}
            write_json_atomic(self._run / FILE, self._state)
