"""The command line of bubblewrap: a root directory of its own, nothing writable, no network."""

import os
import shutil
import subprocess
from pathlib import PurePath

from effopd.errors import ConfigError
from effopd.rewards.sandbox.interpreter import CODE, ENVIRONMENT, Interpreter

INSIDE_CODE = "/boundary"
"""Where the package `inside` lies inside."""
_INSIDE = INSIDE_CODE + "/inside"


def command(interpreter: Interpreter) -> list[str]:
    """Bwrap and its arguments, up to the program that it starts.

    Root keeps only what it needs to become somebody else, which the server does at once: root that
    is merely renamed in a user namespace still reads what only root may. Others get a user
    namespace.

    Raises:
        ConfigError: bubblewrap is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise ConfigError("bubblewrap is not installed: apt install bubblewrap")
    return [
        bwrap,
        *(_for_root() if os.geteuid() == 0 else _for_others(bwrap)),
        *("--die-with-parent", "--new-session", "--hostname", "sandbox"),
        *_files(interpreter),
        *("--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--dir", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"),
        "--clearenv",
        *(part for pair in ENVIRONMENT.items() for part in ("--setenv", *pair)),
    ]


def _for_root() -> list[str]:
    kinds = ("ipc", "pid", "net", "uts")
    unshared = [f"--unshare-{kind}" for kind in kinds]
    kept = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*unshared, "--unshare-cgroup-try", *kept]


def _for_others(bwrap: str) -> list[str]:
    manual = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False).stdout
    further = ["--disable-userns"] if "--disable-userns" in manual else []  # since 0.8
    return ["--unshare-user", "--unshare-all", *further]


def _files(interpreter: Interpreter) -> list[str]:
    """Each path where it is outside, so that the interpreter finds its own library."""
    arguments: list[str] = []
    made: set[str] = {"/"}
    shown = (*interpreter.system, *interpreter.own)
    for path in (*sorted(shown), *interpreter.hidden, *interpreter.packages, _INSIDE):
        above = [str(each) for each in reversed(PurePath(path).parents)]
        for directory in [each for each in above if each not in made]:
            made.add(directory)
            if not _is_below(directory, shown) and not os.path.islink(directory):
                arguments += ["--perms", "0755", "--dir", directory]
        if path in interpreter.hidden:
            arguments += ["--perms", "0755", "--tmpfs", path]
        elif os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        else:
            arguments += ["--ro-bind", str(CODE / "inside") if path == _INSIDE else path, path]
    return arguments + [part for path in interpreter.hidden for part in ("--remount-ro", path)]


def _is_below(directory: str, paths: tuple[str, ...]) -> bool:
    return any(PurePath(directory).is_relative_to(path) for path in paths)
