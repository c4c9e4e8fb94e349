"""Where an inference server is, and how patient its client is."""

import math
import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from effopd.errors import ConfigError

Flavor = Literal["vllm", "sglang"]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """One vLLM or SGLang server.

    Attributes:
        url: `http://host:port`, or https; without `/v1`, user, password and query.
        model: Name under which the server serves its model.
        flavor: Which server it is.
        api_key_env: Name of the environment variable that holds the API key; "" sends none. The
            key itself is never a setting, so it cannot end in a record.
        request_s: Seconds one request may take, its answer included.
        step_s: Seconds all requests of one step may take together, waiting included.
        retries: Further tries of one request after the first.
        backoff_s: Wait before the first of them; it doubles with each, up to 30 seconds.
        concurrency: Requests at a time.
        response_bytes: Longest answer that is read.
        tolerance_nats: Mean difference of log-probabilities beyond which two answers are not those
            of one model. Servers answer a little differently in each batch.
    """

    url: str
    model: str
    flavor: Flavor = "vllm"
    api_key_env: str = ""
    request_s: float = 120.0
    step_s: float = 1800.0
    retries: int = 8
    backoff_s: float = 0.5
    concurrency: int = 16
    response_bytes: int = 256 * 2**20
    tolerance_nats: float = 0.05

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not self.model:
            raise ConfigError("model must be the name that the server serves, got an empty one")
        if self.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.api_key_env):
            raise ConfigError(
                "api_key_env must be the name of an environment variable, not the key itself "
                "(what was given is not shown)"
            )
        for name in ("request_s", "step_s", "backoff_s", "tolerance_nats"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        for name, least in (("concurrency", 1), ("response_bytes", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def api_key(self) -> str:
        """The key, read now from the environment; "" where none is needed."""
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} is not set: export it, or remove "
                "api_key_env"
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"the environment variable {self.api_key_env} holds no API key")
        return key


def _check_url(url: str) -> None:
    """Refuses everything but the plain root of a server; a URL that may hold secrets is not shown.

    The port is read because urlsplit checks it only then.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigError("url is not a valid URL (it is not shown)") from None
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
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"url must be http://host:port or https://host:port, got {url!r}")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ConfigError(f"url is the root of the server, without /v1, got {url!r}")
