"""Where an inference server is, and how patient its client is."""

import math
import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from effopd.errors import ConfigError

Flavor = Literal["vllm", "sglang", "effopd"]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """One server of vLLM, SGLang or effopd's own teachers.

    Attributes:
        url: `http://host:port`, or https; without `/v1`, user, password and query.
        model: Name under which the server serves its model.
        flavor: Which server it is; "effopd" is `effopd serve-teacher`.
        top_k: Most likely tokens of each place that vLLM or SGLang names with their
            log-probabilities; 0 asks for those of the given tokens alone.
        api_key_env: Name of the environment variable that holds the API key; "" sends none. The
            key itself is never a setting, so it cannot end in a record.
        request_s: Seconds one request may take, its answer included.
        step_s: Seconds all requests of one step may take together, waiting included.
        retries: Further tries of one request after the first.
        backoff_s: Wait before the first of them; it doubles with each, up to 30 seconds.
        missing_retries: Further tries, of these, for an answer in which log-probabilities are null
            or NaN; what is missing then counts as missing.
        missing_share: Share of a step's tokens that may be missing, where more than one answer is
            concerned.
        concurrency: Requests at a time.
        response_bytes: Longest answer that is read.
        tolerance_nats: Mean difference of log-probabilities beyond which two answers are not those
            of one model. Servers answer a little differently in each batch.
    """

    url: str
    model: str
    flavor: Flavor = "vllm"
    top_k: int = 0
    api_key_env: str = ""
    request_s: float = 120.0
    step_s: float = 1800.0
    retries: int = 8
    backoff_s: float = 0.5
    missing_retries: int = 2
    missing_share: float = 0.05
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
        smallest = {"concurrency": 1, "response_bytes": 1, "retries": 0, "missing_retries": 0}
        for name, least in (smallest | {"top_k": 0}).items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.missing_share < 1:
            raise ConfigError(
                f"missing_share must be at least 0 and below 1, got {self.missing_share}"
            )
        if self.top_k and self.flavor == "effopd":
            raise ConfigError(
                "top_k is for vLLM and SGLang; flavor = 'effopd' gives hidden states, from which "
                "the whole vocabulary is computed: leave top_k out"
            )

    def api_key(self) -> str:
        """The key, read now from the environment; "" where none is needed."""
        return key_from(self.api_key_env)


def key_from(variable: str, setting: str = "api_key_env") -> str:
    """The key in an environment variable; "" where none is named."""
    if not variable:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(
            f"the environment variable {variable} is not set: export it, or remove {setting}"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the environment variable {variable} holds no API key")
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
