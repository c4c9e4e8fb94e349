"""Addresses of servers, checked before anything is sent there."""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from effopd.errors import ConfigError, ServerError
from effopd.servers.failures import PassingError

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Address:
    """The root of a server.

    Attributes:
        scheme: "http" or "https".
        host: Name or IP address.
        port: TCP port.
        prefix: Path that every path of the server starts with; "" for none.
    """

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """The address in a URL; a URL that holds secrets is refused without showing it.

        Raises:
            ConfigError: It is no plain http or https URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError("url is not a valid URL (it is not shown)") from None
        _check_plain(parts, url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ConfigError(f"url must be http://host:port or https://host:port, got {url!r}")
        path = parts.path.rstrip("/")
        if path.endswith("/v1"):
            raise ConfigError(f"url is the root of the server, without /v1, got {url!r}")
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port or _DEFAULT_PORTS[parts.scheme],
            prefix=path,
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"

    def resolve(self, *, allow_link_local: bool) -> list[str]:
        """IP addresses of the host, each checked: what is connected to is what was checked.

        Raises:
            PassingError: The name cannot be resolved.
            ServerError: An address is link-local, which is not allowed.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise PassingError(f"{self}: the host is not known ({error.strerror})") from None
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        for address in addresses:
            if not allow_link_local and _is_link_local(address):
                raise ServerError(
                    f"{self} is the link-local address {address}, where clouds keep credentials: "
                    "set allow_link_local if it is meant"
                )
        return addresses


def _check_plain(parts: SplitResult, url: str) -> None:
    if "@" in parts.netloc:
        raise ConfigError(
            "url holds a user or password (it is not shown): put the key into an environment "
            "variable and name that in api_key_env"
        )
    if parts.query or parts.fragment:
        raise ConfigError(
            "url has a query or fragment, which may be a secret (it is not shown): remove it"
        )
    if not url.isascii() or not url.isprintable() or any(c in url for c in ' \\"<>'):
        raise ConfigError("url holds characters that no URL has (it is not shown)")


def _is_link_local(address: str) -> bool:
    """Whether it is 169.254/16 or fe80::/10, also written as an IPv4 address inside IPv6."""
    plain = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(plain, "ipv4_mapped", None)
    return (mapped or plain).is_link_local
