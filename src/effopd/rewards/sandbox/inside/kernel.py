"""The system calls that Python has no function for: Landlock, seccomp and prctl."""

import contextlib
import ctypes
import os
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_SECCOMP_MODE_FILTER = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_ALL_FILES = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
"""Landlock ABI -> the rights over files that it knows; later ones know the last and ioctl."""
_ALL_FILES_NOW = 0xFFFF
_TCP = 3
_SCOPES = 3


def landlock_abi() -> int:
    """The version of Landlock in this kernel; 0 where there is none or it is off."""
    return max(0, _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG))


def landlock_ruleset(abi: int, readable: list[str], writable: list[str]) -> int:
    """The descriptor of a ruleset: what may be read, what written; missing paths are left out."""
    files = _ALL_FILES.get(abi, _ALL_FILES_NOW)
    attributes = struct.pack("=QQQ", files, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _checked(
        _LIBC.syscall(_CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(size), 0)
    )
    rights = {path: READ_FILE | (READ_DIR if os.path.isdir(path) else 0) for path in readable}
    rights |= dict.fromkeys(writable, READ_FILE | WRITE_FILE)
    for path, allowed in rights.items():
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", allowed, descriptor)
                _checked(_LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), 0))
            finally:
                os.close(descriptor)
    return ruleset


def landlock_restrict(ruleset: int) -> None:
    """Puts this process under a ruleset, for good."""
    _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def seccomp(instructions: bytes) -> None:
    """Puts this thread under a filter of system calls, classic BPF of 8 bytes each, for good."""
    program = _Program(len(instructions) // 8, instructions)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def give_up_privileges() -> None:
    """Nothing executed from here on gains anything; no process of this user may look in here."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0)
    _prctl(_PR_SET_DUMPABLE, 0, 0)


def die_with_parent(parent: int, signal_number: int) -> None:
    """Has the kernel end this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number, 0)
    if os.getppid() != parent:  # it was faster
        os._exit(1)


def _prctl(option: int, first: int, second: int) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_LIBC.prctl(option, ctypes.c_ulong(first), ctypes.c_ulong(second), zero, zero))


def _checked(result: int) -> int:
    """A result of the kernel's; OSError where it is an error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
