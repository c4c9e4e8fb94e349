"""Requests to one server: retried with growing waits, bounded in time, answered in order."""

import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx2

from effopd.errors import EffopdError, NonFiniteError, ServerError, see
from effopd.servers.settings import ServerSettings

LONGEST_WAIT_S = 30.0
_TRANSIENT_STATUS = {408, 425, 429}

T = TypeVar("T")


class TransientServerError(ServerError):
    """A failure that may pass: the server was away, overloaded, or sent something broken."""


class IncompleteAnswerError(TransientServerError):
    """Values of an answer were null or not finite; `partial` is the answer with NaN for them."""

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial


@dataclass(frozen=True, kw_only=True)
class ServerRequest:
    """A path from the root of the server; the payload is sent as JSON by POST, None is a GET.

    The answer is JSON, or bytes where `is_binary`. `most_bytes` is its length where that is known
    before, and may be above the `response_bytes` of the settings.
    """

    path: str
    payload: dict[str, Any] | None = None
    is_binary: bool = False
    most_bytes: int = 0


class Deadline:
    """The time that the requests of one step share, and whether their answers still matter."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._given_up = threading.Event()

    @property
    def left_s(self) -> float:
        """Seconds left; not positive when the time is over or the step was given up."""
        return 0.0 if self._given_up.is_set() else self._end - time.monotonic()

    def give_up(self) -> None:
        """Ends the waits of all its requests."""
        self._given_up.set()

    def wait(self, seconds: float) -> None:
        """Waits, at most until the deadline."""
        self._given_up.wait(max(0.0, min(seconds, self.left_s)))


class Client:
    """Asks one server; `seed` decides the jitter of the waits.

    Redirects are not followed and proxies of the environment are not used. Every request has a
    connection of its own: a server that restarts leaves no dead one behind.
    """

    def __init__(self, settings: ServerSettings, seed: int = 0) -> None:
        self.settings = settings
        self._url = settings.url.rstrip("/")
        self._key = settings.api_key()
        self._seed = seed
        self._lock = threading.Lock()
        self.disturbances = 0  # failures; where it has grown, the server may have restarted
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        self._http = httpx2.Client(
            headers=headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            verify=ssl.create_default_context() if self._url.startswith("https:") else False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
        )

    def __str__(self) -> str:
        return f"{self.settings.model} at {self._url}"

    def deadline(self) -> Deadline:
        """The deadline of a step that starts now."""
        return Deadline(self.settings.step_s)

    def ask(
        self,
        request: ServerRequest,
        read: Callable[[Any], T],
        deadline: Deadline,
        *,
        before_retry: Callable[[], None] | None = None,
        accept_incomplete: bool = False,
        stream: int = 0,
    ) -> T:
        """What `read` makes of the answer; asked again while failures may pass.

        With `accept_incomplete`, an answer whose values are missing is asked for `missing_retries`
        times again, then taken as it is.
        """
        rng = random.Random(f"{self._seed}/{stream}")
        failure: TransientServerError | None = None
        patience = min(self.settings.missing_retries, self.settings.retries)
        for attempt in range(self.settings.retries + 1):
            if failure is not None:
                deadline.wait(self._backoff_s(attempt, rng))
            if deadline.left_s <= 0:
                raise ServerError(
                    f"{self}: the {deadline.seconds:g} s of a step (step_s) are over"
                    + (f"; the last failure: {failure}" if failure else "")
                    + see("teacher-server")
                ) from None
            try:
                if failure is not None and before_retry is not None:
                    before_retry()
                return self.ask_once(request, read, deadline)
            except IncompleteAnswerError as error:  # no sign of a restart
                failure, patience = error, patience - 1
                if accept_incomplete and patience < 0:
                    return cast("T", error.partial)
            except TransientServerError as error:
                failure = error
                with self._lock:
                    self.disturbances += 1
        message = f"{self}: {self.settings.retries + 1} tries failed, the last: {failure}"
        if isinstance(failure, IncompleteAnswerError):
            raise NonFiniteError(message)
        raise ServerError(message + see("teacher-server"))

    def ask_once(self, request: ServerRequest, read: Callable[[Any], T], deadline: Deadline) -> T:
        """What `read` makes of the answer to one request; both may fail transiently."""
        return read(self._answer(request, max(1e-3, min(self.settings.request_s, deadline.left_s))))

    def ask_all(
        self,
        requests: Sequence[ServerRequest],
        reads: Sequence[Callable[[Any], T]],
        deadline: Deadline,
        *,
        before_retry: Callable[[], None] | None = None,
        accept_incomplete: bool = False,
    ) -> list[T]:
        """`ask` for each request, several at a time, in the order of the requests.

        Where one fails for good the others are given up, and its error is raised.
        """
        if not requests:
            return []
        first: list[EffopdError] = []

        def one(index: int) -> T:
            try:
                return self.ask(
                    requests[index], reads[index], deadline, before_retry=before_retry,
                    accept_incomplete=accept_incomplete, stream=index,
                )  # fmt: skip
            except EffopdError as error:
                with self._lock:
                    first.append(error)
                deadline.give_up()
                raise

        with ThreadPoolExecutor(min(self.settings.concurrency, len(requests))) as pool:
            futures = [pool.submit(one, index) for index in range(len(requests))]
            try:
                wait(futures)
            except BaseException:  # interrupted: the others must not go on
                deadline.give_up()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if first:
            raise first[0]
        return [future.result() for future in futures]

    def control(self, request: ServerRequest, seconds: float) -> None:
        """One request that changes the server; asked once, since it may be done already."""
        answer = self._answer(request, seconds)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ServerError(f"{self}: {request.path} did not succeed: {self._shown(answer)}")

    def _answer(self, request: ServerRequest, seconds: float) -> Any:
        """The bytes or the JSON value of an answer within `seconds`; None where it is empty."""
        url = self._url + request.path
        most = max(self.settings.response_bytes, request.most_bytes)
        end = time.monotonic() + seconds
        method = "GET" if request.payload is None else "POST"
        body = bytearray()
        try:
            with self._http.stream(method, url, json=request.payload, timeout=seconds) as reply:
                # The library bounds each read, not their sum: a trickle would last for ever.
                for part in reply.iter_bytes():
                    body += part
                    if len(body) > most:
                        raise ServerError(
                            f"{url}: an answer longer than allowed are {most} bytes "
                            "(response_bytes)"
                        )
                    if time.monotonic() > end:
                        raise TransientServerError(f"{url}: no answer in {seconds:.3g} s")
        except httpx2.TimeoutException:
            raise TransientServerError(f"{url}: no answer in {seconds:.3g} s") from None
        except httpx2.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ServerError(f"{url}: its certificate is not trusted: {error}") from None
            raise TransientServerError(f"{url}: {error or type(error).__name__}") from None
        status, where = reply.status_code, f"{url}: HTTP {reply.status_code}"
        if status >= 500 or status in _TRANSIENT_STATUS:
            raise TransientServerError(where)
        if 300 <= status < 400:
            raise ServerError(f"{where}, a redirect, which is not followed: give its target as url")
        if status in {401, 403}:
            raise ServerError(f"{where}: name the variable that holds the key in api_key_env")
        if not 200 <= status < 300:
            raise ServerError(f"{where}: {self._shown(body.decode('utf-8', 'replace'))}")
        if request.is_binary or not body.strip():
            return bytes(body) or None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            message = f"{url}: an answer of {len(body)} bytes that is no JSON"
            raise TransientServerError(message) from None

    def _shown(self, text: Any) -> str:
        """The start of what the server said, without the key and without control characters."""
        plain = str(text).replace(self._key, "(the key)") if self._key else str(text)
        return ascii(plain[:300])

    def _backoff_s(self, attempt: int, rng: random.Random) -> float:
        longest = min(LONGEST_WAIT_S, self.settings.backoff_s * 2 ** (attempt - 1))
        return longest * (0.5 + 0.5 * rng.random())
