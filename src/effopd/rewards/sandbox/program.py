"""What runs in a sandbox, under which limits, what comes of it, and which sandbox is used."""

import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from effopd.errors import ConfigError

Kind = Literal["landlock", "url", "none"]
Status = Literal[
    "finished", "runtime_error", "timeout", "memory", "output_limit", "sandbox_error"
]  # fmt: skip
"""How a program ended. "sandbox_error" says nothing of the program: the sandbox itself failed,
also when it was tried again in a fresh one."""

MAX_SOURCE_BYTES = 8 * 1024**2
MAX_INPUT_BYTES = 256 * 1024**2
_DELETED_KINDS = ("auto", "bubblewrap")
MIXED_INPUTS = "inputs must be bytes for a script and lists of arguments for a function"


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """The boundary in which programs written by a model run.

    Attributes:
        kind: "landlock" is this machine's: Landlock, a seccomp filter and limits. "url" asks a
            server. "none" protects nothing.
        processes: Programs that run at once.
        packages: Packages of this environment that programs may import, for instance "numpy".
            The standard library is always there.
        url: Of the server, for "url": it speaks SandboxFusion's `/run_code`.
    """

    kind: Kind = "landlock"
    processes: int = 2
    packages: tuple[str, ...] = ()
    url: str = ""

    def __post_init__(self) -> None:
        if self.kind in _DELETED_KINDS:
            raise ConfigError(
                f'kind = {self.kind!r} was deleted: use "landlock", the default, which stops every '
                "known attack without namespaces"
            )
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
        if not self.url:
            return
        try:
            parts = urllib.parse.urlsplit(self.url)
            is_right = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            is_right = False
        if not is_right or parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(
                "url must be http://HOST or https://HOST, without user, password, query and "
                f"fragment, got {self.url!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Program:
    """A Python program; `entry_point` names a function (or method of `Solution`), "" a script."""

    source: str
    entry_point: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use on one test; memory beyond what the interpreter takes."""

    wall_s: float = 10.0
    cpu_s: float = 6.0
    memory_bytes: int = 1024**3
    output_bytes: int = 8 * 1024**2

    def __post_init__(self) -> None:
        for name, least, most in (
            ("wall_s", 1e-3, 3600), ("cpu_s", 1e-3, 3600), ("memory_bytes", 2**24, 2**40),
            ("output_bytes", 2**10, 2**28),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must be {least} to {most}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one test came to."""

    status: Status
    stdout: bytes = b""  # what a script printed; at most `output_bytes`
    value: Any = None  # what the function returned, as plain built-ins; None unless finished
    seconds: float = 0.0  # by the clock, without the start of the sandbox
    detail: str = ""  # the end of standard error, or what was wrong; printable, for people


GoesOn = Callable[[int, Outcome], bool]
"""(index of an input, its outcome) -> whether the program is run on the next."""


class Sandbox(Protocol):
    """Runs programs it does not trust. Threads may share one: a program holds one process."""

    @property
    def kind(self) -> str:
        """What the boundary is: "landlock", "url" or "none"."""
        ...

    def run(
        self,
        program: Program,
        inputs: Sequence[bytes | list[Any]],
        limits: Limits,
        goes_on: GoesOn | None = None,
    ) -> list[Outcome]:
        """Runs a program once for each input, each time from the start.

        Calls of a function may share a process; the program is then executed before each.
        """
        ...

    def close(self) -> None:
        """Ends its processes; the next run starts others."""
        ...


def printable(text: str) -> str:
    """The last 2,000 characters, with a space for what a terminal might obey."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text[-2000:]).strip()
