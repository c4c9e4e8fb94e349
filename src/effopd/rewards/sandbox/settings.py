"""Which sandbox is used, and how much of it."""

import urllib.parse
from dataclasses import dataclass
from typing import Literal, get_args

from effopd.errors import ConfigError

Kind = Literal["auto", "bubblewrap", "landlock", "url", "none"]


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """The boundary in which programs written by a model run.

    Attributes:
        kind: "bubblewrap" has namespaces of its own and is the strongest. "landlock" does without,
            where they are not to be had. "auto" is the first of the two that works. "url" asks a
            server. "none" protects nothing.
        processes: Programs that run at once.
        packages: Packages of this environment that programs may import, for instance "numpy".
            The standard library is always there.
        url: Of the server, for "url": it speaks SandboxFusion's `/run_code`.
    """

    kind: Kind = "auto"
    processes: int = 2
    packages: tuple[str, ...] = ()
    url: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind must be one of {get_args(Kind)}, got {self.kind!r}")
        if not 1 <= self.processes <= 1024:
            raise ConfigError(f"processes must be 1 to 1024, got {self.processes}")
        for package in self.packages:
            if not package.isidentifier():
                raise ConfigError(f"packages must be names that can be imported, got {package!r}")
        if (self.kind == "url") != bool(self.url):
            raise ConfigError(
                f'url must be given with kind "url" and only then, got {self.kind!r}, {self.url!r}'
            )
        if self.url:
            self._check_url()

    def _check_url(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"url must be a URL, got {self.url!r}: {error}") from error
        if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
            raise ConfigError(f"url must be http://HOST or https://HOST, got {self.url!r}")
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError("url must have no user, password, query or fragment")
