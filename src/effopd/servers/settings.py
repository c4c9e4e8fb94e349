"""Where an inference server is, and how patient we are with it."""

import math
import os
import re
from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError
from effopd.servers.address import Address

Flavor = Literal["vllm", "sglang"]

_POSITIVE = ("request_s", "step_s", "backoff_s", "tolerance_nats")
_COUNTS = ("concurrency", "response_bytes")


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
        allow_link_local: Allow addresses like 169.254.169.254, where clouds keep credentials.
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
    allow_link_local: bool = False

    def __post_init__(self) -> None:
        Address.parse(self.url)
        if not self.model:
            raise ConfigError("model must be the name that the server serves, got an empty one")
        if self.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.api_key_env):
            raise ConfigError(
                "api_key_env must be the name of an environment variable, not the key itself "
                "(what was given is not shown)"
            )
        for name in _POSITIVE:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.retries < 0:
            raise ConfigError(f"retries must be at least 0, got {self.retries}")

    def api_key(self) -> str:
        """The key, read now from the environment; "" where none is needed.

        Raises:
            ConfigError: The variable is not set, or what it holds cannot go into a header.
        """
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
