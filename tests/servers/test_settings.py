"""Where requests may go, and how the key stays out of sight."""

from typing import Any

import pytest

from effopd.errors import ConfigError
from effopd.servers.settings import ServerSettings

SECRET = "hunter2-canary"


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000", "https://h", "http://h/", "http://10.0.0.1/a/", "http://[::1]:9"],
)
def test_roots_of_servers_are_accepted(url: str) -> None:
    assert ServerSettings(url=url, model="m").url == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "must be http://"),
        ("ftp://example.org", "must be http://"),
        ("gopher://example.org:70", "must be http://"),
        ("localhost:8000", "must be http://"),
        ("//example.org", "must be http://"),
        ("http://", "must be http://"),
        ("http://example.org/v1", "without /v1"),
        ("http://example.org/v1/", "without /v1"),
        (f"http://user:{SECRET}@example.org", "api_key_env"),
        (f"http://{SECRET}@example.org", "api_key_env"),
        (f"http://example.org?token={SECRET}", "query"),
        (f"http://example.org#{SECRET}", "fragment"),
        (f"http://example.org:{SECRET}", "not a valid URL"),
        (f"http://example.org/{SECRET}\r\nHost: x", "characters"),
        (f"http://exa mple.org/{SECRET}", "characters"),
        ("http://example.org:99999", "not a valid URL"),
    ],
)
def test_other_urls_are_refused_without_their_secrets(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ServerSettings(url=url, model="m")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model must be"),
        ({"api_key_env": "sk-canary-0123"}, "api_key_env must be the name"),
        ({"request_s": 0.0}, "request_s must be positive, got 0.0"),
        ({"step_s": float("nan")}, "step_s must be positive"),
        ({"tolerance_nats": -1.0}, "tolerance_nats must be positive"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"response_bytes": 0}, "response_bytes must be at least 1"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"missing_retries": -1}, "missing_retries must be at least 0"),
        ({"missing_share": 1.0}, "missing_share must be at least 0 and below 1, got 1.0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_k": 5, "flavor": "effopd"}, "top_k is for vLLM and SGLang"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ServerSettings(**({"url": "http://h", "model": "m"} | changes))
    assert "canary" not in str(error.value)


def test_the_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ServerSettings(url="http://h", model="m")
    assert plain.api_key() == ""
    named = ServerSettings(url="http://h", model="m", api_key_env="A_KEY")
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(ConfigError, match="A_KEY is not set"):
        named.api_key()
    monkeypatch.setenv("A_KEY", SECRET)
    assert named.api_key() == SECRET
    assert SECRET not in repr(named)
    monkeypatch.setenv("A_KEY", f"{SECRET}\r\nX: y")
    with pytest.raises(ConfigError, match="holds no API key") as error:
        named.api_key()
    assert SECRET not in str(error.value)
