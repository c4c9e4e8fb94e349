"""Opens the sandbox that the settings name, or says why there is none."""

import os
import sys
from pathlib import Path

from effopd.errors import ConfigError, MissingExtraError
from effopd.rewards.sandbox import bubblewrap, seccomp
from effopd.rewards.sandbox.inside.kernel import landlock_abi
from effopd.rewards.sandbox.interpreter import CODE, Interpreter, this_interpreter
from effopd.rewards.sandbox.local import LocalSandbox
from effopd.rewards.sandbox.program import Limits, Program, Sandbox
from effopd.rewards.sandbox.server_process import BrokenServerError, ServerProcess, StartPlan
from effopd.rewards.sandbox.settings import SandboxSettings
from effopd.rewards.sandbox.url import UrlSandbox

_MOST_THREADS = 512
_REMEDY = "apt install bubblewrap libseccomp2, name a server by url, or accept none by kind = none"
_WARNING = (
    "warning: programs written by a model run without a sandbox: they can read, change and send "
    "what you can\n"
)
_PROBE = """
import os, _socket
def held(act, *args):
    try:
        act(*args)
    except OSError:
        return 1
    return 0
probe = os.path.join("/tmp", "effopd-probe")
print(held(open, "/etc/passwd"), held(open, probe, "w"), held(os.fork),
      held(_socket.socket), held(os.kill, os.getppid(), 0))
"""
"""Acts that every boundary on this machine refuses; a child that forks prints twice."""


def open_sandbox(settings: SandboxSettings) -> Sandbox:
    """A sandbox that has shown that it holds.

    Raises:
        ConfigError: It does not work on this machine; the message says what to do.
    """
    if settings.kind == "url":
        return UrlSandbox(settings)
    if settings.kind == "none":
        sys.stderr.write(_WARNING)
        return _local(settings, "none")
    if settings.kind != "auto":
        return _proven(settings, settings.kind)
    reasons = []
    for kind in ("bubblewrap", "landlock"):
        try:
            return _proven(settings, kind)
        except (ConfigError, MissingExtraError) as error:
            reasons.append(f"{kind}: {error}")
    raise ConfigError(f"no sandbox works here ({'; '.join(reasons)}). {_REMEDY}")


def _proven(settings: SandboxSettings, kind: str) -> LocalSandbox:
    """A sandbox in which a program that tries to get out fails.

    Raises:
        ConfigError: It got out, or did not run.
    """
    sandbox = _local(settings, kind)
    probe = sandbox.run(Program(source=_PROBE), [b""], Limits())[0]
    if probe.status != "finished" or probe.stdout.split() != [b"1"] * 5:
        sandbox.close()
        raise ConfigError(
            f"a sandbox of kind {kind!r} does not hold here: a program that tried to get out "
            f"came to {probe.status} {probe.stdout[:100]!r} {probe.detail[-200:]}"
        )
    return sandbox


def _local(settings: SandboxSettings, kind: str) -> LocalSandbox:
    """Fork servers behind a boundary, the first of them started.

    Raises:
        ConfigError: The first does not start, or would run another Python.
    """
    plan = _plan(this_interpreter(settings.packages), settings.packages, kind)
    try:
        first = ServerProcess(plan)
    except BrokenServerError as error:
        raise ConfigError(f"a sandbox of kind {kind!r} does not start: {error}") from error
    sandbox = LocalSandbox(kind, plan, settings.processes)
    if first.hello.get("version") != sys.version:
        first.end()
        raise ConfigError(f"the sandbox runs another Python: {first.hello.get('version')!r}")
    sandbox.adopt(first)
    return sandbox


def _plan(interpreter: Interpreter, packages: tuple[str, ...], kind: str) -> StartPlan:
    """How a server of a kind is started.

    Raises:
        ConfigError: The kernel has no Landlock, and the kind needs it.
    """
    is_root, is_bound = os.geteuid() == 0, kind != "none"
    abi = landlock_abi()
    if kind == "landlock" and abi < 1:
        raise ConfigError("this kernel has no Landlock, or it is off: Linux 5.13 or newer has it")
    is_namespaced = kind == "bubblewrap"
    threads = _most_threads(is_root or is_namespaced) if is_bound else 0
    configuration = {
        "code": bubblewrap.INSIDE_CODE if is_namespaced else str(CODE),
        "paths": list(interpreter.package_paths),
        "packages": list(packages),
        "readable": interpreter.granted(),
        "is_landlocked": is_bound and abi > 0,
        "is_user_new": is_bound and is_root,
        "instructions": seccomp.instructions().hex() if is_bound else "",
        "threads": threads,
        "watched_threads": _MOST_THREADS if threads > _MOST_THREADS else 0,
    }
    return StartPlan(
        command=tuple(bubblewrap.command(interpreter)) if is_namespaced else (),
        executable=interpreter.executable,
        configuration=configuration,
    )


def _most_threads(is_alone: bool) -> int:
    """RLIMIT_NPROC, which counts all threads of a user in a namespace.

    Where a program has neither for itself, its server counts its threads, and this is far above.
    """
    if is_alone:
        return _MOST_THREADS
    own = [path for path in Path("/proc").glob("[0-9]*") if _owner(path) == os.geteuid()]
    return 16 * _MOST_THREADS + sum(_threads(path) for path in own)


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return None


def _threads(path: Path) -> int:
    try:
        return len(list((path / "task").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return 0
