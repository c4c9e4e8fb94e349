"""The system calls that a program may make, as a filter that the kernel runs."""

import platform
import sys
import tempfile

from effopd.errors import ConfigError, MissingExtraError

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
    sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max
    sched_get_priority_min getcpu
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait
    sigaltstack restart_syscall pause alarm setitimer getitimer
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
    getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid
    getpriority getrlimit setrlimit getrusage sysinfo uname getrandom
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
"""(system call, place of the argument, values that are allowed): its lower 32 bits count."""
_THREAD_FLAGS = 0x00010F00
"""CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND and CLONE_THREAD: a thread has them all."""
_NEW_NAMESPACES = 0x7E020080
_ENOSYS = 38


def instructions(machine: str = "") -> bytes:
    """The filter of a program, as classic BPF.

    What is not listed does not exist for a program, and neither does what later kernels bring.
    System calls of another architecture end it.

    Args:
        machine: Another than this one, for tests: "x86_64" or "aarch64".

    Raises:
        ConfigError: libseccomp is missing, or this is no Linux.
        MissingExtraError: pyseccomp is missing.
    """
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
    for name, place, values in _ALLOWED_ARGUMENTS:
        for value in values:
            allow(name, pyseccomp.Arg(place, pyseccomp.MASKED_EQ, 0xFFFFFFFF, value))
    mask = _THREAD_FLAGS | _NEW_NAMESPACES  # clone3 is missing: libc then uses clone
    allow("clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, mask, _THREAD_FLAGS))
    with tempfile.TemporaryFile() as file:
        allowed.export_bpf(file)
        file.seek(0)
        return file.read()
