"""`effopd watch`: the page of runs while they train, over HTTP on this machine alone.

The server only reads records, and answers requests that name this machine. The page is that of
`effopd report`; its script asks for what is new and exchanges the parts that changed.
"""

import json
import queue
import secrets
import signal
import socketserver
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from effopd.errors import ConfigError, RecordError
from effopd.records import Row, Run, finished_rows, read_json
from effopd.reports.comparison import Comparison
from effopd.reports.embedding import embedded, rendered_page
from effopd.reports.page import page_content
from effopd.reports.rollouts import rollout_rows
from effopd.reports.series import number, plain
from effopd.reports.style import run_styles

HOST = "127.0.0.1"
OWN_NAMES = {"127.0.0.1", "localhost", "::1"}
"""Names of this machine: a page from elsewhere that leads its own name here is refused."""

MOST_SAMPLES = 2000
"""Recorded samples of a run that the page shows, the last ones."""

RECENT_STEPS = 10
"""Steps whose mean duration says how long the rest takes."""

Json = dict[str, Any]


# Following files ----------------------------------------------------------------------------------


class JsonlFollower:
    """Reads a JSON Lines file while it grows; `rows` are those of the last `read`.

    A file that was cut back or written anew, as by a run that resumes, is read again.

    Args:
        path: The file; it need not exist yet.
        most: Rows that are kept, the last ones; None keeps all.
    """

    def __init__(self, path: Path, *, most: int | None = None) -> None:
        self.path, self._most = path, most
        self._restart()

    def _restart(self) -> None:
        self.rows: list[Row] = []
        self._end, self._tail, self._count = 0, b"", 0

    def read(self) -> bool:
        """Takes in the lines that were finished since; returns whether `rows` are others now.

        Raises:
            RecordError: As `read_jsonl` does.
        """
        restarted = False
        try:
            with open(self.path, "rb") as file:
                # What was last read must still be there, else the file is another.
                file.seek(self._end - len(self._tail))
                if file.read(len(self._tail)) != self._tail:
                    restarted = True
                    self._restart()
                    file.seek(0)
                data = file.read()
        except FileNotFoundError:
            gone = self._end > 0
            self._restart()
            return gone
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be read ({error.strerror}).") from error
        data = data[: data.rfind(b"\n") + 1]
        fresh = finished_rows(data, self.path, self._count)
        self._count += len(fresh)
        self._end += len(data)
        self._tail = (self._tail + data)[-256:]
        self.rows = (self.rows + fresh)[-(self._most or 0) :]
        return restarted or bool(fresh)


class RunFollower:
    """A run directory while it is written, or before."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = Run(directory=directory, label=directory.name, info={})
        self.changed_at = 0.0  # time of the newest record
        self.samples = 0  # counts changes of rollouts.jsonl
        self._settings: tuple[tuple[int, int] | None, ...] = ()
        self._files = {
            name: JsonlFollower(
                directory / f"{name}.jsonl", most=MOST_SAMPLES if name == "rollouts" else None
            )
            for name in ("metrics", "timing", "search", "evals", "rollouts", "monitor")
        }

    def read(self) -> bool:
        """Takes in what was written since; returns whether anything was."""
        changed = [name for name, file in self._files.items() if file.read()]
        self.samples += "rollouts" in changed
        paths = [self.directory / name for name in ("run.json", "config.toml")]
        settings = tuple(map(_stamp, paths))
        if not changed and settings == self._settings:
            return False
        info = read_json(paths[0]) if settings[0] else {}
        self.run = Run(
            directory=self.directory,
            label=str(info.get("label") or self.directory.name),
            info=info,
            config=paths[1].read_text("utf-8", errors="replace") if settings[1] else "",
            **{name: file.rows for name, file in self._files.items()},
        )
        self._settings = settings
        stamps = [*settings, *(_stamp(file.path) for file in self._files.values())]
        self.changed_at = max((stamp[0] / 1e9 for stamp in stamps if stamp), default=0.0)
        return True

    def progress(self) -> Json:
        """Step, number of steps (None where the settings do not say), and a sentence."""
        run = self.run
        try:
            steps = tomllib.loads(run.config)["train"]["steps"]
        except (tomllib.TOMLDecodeError, LookupError, TypeError):
            steps = None
        steps = steps if type(steps) is int else None
        step = number(run.metrics[-1], "step", run) or 0 if run.metrics else 0
        found: Json = {"step": step, "steps": steps}
        if not run.info:
            return found | {"text": "waiting for the run to start"}
        parts = [f"step {step:g}" + (f" of {steps}" if steps else "")]
        finished = run.info.get("finished")
        times = [number(row, "elapsed_s", run) for row in run.timing[-RECENT_STEPS - 1 :]]
        known = [value for value in times if value is not None]
        if isinstance(finished, dict):
            parts.append(f"finished: {plain(str(finished.get('reason')))}")
        elif len(known) > 1:
            each = (known[-1] - known[0]) / (len(known) - 1)
            parts.append(f"{each:.3g} s a step")
            if steps and steps > step:
                parts.append(f"about {_duration(each * (steps - step))} left")
        return found | {"text": ", ".join(parts)}


def _stamp(path: Path) -> tuple[int, int] | None:
    """Time of the last change in ns and size of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _duration(seconds: float) -> str:
    """A time to the minute, or to the second below two minutes."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class LivePage:
    """The page of runs as their records are now.

    Args:
        paths: Run directories, or directories of them; they need not exist yet.
        every_s: Time between two looks of the page, in seconds.
    """

    def __init__(self, paths: Sequence[Path | str], every_s: float) -> None:
        self._paths, self._every_s = [Path(path) for path in paths], every_s
        self._followers: dict[Path, RunFollower] = {}
        self._start, self._version = secrets.token_hex(4), 0
        self._lock = threading.Lock()
        self._content: tuple[Json, Json] = {}, {}

    def look(self) -> str:
        """Reads what is new; returns the tag of what is known now."""
        with self._lock:
            found = {}
            for directory in dict.fromkeys(self._directories()):
                found[directory] = self._followers.get(directory) or RunFollower(directory)
            changed = list(found) != list(self._followers)
            self._followers = found
            for follower in found.values():
                changed = follower.read() or changed
            if changed or not self._version:
                self._content = self._drawn(list(found.values()))
                self._version += 1
            return f"{self._start}-{self._version}"

    def _directories(self) -> list[Path]:
        """Run directories: those named, and those inside a named one that is none itself."""
        found: list[Path] = []
        for path in self._paths:
            inside = [each.parent for each in sorted(path.glob("*/run.json"))]
            found += [path] if (path / "run.json").exists() or not inside else inside
        return found

    def _drawn(self, followers: Sequence[RunFollower]) -> tuple[Json, Json]:
        runs = [follower.run for follower in followers]
        values, data = page_content(Comparison.of_runs(runs, "effopd watch"))
        progress = [
            {"label": style.label, "color": style.color, **follower.progress()}
            for follower, style in zip(followers, run_styles(runs), strict=True)
        ]
        for sample in data["samples"]:
            sample["version"] = followers[sample["index"]].samples
        return values | {"live": True, "progress": progress}, data

    def _data(self, tag: str) -> Json:
        newest = max((each.changed_at for each in self._followers.values()), default=0.0)
        age = max(0.0, time.time() - newest) if newest else None
        live = {"tag": tag, "every_ms": 1000 * self._every_s, "age_s": age}
        return self._content[1] | {"live": live}

    def page(self) -> str:
        """The whole page, about 5 MB."""
        tag = self.look()
        scripts = ["live.js", "page.js", "rollouts.js"]
        data = {"data": self._data(tag)}
        return rendered_page("runs.html", self._content[0], data, scripts, asks=True)

    def news(self, known: str) -> str | None:
        """What changed since the tag `known`, as JSON; None if nothing did."""
        tag = self.look()
        if tag == known:
            return None
        markup = rendered_page("runs.html", self._content[0], {}, [])
        return json.dumps({"page": markup, "data": self._data(tag)})

    def rollouts(self, index: int) -> str | None:
        """Recorded samples of a run, as JSON; None where there is no such run."""
        self.look()
        followers = list(self._followers.values())
        return embedded(rollout_rows(followers[index].run)) if index < len(followers) else None


# The server ---------------------------------------------------------------------------------------


class WatchServer:
    """Serves the live page of runs at an address of this machine, inside a `with` block.

    Args:
        runs: Run directories, or directories of them; they need not exist yet.
        port: Port; 0 takes a free one.
        every_s: Time between two looks of the page, in seconds.

    Raises:
        ConfigError: If the port is taken.
    """

    def __init__(self, runs: Sequence[Path | str], *, port: int = 0, every_s: float = 2.0) -> None:
        try:
            self._http = _Listener(LivePage(runs, every_s), port)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} of this machine cannot be listened at ({error}): give another, or 0 "
                "for a free one"
            ) from error
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self._http.server_address[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def watch(runs: Sequence[Path | str], *, port: int = 0, report: Callable[[str], None]) -> None:
    """Serves the live page of runs until SIGTERM or Ctrl-C; called by the main thread.

    Args:
        runs: Run directories, or directories of them; they need not exist yet.
        port: Port; 0 takes a free one.
        report: Receives sentences for people.
    """
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()  # may be put to inside a handler
    with WatchServer(runs, port=port) as server:
        for path in map(Path, runs):
            if not (path / "run.json").exists() and not any(path.glob("*/run.json")):
                report(f"{path} holds no run yet; it is shown once it does")
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda number, frame: asked.put(number))
        report(f"watching at {server.url} (this machine only); Ctrl-C ends it")
        asked.get()


class _Listener(ThreadingHTTPServer):
    """A thread a connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        """Without asking for the host's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One request: GET of the page, of what is new, or of the samples of a run."""

    server: _Listener
    timeout = 30  # seconds of patience with a client

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        """Answers from what is on disk now."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        page, path = self.server.page, self.path
        try:
            if name not in OWN_NAMES:
                self._send(HTTPStatus.FORBIDDEN, "Host is not a name of this machine", "text/plain")
            elif path == "/":
                self._send(HTTPStatus.OK, page.page(), "text/html")
            elif path == "/now":
                found = page.news(self.headers.get("If-None-Match", ""))
                status = HTTPStatus.OK if found else HTTPStatus.NOT_MODIFIED
                self._send(status, found or "", "application/json")
            elif path.startswith("/rollouts/") and path[10:].isdecimal() and len(path) < 20:
                found = page.rollouts(int(path[10:]))
                status = HTTPStatus.OK if found else HTTPStatus.NOT_FOUND
                self._send(status, found or "null", "application/json")
            elif path == "/favicon.ico":
                self._send(HTTPStatus.NO_CONTENT, "", "text/plain")
            else:
                self._send(HTTPStatus.NOT_FOUND, "not a page of effopd watch", "text/plain")
        except RecordError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error), "text/plain")
        except Exception as error:  # told to the reader, whose page shows it
            said = f"{type(error).__name__}: {error}"
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, said, "text/plain")

    def _send(self, status: HTTPStatus, text: str, kind: str) -> None:
        content = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if status not in (HTTPStatus.NOT_MODIFIED, HTTPStatus.NO_CONTENT):
            self.send_header("Content-Length", str(len(content)))
        # Not kept, not guessed at, not shown inside or read by pages from elsewhere.
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(content)
