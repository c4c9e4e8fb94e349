"""Requests to one server: retried with growing waits, bounded in time, answered in order."""

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from effopd.errors import EffopdError, NonFiniteError, ServerError
from effopd.servers.address import Address
from effopd.servers.connection import Bounds, Reply, exchange
from effopd.servers.failures import NotFiniteAnswerError, PassingError
from effopd.servers.json_text import parse
from effopd.servers.settings import ServerSettings

LONGEST_WAIT_S = 30.0
_PASSING_STATUS = {408, 425, 429}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request.

    Attributes:
        path: From the root of the server.
        payload: Sent as JSON by POST; None is a GET.
    """

    path: str
    payload: dict[str, Any] | None = None


class Step:
    """The time that the requests of one step have together, and whether they still matter.

    Args:
        seconds: All of it.
    """

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
        """Waits, at most to the end of the step."""
        self._given_up.wait(max(0.0, min(seconds, self.left_s)))


class Client:
    """Asks one server.

    Args:
        settings: Where it is, and how patient to be.
        seed: Decides the jitter of the waits.
    """

    def __init__(self, settings: ServerSettings, seed: int = 0) -> None:
        self.settings = settings
        self._address = Address.parse(settings.url)
        self._key = settings.api_key()
        self._seed = seed
        self._lock = threading.Lock()
        self._disturbances = 0

    def __str__(self) -> str:
        return f"{self.settings.model} at {self._address}"

    @property
    def disturbances(self) -> int:
        """Failures so far: where it has grown, the server may have restarted meanwhile."""
        return self._disturbances

    def step(self) -> Step:
        """A new step, which starts now."""
        return Step(self.settings.step_s)

    def ask(
        self,
        call: Call,
        read: Callable[[Any], T],
        step: Step,
        *,
        before_retry: Callable[[], None] | None = None,
        stream: int = 0,
    ) -> T:
        """What `read` makes of the answer; asked again while failures may pass.

        Args:
            call: The request; asking twice must do no harm.
            read: Raises PassingError for a broken answer.
            step: Whose time it takes.
            before_retry: Called before each further try; its failures count as the request's.
            stream: Which sequence of jitter to use.

        Returns:
            The value of `read`.

        Raises:
            NonFiniteError: The last answer held NaN.
            ServerError: All tries failed, or the first failed for good.
        """
        rng = random.Random(f"{self._seed}/{stream}")
        failure: PassingError | None = None
        for attempt in range(self.settings.retries + 1):
            if failure is not None:
                step.wait(self._backoff_s(attempt, rng))
            if step.left_s <= 0:
                raise ServerError(
                    f"{self}: the {step.seconds:g} s of a step (step_s) are over"
                    + (f"; the last failure: {failure}" if failure else "")
                ) from None
            try:
                if failure is not None and before_retry is not None:
                    before_retry()
                return self.ask_once(call, read, step)
            except PassingError as error:
                failure = error
                with self._lock:
                    self._disturbances += 1
        message = f"{self}: {self.settings.retries + 1} tries failed, the last: {failure}"
        if isinstance(failure, NotFiniteAnswerError):
            raise NonFiniteError(message)
        raise ServerError(message)

    def ask_once(self, call: Call, read: Callable[[Any], T], step: Step) -> T:
        """What `read` makes of the answer to one request; both may raise a PassingError."""
        return read(self._answer(call, max(1e-3, min(self.settings.request_s, step.left_s))))

    def ask_all(
        self,
        calls: Sequence[Call],
        reads: Sequence[Callable[[Any], T]],
        step: Step,
        *,
        before_retry: Callable[[], None] | None = None,
    ) -> list[T]:
        """`ask` for each call, several at a time, in the order of the calls.

        Where one fails for good the others are given up, and its error is raised.
        """
        if not calls:
            return []
        first: list[EffopdError] = []

        def one(index: int) -> T:
            try:
                return self.ask(
                    calls[index], reads[index], step, before_retry=before_retry, stream=index
                )
            except EffopdError as error:
                with self._lock:
                    first.append(error)
                step.give_up()
                raise

        with ThreadPoolExecutor(min(self.settings.concurrency, len(calls))) as pool:
            futures = [pool.submit(one, index) for index in range(len(calls))]
            is_over = False
            try:
                wait(futures)
                is_over = True
            finally:
                if not is_over:  # interrupted: the others must not go on
                    step.give_up()
                    pool.shutdown(wait=False, cancel_futures=True)
        if first:
            raise first[0]
        return [future.result() for future in futures]

    def control(self, call: Call, seconds: float) -> None:
        """One request that changes the server; asked once, since it may be done already.

        Raises:
            ServerError: It failed, or the server answers that it did not succeed.
        """
        answer = self._answer(call, seconds)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ServerError(f"{self}: {call.path} did not succeed: {self._shown(answer)}")

    def _answer(self, call: Call, seconds: float) -> Any:
        bounds = Bounds(
            seconds=seconds,
            response_bytes=self.settings.response_bytes,
            allow_link_local=self.settings.allow_link_local,
        )
        headers = {"Accept": "application/json", "Connection": "close"}
        if call.payload is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        body = None if call.payload is None else json.dumps(call.payload).encode()
        reply = exchange(self._address, call.path, body, headers, bounds)
        self._check_status(call, reply)
        return parse(reply.body) if reply.body.strip() else None

    def _check_status(self, call: Call, reply: Reply) -> None:
        if 200 <= reply.status < 300:
            return
        where = f"{self._address}{call.path}: HTTP {reply.status}"
        if reply.status >= 500 or reply.status in _PASSING_STATUS:
            raise PassingError(where)
        if 300 <= reply.status < 400:
            raise ServerError(f"{where}, a redirect, which is not followed: give its target as url")
        if reply.status in {401, 403}:
            raise ServerError(f"{where}: name the variable that holds the key in api_key_env")
        raise ServerError(f"{where}: {self._shown(reply.body.decode('utf-8', 'replace'))}")

    def _shown(self, text: Any) -> str:
        """The start of what the server said, without the key and without control characters."""
        plain = str(text)
        if self._key:
            plain = plain.replace(self._key, "(the key)")
        return ascii(plain[:300])

    def _backoff_s(self, attempt: int, rng: random.Random) -> float:
        longest = min(LONGEST_WAIT_S, self.settings.backoff_s * 2 ** (attempt - 1))
        return longest * (0.5 + 0.5 * rng.random())
