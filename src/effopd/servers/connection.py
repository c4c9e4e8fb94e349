"""One HTTP exchange, bounded in time and size, with the standard library alone.

Redirects are not followed, proxies of the environment are not used, certificates are verified, and
the address that was checked is the one that is connected to.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effopd.errors import ServerError
from effopd.servers.address import Address
from effopd.servers.failures import PassingError

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back.

    Attributes:
        status: HTTP status.
        body: Content, whole.
    """

    status: int
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits of one exchange.

    Attributes:
        seconds: From the first byte sent to the last one read.
        response_bytes: Longest content that is read.
        allow_link_local: See `ServerSettings`.
    """

    seconds: float
    response_bytes: int
    allow_link_local: bool = False


def exchange(
    address: Address,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    bounds: Bounds,
) -> Reply:
    """Sends one request and reads its whole answer; GET without a body, else POST.

    Raises:
        PassingError: The server cannot be reached, was too slow, or broke off.
        ServerError: Its certificate is not trusted, or its answer is too long.
    """
    end = time.monotonic() + bounds.seconds
    connection = http.client.HTTPConnection(address.host, address.port)
    try:
        connection.sock = _TimedSocket(_connected(address, end, bounds), end)
        method = "GET" if body is None else "POST"
        connection.request(method, address.prefix + path, body, dict(headers))
        response = connection.getresponse()
        return Reply(status=response.status, body=_content(response, bounds.response_bytes))
    except ssl.SSLCertVerificationError as error:
        raise ServerError(f"{address}: its certificate is not trusted: {error.reason}") from None
    except TimeoutError:
        raise PassingError(f"{address}{path}: no answer in {bounds.seconds:.3g} s") from None
    except http.client.HTTPException as error:
        raise PassingError(f"{address}{path}: broken answer ({type(error).__name__})") from None
    except ServerError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise PassingError(f"{address}{path}: {reason}") from None
    finally:
        connection.close()


def _connected(address: Address, end: float, bounds: Bounds) -> socket.socket:
    """A connection to the first of the host's addresses that accepts one, encrypted for https."""
    refusal = OSError("no address")
    for ip in address.resolve(allow_link_local=bounds.allow_link_local):
        try:
            plain = socket.create_connection((ip, address.port), timeout=_left(end))
        except OSError as error:
            refusal = error
            continue
        if address.scheme == "http":
            return plain
        context = ssl.create_default_context()
        return context.wrap_socket(plain, server_hostname=address.host)
    raise refusal


def _content(response: http.client.HTTPResponse, most: int) -> bytes:
    """The whole content.

    Raises:
        ServerError: It is longer than allowed.
        PassingError: It ends before the length that was announced.
    """
    if (response.length or 0) > most:
        raise ServerError(f"an answer of {response.length} bytes, allowed are {most}")
    parts, size = [], 0
    while part := response.read1(_CHUNK_BYTES):
        size += len(part)
        if size > most:
            raise ServerError(f"an answer of more than {most} bytes (response_bytes)")
        parts.append(part)
    if response.length:
        raise PassingError(f"an answer that ends {response.length} bytes early")
    return b"".join(parts)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _TimedSocket:
    """The part of a socket that `http.client` uses, with one deadline for all of it."""

    def __init__(self, inner: socket.socket, end: float) -> None:
        self._inner, self._end = inner, end

    def sendall(self, data: bytes) -> None:
        self._inner.settimeout(_left(self._end))
        self._inner.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._inner, self._end))

    def close(self) -> None:
        self._inner.close()


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the deadline, however slowly bytes arrive.

    The raw file inside keeps the socket open, which `http.client` closes before it reads.
    """

    def __init__(self, inner: socket.socket, end: float) -> None:
        self._inner, self._end = inner, end
        self._raw = inner.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._inner.settimeout(_left(self._end))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
