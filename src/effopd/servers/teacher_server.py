"""`effopd serve-teacher`: a teacher over HTTP, by key, with bounds on whatever is sent.

docs/servers.md has the protocol.
"""

import hmac
import json
import queue
import signal
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from effopd.errors import ConfigError
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.policy import Policy
from effopd.servers.hidden_states import HEALTH
from effopd.servers.served_model import Reply, ServedModel, TeacherServerSettings, is_own_address

_BYTES_PER_TOKEN = 16
"""Of a request: a token id in JSON, with room."""
_TEXT_BYTES = 2**20


class TeacherServer:
    """A model at an address: listens inside a `with` block, and answers what waits at its end.

    Args:
        policy: The teacher, all of whose head rows are used, in evaluation mode.
        settings: Where, and what it takes.
    """

    def __init__(self, policy: Policy, settings: TeacherServerSettings) -> None:
        self.settings = settings
        self.model = ServedModel(policy, settings)
        try:
            self._http = _Listener(self.model, settings)
        except OSError:
            self.model.close()
            raise
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}
        )

    @property
    def url(self) -> str:
        """What students give as teacher_server.url."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._http.server_address[1]}"

    def __enter__(self) -> "TeacherServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()  # waits for the answers that are being sent
        self.model.close()


def serve_teacher(
    path: str,
    settings: TeacherServerSettings,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    report: Callable[[str], None],
) -> None:
    """Loads a model and serves it until SIGTERM or Ctrl-C; what waits then is answered first.

    Called by the main thread; `report` receives sentences for people.
    """
    if dtype not in {"float32", "bfloat16", "float16"}:
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    precision = cast("Literal['float32', 'bfloat16', 'float16']", dtype)
    model = ModelSettings(path=path, dtype=precision)
    policy = Policy(load_model(model, device, report), load_tokenizer(model))
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()  # may be put to inside a handler
    numbers = (signal.SIGTERM, signal.SIGINT)
    with TeacherServer(policy, settings) as server:
        previous = {n: signal.signal(n, lambda number, frame: asked.put(number)) for n in numbers}
        report(
            f"{path} is served as {settings.name!r} at {server.url}, up to "
            f"{server.model.context} tokens, {'with' if settings.key else 'without'} a key; "
            f"fingerprint {server.model.fingerprint[:12]}"
        )
        asked.get()
        for number, handler in previous.items():  # the next one ends at once
            signal.signal(number, handler)
        report("stopping: what waits is answered")


class _Listener(ThreadingHTTPServer):
    """A thread a connection, so many at a time."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, model: ServedModel, settings: TeacherServerSettings) -> None:
        self.model, self.settings = model, settings
        self._free = threading.BoundedSemaphore(settings.connections)
        self.address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        super().__init__((settings.host, settings.port), _Handler)

    def server_bind(self) -> None:
        """Without asking for the host's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.settings.host, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread, or hangs up where too many are at work."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Gives the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One request: who asks, how much, then what."""

    server: _Listener

    def setup(self) -> None:
        """Bounds the patience with a client."""
        super().setup()
        self.connection.settimeout(self.server.settings.request_s)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        """Description, head, health."""
        refusal = None if self.path == HEALTH else self._refusal()
        self._send(refusal or self.server.model.answer(self.path, None))

    def do_POST(self) -> None:
        """Token ids."""
        settings = self.server.settings
        length = self.headers.get("Content-Length", "")
        most = settings.max_tokens * _BYTES_PER_TOKEN + _TEXT_BYTES
        if not (length.isdecimal() and len(length) <= 12):
            self._send(Reply.error(411, "Content-Length must say how long the request is"))
            return
        # Refuse before a byte is kept; yet what was sent is read, or the refusal would not arrive.
        refusal = self._refusal()
        if refusal is None and int(length) > most:
            refusal = Reply.error(413, f"a request has at most {most} bytes")
        if refusal is not None:
            for _ in range(0, min(int(length), most), 2**16):
                self.rfile.read1(2**16)
            self._send(refusal)
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            self._send(Reply.error(400, "the body is no JSON"))
            return
        self._send(self.server.model.answer(self.path, [] if asked is None else asked))

    def _refusal(self) -> Reply | None:
        """Of who has no key, and of a browser's pages, which may reach this machine by a name."""
        settings = self.server.settings
        if settings.key:
            given = self.headers.get("Authorization", "").encode("utf-8", "replace")
            if not hmac.compare_digest(given, f"Bearer {settings.key}".encode()):
                return Reply.error(401, "the key is missing or wrong")
        elif not is_own_address(urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""):
            return Reply.error(403, "Host is not this machine's own address")
        return None

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.content)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.content)
