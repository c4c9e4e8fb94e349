"""The interpreter that runs inside: the one of this process, without its environment."""

import glob
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from effopd.errors import ConfigError

_SYSTEM_LIBRARIES = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib32",
    "/lib",
    "/lib64",
)
_MULTIARCH = getattr(sys.implementation, "_multiarch", "")
"""Name of the directory for shared objects of this machine, where the system has one."""
_ZONES = "/usr/share/zoneinfo"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "PYTHONHASHSEED": "0",  # the order of a set must not depend on the process
    "MALLOC_ARENA_MAX": "1",  # each other one takes 64 MiB of address space
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
        system: Directories with the libraries of the system.
        own: Files and directories: the program, its library, and what that is linked with.
        hidden: Directories below them that hold packages, of this interpreter and of others.
        packages: Directories of the packages asked for; they may lie in hidden ones.
        package_paths: What is added to `sys.path` for those packages.
    """

    executable: str
    system: tuple[str, ...]
    own: tuple[str, ...]
    hidden: tuple[str, ...]
    packages: tuple[str, ...]
    package_paths: tuple[str, ...]

    def granted(self) -> list[str]:
        """What may be read: these files, and all that lies below these directories.

        Of the libraries of the system, shared objects alone. A directory that holds something else
        as well is not among them, and so cannot be listed.
        """
        shared: list[str] = []
        for path in map(os.path.realpath, self.system):
            shared += [each for each in glob.glob(f"{path}/*.so*") if os.path.isfile(each)]
            shared += [f"{path}/{_MULTIARCH}"] if _MULTIARCH else []
        own = [each for path in self.own for each in _without(path, self.hidden)]
        found = map(os.path.realpath, [*sorted(shared), *own, *self.packages])
        return [each for each in dict.fromkeys(found) if os.path.exists(each)]


def this_interpreter(packages: tuple[str, ...]) -> Interpreter:
    """The interpreter of this process, without a virtual environment.

    Args:
        packages: Names of packages that can be imported here and shall be there.

    Returns:
        The interpreter, at its own path: moved, it might load another one's library.
    """
    executable = os.path.realpath(sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    library = os.path.dirname(os.path.realpath(os.__file__))
    linked = [] if prefix == "/usr" else sorted(glob.glob(f"{prefix}/lib*/*.so*"))
    system = tuple(filter(os.path.exists, _SYSTEM_LIBRARIES))
    found = [_package(name) for name in packages]
    return Interpreter(
        executable=executable,
        system=system,
        own=(executable, library, *linked, *filter(os.path.exists, [_ZONES])),
        hidden=tuple(sorted(_package_directories(system, library))),
        packages=tuple(dict.fromkeys(path for paths in found for path in paths)),
        package_paths=tuple(dict.fromkeys(str(Path(paths[0]).parent) for paths in found)),
    )


def _package_directories(system: tuple[str, ...], library: str) -> set[str]:
    """Those of this interpreter, and all that other interpreters of the system have."""
    found = {f"{library}/{name}" for name in ("site-packages", "dist-packages")}
    for path in map(os.path.realpath, system):
        found |= {each for each in glob.glob(f"{path}/py*[0-9]*") if not _is_below(library, each)}
    return {path for path in found if os.path.isdir(path) and not os.path.islink(path)}


def _without(path: str, hidden: tuple[str, ...]) -> Iterator[str]:
    """The path; or, where directories in it are hidden, all else that lies in it."""
    if not any(_is_below(each, path) for each in hidden):
        yield path
        return
    for each in sorted(os.listdir(path)):
        below = f"{path}/{each}"
        if below not in hidden and (os.path.isfile(below) or not os.path.islink(below)):
            yield from _without(below, hidden)


def _is_below(path: str, directory: str) -> bool:
    return PurePath(path).is_relative_to(directory)


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
