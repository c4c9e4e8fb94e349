"""The system calls that a program may not make, as a filter that the kernel runs."""

import sys
import tempfile

from effopd.errors import ConfigError, MissingExtraError

_REFUSED = """
    fork vfork execve execveat socket socketpair connect bind listen accept accept4 sendto
    sendmsg sendmmsg recvfrom recvmsg recvmmsg shutdown getsockname getpeername setsockopt
    getsockopt kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_getfd
    pidfd_send_signal ptrace process_vm_readv process_vm_writev process_madvise kcmp
    io_uring_setup io_uring_enter io_uring_register bpf perf_event_open keyctl add_key
    request_key userfaultfd fanotify_init fanotify_mark inotify_init inotify_init1 memfd_create
    memfd_secret mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount
    fspick mount_setattr setns unshare open_by_handle_at name_to_handle_at quotactl swapon
    swapoff acct shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv
    msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr mknod mknodat
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat
    futimesat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr truncate
    fallocate setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups
    capset sched_setscheduler sched_setattr sched_setparam setpriority ioprio_set setsid setpgid
    personality reboot kexec_load kexec_file_load init_module finit_module delete_module iopl
    ioperm modify_ldt settimeofday clock_settime clock_adjtime adjtimex sethostname
    setdomainname syslog vhangup lookup_dcookie uselib nfsservctl ustat sysfs mbind
    set_mempolicy migrate_pages move_pages mlock mlock2 mlockall seccomp landlock_create_ruleset
    landlock_add_rule landlock_restrict_self
"""
"""Of processes, sockets, signals, mounts, shared memory, and owners and times of files."""
_CLONE_THREAD = 0x10000
_REFUSED_ARGUMENTS = (
    ("prctl", 0, (1,)),  # PR_SET_PDEATHSIG: this process ends with the server
    ("fcntl", 1, (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX: signals to other processes
    ("ioctl", 1, (0x5412, 0x541C, 0x8901, 0x8902)),  # TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP
)
"""(system call, place of the argument, values that are refused)."""
_OWN_PROCESS_ONLY = ("prlimit64", "sched_setaffinity")
"""Their first argument is a process; 0 is the one that calls."""
_EPERM, _ENOSYS = 1, 38


def instructions() -> bytes:
    """The filter of a test, as classic BPF for this machine.

    All else is allowed. System calls of another architecture end the program.

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
    found = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in _REFUSED.split():
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) != -1:
            found.add_rule(pyseccomp.ERRNO(_EPERM), name)
    for name, place, values in _REFUSED_ARGUMENTS:
        for value in values:
            refused = pyseccomp.Arg(place, pyseccomp.MASKED_EQ, 0xFFFFFFFF, value)
            found.add_rule(pyseccomp.ERRNO(_EPERM), name, refused)
    for name in _OWN_PROCESS_ONLY:
        found.add_rule(pyseccomp.ERRNO(_EPERM), name, pyseccomp.Arg(0, pyseccomp.NE, 0))
    no_thread = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, 0)
    found.add_rule(pyseccomp.ERRNO(_EPERM), "clone", no_thread)
    found.add_rule(pyseccomp.ERRNO(_ENOSYS), "clone3")  # libc then uses clone
    with tempfile.TemporaryFile() as file:
        found.export_bpf(file)
        file.seek(0)
        return file.read()
