"""Opens the sandbox that the settings name, or says why there is none."""

import contextlib
import glob
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from effopd.errors import ConfigError, MissingExtraError
from effopd.rewards.sandbox.inside.kernel import landlock_abi
from effopd.rewards.sandbox.local import LocalSandbox
from effopd.rewards.sandbox.program import Limits, Program, Sandbox, SandboxSettings
from effopd.rewards.sandbox.server_process import BrokenServerError, ServerProcess
from effopd.rewards.sandbox.url import UrlSandbox

_MOST_THREADS = 512
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
"""Acts that the boundary refuses; a child that forks prints twice."""


def open_sandbox(settings: SandboxSettings) -> Sandbox:
    """A sandbox in which a program that tries to get out has just failed."""
    if settings.kind == "url":
        return UrlSandbox(settings)
    if settings.kind == "none":
        sys.stderr.write(_WARNING)
    elif landlock_abi() < 1:
        raise ConfigError(
            "this kernel has no Landlock, or it is off: use Linux 5.13 or newer, name a server by "
            "url, or accept no sandbox by kind = none"
        )
    configuration = _configuration(settings)
    try:
        first = ServerProcess(configuration)
    except BrokenServerError as error:
        raise ConfigError(f"a sandbox of kind {settings.kind!r} does not start: {error}") from error
    if first.hello.get("version") != sys.version:
        first.end()
        raise ConfigError(f"the sandbox runs another Python: {first.hello.get('version')!r}")
    sandbox = LocalSandbox(settings.kind, settings.processes, configuration, first)
    if settings.kind == "none":
        return sandbox
    probe = sandbox.run(Program(source=_PROBE), [b""], Limits())[0]
    if probe.status != "finished" or probe.stdout.split() != [b"1"] * 5:
        sandbox.close()
        raise ConfigError(
            f"a sandbox of kind {settings.kind!r} does not hold here: a program that tried to get "
            f"out came to {probe.status} {probe.stdout[:100]!r} {probe.detail[-200:]}"
        )
    return sandbox


def _configuration(settings: SandboxSettings) -> dict[str, Any]:
    """What a server is told first: what it may read, and how it is shut in."""
    is_root, is_bound = os.geteuid() == 0, settings.kind != "none"
    # RLIMIT_NPROC counts all threads of a user. A server started by root has a user of its own;
    # elsewhere the server counts the threads of its program, and the limit is far above.
    threads = _MOST_THREADS if is_root else 16 * _MOST_THREADS
    for process in [] if is_root else Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if process.stat().st_uid == os.geteuid():
                threads += len(list((process / "task").iterdir()))
    package_paths = [_package(name) for name in settings.packages]
    return {
        "paths": list(dict.fromkeys(str(Path(paths[0]).parent) for paths in package_paths)),
        "packages": list(settings.packages),
        "readable": readable_paths([path for paths in package_paths for path in paths]),
        "is_landlocked": is_bound,
        "is_user_new": is_bound and is_root,
        "instructions": seccomp_filter().hex() if is_bound else "",
        "threads": threads if is_bound else 0,
        "watched_threads": 0 if is_root or not is_bound else _MOST_THREADS,
    }


# What may be read ---------------------------------------------------------------------------------


def readable_paths(packages: list[str]) -> list[str]:
    """Files and directories that Python needs, and the given paths; other packages are left out."""
    executable = os.path.realpath(sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    library = os.path.dirname(os.path.realpath(os.__file__))
    system = [
        os.path.realpath(path)
        for path in ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64")
        if os.path.exists(path)
    ]
    # packages of this interpreter, and all that other interpreters of the system have
    others = [each for path in system for each in glob.glob(f"{path}/py*[0-9]*")]
    hidden = {each for each in others if not PurePath(library).is_relative_to(each)}
    hidden |= {f"{library}/{name}" for name in ("site-packages", "dist-packages")}
    hidden = {path for path in hidden if os.path.isdir(path) and not os.path.islink(path)}
    # of the system's libraries, shared objects alone
    multiarch = getattr(sys.implementation, "_multiarch", "")
    found = [each for path in system for each in glob.glob(f"{path}/*.so*")]
    shared = [each for each in found if os.path.isfile(each)]
    shared += [f"{path}/{multiarch}" for path in system if multiarch]
    linked = [] if prefix == "/usr" else sorted(glob.glob(f"{prefix}/lib*/*.so*"))
    own = [
        each
        for path in (executable, library, *linked, "/usr/share/zoneinfo")
        for each in _without(path, hidden)
    ]
    all_paths = map(os.path.realpath, [*sorted(shared), *own, *packages])
    return [each for each in dict.fromkeys(all_paths) if os.path.exists(each)]


def _without(path: str, hidden: set[str]) -> Iterator[str]:
    """The path; or, where directories in it are hidden, all else that lies in it."""
    if not any(PurePath(each).is_relative_to(path) for each in hidden):
        yield path
        return
    for each in sorted(os.listdir(path)):
        below = f"{path}/{each}"
        if below not in hidden and (os.path.isfile(below) or not os.path.islink(below)):
            yield from _without(below, hidden)


def _package(name: str) -> list[str]:
    """Where a package lies, with the libraries that its wheel brought."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"packages must be installed here, and {name!r} is not")
    path = os.path.realpath(next(iter(spec.submodule_search_locations)))
    return [each for each in (path, f"{path}.libs") if os.path.isdir(each)]


# System calls -------------------------------------------------------------------------------------

_ALLOWED = """
    read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek
    open openat close close_range dup dup2 dup3 pipe pipe2 eventfd eventfd2
    stat lstat fstat newfstatat fstatat64 statx statfs fstatfs access faccessat faccessat2
    readlink readlinkat getdents getdents64 getcwd chdir fchdir umask
    fsync fdatasync ftruncate fadvise64
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2
    mmap munmap mremap mprotect madvise brk msync membarrier get_mempolicy
    map_shadow_stack arch_prctl
    futex futex_waitv set_robust_list get_robust_list set_tid_address rseq gettid getpid getppid
    sched_yield sched_getaffinity sched_get_priority_max sched_get_priority_min getcpu
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait
    sigaltstack restart_syscall pause alarm setitimer getitimer
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
    getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp
    getrlimit setrlimit getrusage sysinfo uname getrandom
    wait4 waitid exit exit_group
"""
"""What an interpreter and its libraries use on files, memory, threads and clocks of their own."""
_ALLOWED_ARGUMENTS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("prctl", 0, (15, 16, 0x53564D41)),  # names of threads and of mappings
    # F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ, F_GET_SEALS
    ("fcntl", 1, (*range(5), 1030, 1031, 1032, 1034)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS2
    ("ioctl", 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)),
    ("prlimit64", 0, (0,)),  # of this process
    ("sched_setaffinity", 0, (0,)),
)
"""(system call, index of the argument, values that are allowed): its lower 32 bits count."""
_THREAD_FLAGS = 0x00010F00
"""CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND and CLONE_THREAD: a thread has them all."""
_NEW_NAMESPACES = 0x7E020080
_ENOSYS = 38


def seccomp_filter(machine: str = "") -> bytes:
    """The filter of a program's system calls, as classic BPF: what is not listed does not exist."""
    if sys.platform != "linux":
        raise ConfigError("a sandbox on this machine needs Linux; give the URL of one elsewhere")
    try:
        import pyseccomp
    except ModuleNotFoundError as error:
        raise MissingExtraError("a sandbox needs pyseccomp: pip install 'effopd[code]'") from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"libseccomp is missing ({error}): apt install libseccomp2") from error
    allowed = pyseccomp.SyscallFilter(pyseccomp.ERRNO(_ENOSYS))
    architecture = pyseccomp.Arch.NATIVE
    if machine not in ("", platform.machine()):
        architecture = getattr(pyseccomp.Arch, machine.upper())
        allowed.add_arch(architecture)
        allowed.remove_arch(pyseccomp.Arch.NATIVE)

    def allow(name: str, *conditions: pyseccomp.Arg) -> None:
        if pyseccomp.resolve_syscall(architecture, name) >= 0:  # others are of other machines
            allowed.add_rule(
                pyseccomp.ALLOW, pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name), *conditions
            )

    for name in _ALLOWED.split():
        allow(name)
    for name, index, values in _ALLOWED_ARGUMENTS:
        for value in values:
            allow(name, pyseccomp.Arg(index, pyseccomp.MASKED_EQ, 0xFFFFFFFF, value))
    mask = _THREAD_FLAGS | _NEW_NAMESPACES  # clone3 is missing: libc then uses clone
    allow("clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, mask, _THREAD_FLAGS))
    with tempfile.TemporaryFile() as file:
        allowed.export_bpf(file)
        file.seek(0)
        return file.read()
