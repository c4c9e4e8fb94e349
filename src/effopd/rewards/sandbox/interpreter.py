"""The interpreter that runs inside: the one of this process, without its environment."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from effopd.errors import ConfigError

_SYSTEM_LIBRARIES = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib32",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
)
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "PYTHONHASHSEED": "0",  # the order of a set must not depend on the process
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""All of it: nothing of this process's own goes inside."""
CODE = Path(__file__).parent
"""The directory above the package `inside`."""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """What a process needs to read to run Python.

    Attributes:
        executable: The program.
        readable: Files and directories: the program, its library, and the packages asked for.
        package_paths: What is added to `sys.path` for those packages.
    """

    executable: str
    readable: tuple[str, ...]
    package_paths: tuple[str, ...]


def this_interpreter(packages: tuple[str, ...]) -> Interpreter:
    """The interpreter of this process, without a virtual environment.

    Args:
        packages: Names of packages that can be imported here and shall be there.

    Returns:
        The interpreter, at its own path: moved, it might load another one's library.
    """
    executable = os.path.realpath(sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    own = [executable] if prefix == "/usr" else [executable, prefix]
    found = [_package(name) for name in packages]
    readable = [*own, *(path for paths in found for path in paths)]
    return Interpreter(
        executable=executable,
        readable=tuple(dict.fromkeys([*filter(os.path.exists, _SYSTEM_LIBRARIES), *readable])),
        package_paths=tuple(dict.fromkeys(str(Path(paths[0]).parent) for paths in found)),
    )


def _package(name: str) -> list[str]:
    """Where a package lies, with the libraries that its wheel brought.

    Raises:
        ConfigError: It is not installed, or is no package.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"packages must be installed here, and {name!r} is not")
    path = os.path.realpath(next(iter(spec.submodule_search_locations)))
    return [each for each in (path, f"{path}.libs") if os.path.isdir(each)]
