"""What the filter of system calls says, by a plain interpreter of the program that it is."""

import struct

import pytest

from effopd.rewards.sandbox.opening import seccomp_filter

ALLOW, ENOSYS, KILL_THREAD, KILL_PROCESS = 0x7FFF0000, 0x00050026, 0x00000000, 0x80000000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003

NUMBERS = {
    "x86_64": {
        "read": 0, "open": 2, "mmap": 9, "prctl": 157, "fcntl": 72, "ioctl": 16, "clone": 56,
        "prlimit64": 302, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "socket": 41,
        "setxattr": 188, "ptrace": 101, "seccomp": 317, "bpf": 321, "unlink": 87, "futex": 202,
    },
    "aarch64": {
        "read": 63, "openat": 56, "mmap": 222, "prctl": 167, "fcntl": 25, "ioctl": 29,
        "clone": 220, "prlimit64": 261, "execve": 221, "kill": 129, "socket": 198, "setxattr": 5,
        "ptrace": 117, "seccomp": 277, "bpf": 280, "unlinkat": 35, "futex": 98,
    },
}  # fmt: skip
NEW = {"clone3": 435, "io_uring_setup": 425, "openat2": 437, "mount_setattr": 442}
THREAD = 0x003D0F00


def decision(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the kernel would do: classic BPF on the data of a system call."""
    known = ARCHITECTURES[machine] if architecture is None else architecture
    values = [each & (2**64 - 1) for each in (*arguments, *(0,) * 6)][:6]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, known, 0, *values)
    program = list(struct.iter_unpack("<HBBI", seccomp_filter(machine)))
    place = accumulator = 0
    while True:
        code, if_true, if_false, constant = program[place]
        place += 1
        match code:
            case 0x20:  # load a word
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:  # and
                accumulator &= constant
            case 0x05:  # jump
                place += constant
            case 0x15:  # equal
                place += if_true if accumulator == constant else if_false
            case 0x35:  # at least
                place += if_true if accumulator >= constant else if_false
            case 0x25:  # more
                place += if_true if accumulator > constant else if_false
            case 0x06:
                return int(constant)
            case _:
                raise NotImplementedError(hex(code))


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("pyseccomp", exc_type=ImportError)
    return str(request.param)


def test_what_is_listed_is_allowed(machine: str) -> None:
    number = NUMBERS[machine]
    for name in ("read", "mmap", "futex", "open" if machine == "x86_64" else "openat"):
        assert decision(machine, number[name]) == ALLOW, name


def test_what_is_not_listed_is_missing(machine: str) -> None:
    number = NUMBERS[machine] | NEW
    for name in ("fork", "vfork", "execve", "kill", "socket", "setxattr", "ptrace", "seccomp",
                 "bpf", "unlink", "unlinkat", *NEW):  # fmt: skip
        if name in number:
            assert decision(machine, number[name]) == ENOSYS, name


def test_what_no_kernel_had_when_this_was_written_is_missing(machine: str) -> None:
    allowed = [n for n in range(425, 1100) if decision(machine, n) == ALLOW]
    assert allowed == [436, 439, 441, 449, 453]
    for number in (463, 469, 999, 2**16, 2**30 - 1):
        assert decision(machine, number) == ENOSYS


def test_threads_are_allowed_and_processes_are_not(machine: str) -> None:
    clone = NUMBERS[machine]["clone"]
    assert decision(machine, clone, THREAD) == ALLOW
    for flags in (17, 0x4100 | 17, 0x10000, THREAD | 0x10000000, THREAD & ~0x100, 0):
        assert decision(machine, clone, flags) == ENOSYS, hex(flags)


def test_arguments_decide_where_they_must(machine: str) -> None:
    number = NUMBERS[machine]
    high = 0xABCD << 32  # the kernel reads the lower half alone
    for name, arguments, wanted in [
        ("prctl", (15,), ALLOW), ("prctl", (1,), ENOSYS), ("prctl", (22,), ENOSYS),
        ("prctl", (high | 15,), ALLOW), ("prctl", (high | 1,), ENOSYS),
        ("fcntl", (0, 1), ALLOW), ("fcntl", (0, 8), ENOSYS), ("fcntl", (0, 6), ENOSYS),
        ("ioctl", (0, 0x5401), ALLOW), ("ioctl", (0, 0x5412), ENOSYS),
        ("ioctl", (0, 0x40086602), ENOSYS), ("ioctl", (0, high | 0x5412), ENOSYS),
        ("prlimit64", (0,), ALLOW), ("prlimit64", (1,), ENOSYS),
    ]:  # fmt: skip
        assert decision(machine, number[name], *arguments) == wanted, (name, arguments)


def test_another_architecture_ends_the_program(machine: str) -> None:
    wanted = {KILL_THREAD, KILL_PROCESS}
    assert decision(machine, 0, architecture=I386) in wanted
    if machine == "x86_64":
        assert decision(machine, 0x40000000 | 1) in wanted  # x32
