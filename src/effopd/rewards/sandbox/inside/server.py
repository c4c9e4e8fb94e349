"""The fork server: waits inside the boundary, and has each job run in a fresh child.

It knows nothing of any program. A request is a packet of numbers that comes with descriptors; the
child it forks reads the program from one of them and writes to the others, which end in the process
that asks. What the server replies of how a job ended is what the kernel told it.
"""

import builtins
import dataclasses
import gc
import importlib.machinery
import importlib.util
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from _sitebuiltins import Quitter
from typing import Any

from . import child, kernel

_WARM = (
    "collections", "heapq", "bisect", "itertools", "functools", "math", "random", "re", "string",
    "decimal", "fractions", "operator", "copy", "typing", "statistics", "queue", "datetime",
    "array", "cmath", "hashlib", "threading", "json", "time", "io", "enum", "_strptime",
)  # fmt: skip
"""Imported once, so that no test has to."""
_CONTROL = 0
"""Descriptor of the packet socket to the one that asks."""
_FREE_USERS = 1_879_048_192
_MOST_BYTES = 1 << 12
_PROCESS_CLOCK = 2
_PROCESSORS = os.cpu_count() or 1
_LOOK_S = 0.05


def serve() -> None:
    """Answers requests until the one that asks has ended."""
    control = socket.socket(fileno=os.dup(_CONTROL))
    _, files, _, _ = socket.recv_fds(control, _MOST_BYTES, 1)
    with open(files[0], "rb") as file:
        bounds = _prepare(json.load(file))
    control.send(json.dumps({"ready": True, "version": sys.version}).encode("ascii"))
    gc.collect()
    gc.freeze()  # children share these pages, and look for files among their own objects alone
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, _MOST_BYTES, child.REQUEST + 1)
        if not packet:
            return
        if descriptors:  # else it is about a job that has just ended
            reply = _run(json.loads(packet), descriptors, bounds)
            control.send(json.dumps(reply).encode("ascii"))


def _prepare(configuration: dict[str, Any]) -> child.Bounds:
    """Makes this process what its children start as."""
    kernel.die_with_parent(configuration["parent"], signal.SIGKILL)
    sys.path[:] = [path for path in sys.path if path != configuration["code"]]
    sys.path += configuration["paths"]
    for name in (*_WARM, *configuration["packages"]):
        importlib.import_module(name)
    for name in ("exit", "quit"):  # which programs use and only `site` brings
        setattr(builtins, name, Quitter(name, "Ctrl-D"))
    ruleset = None
    if configuration["is_landlocked"]:
        readable = [*configuration["readable"], "/dev/urandom", "/dev/zero"]
        ruleset = kernel.landlock_ruleset(kernel.landlock_abi(), readable, ["/dev/null"])
    if configuration["is_user_new"]:
        _become_nobody_else()
        kernel.die_with_parent(configuration["parent"], signal.SIGKILL)
    _remember_library([_reachable(path) for path in configuration["paths"]])
    kernel.give_up_privileges()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    sys.setrecursionlimit(1000)
    with open("/proc/self/statm", encoding="ascii") as statm:
        base_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    return child.Bounds(
        ruleset=ruleset,
        instructions=bytes.fromhex(configuration["instructions"]),
        threads=configuration["threads"],
        watched_threads=configuration["watched_threads"],
        base_bytes=base_bytes,
    )


def _remember_library(package_paths: list[str]) -> None:
    """Has finders keep the list of the library, which a child may read but not list."""
    importlib.util.find_spec("_absent")  # looks everywhere
    for path, finder in list(sys.path_importer_cache.items()):
        if path in package_paths:
            del sys.path_importer_cache[path]
        elif isinstance(finder, importlib.machinery.FileFinder):
            setattr(finder, "_fill_cache", lambda: None)  # noqa: B010 - mypy knows no such name


def _become_nobody_else() -> None:
    """Gives up root for a user that nobody has, so that the kernel counts this server's threads.

    The user is of those that systemd leaves unused; in a namespace with few, of those for dynamic
    users. Files of this interpreter stay in reach by way of the working directory.
    """
    with open("/proc/self/uid_map", encoding="ascii") as ranges:
        end = max(int(first) + int(count) for first, _, count in map(str.split, ranges))
    first, last = (_FREE_USERS, 2**31 - 2**16) if end >= 2**31 else (max(1, end - 4096), end - 2)
    user = first + int.from_bytes(os.urandom(8), "big") % (last - first)
    os.chdir(sys.base_prefix)
    before = list(sys.path)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    for module in list(sys.modules.values()):
        if isinstance(found := module.__dict__.get("__path__"), list):
            found[:] = [_reachable(path) for path in found]
    sys.path[:] = [_reachable(path) for path in before]
    sys.path_importer_cache.clear()


def _reachable(path: str) -> str:
    """The path, or the one from here where a directory above it is closed to this user."""
    if os.path.exists(path) or not path.startswith(sys.base_prefix + "/"):
        return path
    return "/proc/self/cwd/" + path.removeprefix(sys.base_prefix + "/")


# One job ------------------------------------------------------------------------------------------


def _run(request: dict[str, Any], descriptors: list[int], bounds: child.Bounds) -> dict[str, Any]:
    """Has a child do a job, and says how it ended."""
    started = time.monotonic()
    server = os.getpid()
    process = os.fork()
    if process == 0:
        # put the descriptors above all that are open, then where the program has them
        ruleset = None if bounds.ruleset is None else os.dup2(bounds.ruleset, 110)
        for place, each in enumerate(descriptors):
            os.dup2(each, 100 + place)
        for place in range(len(descriptors)):
            os.dup2(100 + place, place)
        child.run_and_exit(request, dataclasses.replace(bounds, ruleset=ruleset), server)
    for descriptor in descriptors:
        os.close(descriptor)
    watched = os.pidfd_open(process)
    stopped, laps_done = _watch(process, watched, request, bounds.watched_threads)
    if stopped:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
    _, exit_status, used = os.wait4(process, 0)
    os.close(watched)
    return {
        "stopped": stopped,
        "laps": laps_done,
        "exit_status": exit_status,
        "cpu_s": used.ru_utime + used.ru_stime,
        "seconds": time.monotonic() - started,
    }


def _watch(
    process: int, watched: int, request: dict[str, Any], most_threads: int
) -> tuple[str, int]:
    """Waits for a child's end, or says why it has to be, and of how many calls it was told."""
    clock = ~process << 3 | _PROCESS_CLOCK
    done, began_s, used_s = 0, time.monotonic(), 0.0
    poller = select.poll()
    for descriptor in (watched, _CONTROL):
        poller.register(descriptor, select.POLLIN)
    while True:
        wall_left_s = began_s + request["wall_s"] - time.monotonic()
        cpu_left_s = used_s + request["cpu_s"] - _clock_s(clock)
        wait_s = max(0.0, min(wall_left_s, cpu_left_s / _PROCESSORS))
        events = dict(poller.poll(min(wait_s, _LOOK_S if most_threads else wait_s) * 1000 + 1))
        if watched in events:
            return "", done
        if _CONTROL in events:
            packet = os.read(_CONTROL, _MOST_BYTES)
            if not packet:  # the one that asks has ended; the kernel ends the child with this
                os._exit(0)
            if packet == b"stop":
                return "asked", done
            done, began_s, used_s = done + int(packet), time.monotonic(), _clock_s(clock)
        elif wall_left_s <= 0 or cpu_left_s <= 0:
            return ("wall" if wall_left_s <= 0 else "cpu"), done
        elif most_threads and _threads(process) > most_threads:
            return "threads", done


def _clock_s(clock: int) -> float:
    """Processor time of a process by its clock; of one that has just ended, none."""
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0


def _threads(process: int) -> int:
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[17])
    except (FileNotFoundError, ProcessLookupError):
        return 0
