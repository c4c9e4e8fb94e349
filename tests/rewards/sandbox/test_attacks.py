# ruff: noqa: E501 - a row is an attack
"""Programs that try to get out, to use too much, or to be believed: what must become of each.

A script says "held" after every act that was refused, and "out" where one was not. All sandboxes
that work here face the same table.
"""

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.sandboxes import BRIEF, QUICK, run_script

from effopd.rewards.sandbox.program import Limits, Outcome, Sandbox

SECRET = "canary-5d1c7e"

PRELUDE = """
import ctypes, os, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(act, *args):
    try:
        answer = act(*args)
    except BaseException as error:
        print("held", type(error).__name__)
    else:
        print("out", repr(answer)[:200])
def call(number, *args):
    ctypes.set_errno(0)
    answer = libc.syscall(number, *args)
    print("held" if answer < 0 else "out", ctypes.get_errno(), number)
library = next(path + "/os.py" for path in sys.path if os.path.exists(path + "/os.py"))
def read(path):
    with open(path, "rb") as file:
        return file.read(100)
def write(path):
    with open(path, "w") as file:
        file.write("x")
"""


@pytest.fixture
def victim() -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the user that programs run as, outside."""
    options = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    process = subprocess.Popen(["/bin/sleep", "300"], cwd="/", **options)
    yield process
    process.kill()
    process.wait()


def attack(sandbox: Sandbox, source: str, limits: Limits = QUICK) -> Outcome:
    return run_script(sandbox, PRELUDE + textwrap.dedent(source), limits=limits)


def assert_held(outcome: Outcome, count: int | None = None) -> None:
    lines = outcome.stdout.decode().splitlines()
    assert outcome.status == "finished", outcome
    assert lines
    assert all(line.startswith("held") for line in lines), outcome
    assert count is None or len(lines) == count, outcome


# Isolation ----------------------------------------------------------------------------------------

HELD = {
    "a01 passwd": "attempt(read, '/etc/passwd')",
    "a02 shadow": "attempt(read, '/etc/shadow')",
    "a05 list home": "attempt(os.listdir, '/root'); attempt(os.listdir, '/home')",
    "a07 environ": """
        attempt(read, '/proc/1/environ'); attempt(read, f'/proc/{os.getppid()}/environ')
        attempt(read, '/proc/self/environ')""",
    "a08 cmdline": "attempt(read, '/proc/1/cmdline'); attempt(read, f'/proc/{os.getppid()}/cmdline')",
    "a11 abstract socket": "import socket; attempt(socket.socket, socket.AF_UNIX)",
    "a12 docker.sock": "import socket; attempt(lambda: socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock'))",
    "a13 DNS": "import socket; attempt(socket.getaddrinfo, 'example.org', 80)",
    "a15 write root and shm": "attempt(write, '/x'); attempt(write, '/dev/shm/x'); attempt(os.mkdir, '/x')",
    "a16 sysrq and sysctl": "attempt(write, '/proc/sysrq-trigger'); attempt(write, '/proc/sys/kernel/core_pattern')",
    "a17 kill parent": "attempt(os.kill, os.getppid(), 9)",
    "a18 kill everyone": "attempt(os.kill, -1, 9); attempt(os.killpg, 0, 9)",
    "a21 namespaces": "call(272, 0x10000000); call(272, 0x20000); call(308, 0, 0)",
    "a22 io_uring": "call(425, 1, 0)",
    "a22 bpf perf keyctl userfaultfd": "call(321, 0, 0, 0); call(298, 0, 0, -1, -1, 0); call(250, 0, -3, 0); call(323, 0)",
    "a23 raise rlimits": """
        import resource
        for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
            attempt(resource.setrlimit, which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))""",
    "a23 limits of others": "import resource; attempt(resource.prlimit, os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "a24 realtime": "attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)); attempt(os.nice, -5)",
    "a25 SysV and POSIX ipc": "call(29, 1, 4096, 0o1600); call(64, 1, 1, 0o1600); call(68, 1, 0o1600); call(240, b'x', 0o102, 0o600, 0)",
    "a26 TIOCSTI": "import fcntl; attempt(fcntl.ioctl, 0, 0x5412, b'x'); attempt(os.open, '/dev/tty', os.O_RDWR)",
    "a28 devices": "attempt(os.open, '/dev/nvidia0', os.O_RDWR); attempt(os.open, '/dev/mem', 0); attempt(os.open, '/dev/kvm', 0)",
    "a29 setuid": "attempt(os.execv, '/usr/bin/su', ['su']); attempt(os.setuid, 0)",
    "a30 fork": "attempt(os.fork); call(57); call(58); call(56, 17, 0, 0, 0, 0); call(435, 0, 0)",
    "a38 daemon": "attempt(os.posix_spawn, '/bin/true', ['true'], {}); import subprocess; attempt(subprocess.run, ['true'])",
    "a42 fill disk": "attempt(write, '/tmp/x'); attempt(write, '/var/tmp/x'); attempt(write, 'x')",
    "a43 large file": "import tempfile; attempt(tempfile.TemporaryFile); call(319, b'x', 0)",
    "a44 inodes": "attempt(os.mknod, '/tmp/x'); attempt(os.symlink, 'a', '/tmp/b'); attempt(os.link, '/usr/lib/os-release', '/tmp/c')",
    "a46 directories": "attempt(os.makedirs, '/'.join(['/tmp'] + ['d'] * 300))",
    "a47 modes and times": "attempt(os.chmod, '/tmp', 0); attempt(os.chmod, sys.base_prefix, 0); attempt(os.utime, sys.base_prefix); attempt(os.setxattr, '/tmp', 'user.a', b'1')",
    "a57 odd files": "attempt(os.mkfifo, '/tmp/f'); attempt(os.symlink, '/etc/passwd', 'out'); attempt(os.truncate, '/tmp/g', 2**40)",
    "signals by fcntl": "import fcntl; attempt(fcntl.fcntl, 0, fcntl.F_SETOWN, os.getppid()); attempt(fcntl.fcntl, 0, 10, 9)",
    "outlive the server": "call(157, 1, 0, 0, 0, 0)",
    "packages of the interpreter": """
        version = "python%d.%d" % sys.version_info[:2]
        for base in (sys.base_prefix, "/proc/self/cwd", "/proc/self/root" + sys.base_prefix, "."):
            for part in (f"lib/{version}/site-packages", "lib/python3/dist-packages", "bin", ""):
                attempt(os.listdir, os.path.join(base, part))
            attempt(read, os.path.join(base, f"lib/{version}/site-packages/pip/__init__.py"))""",
    "packages by import": """
        version = "python%d.%d" % sys.version_info[:2]
        for base in (sys.base_prefix, "/proc/self/cwd"):
            sys.path.insert(0, os.path.join(base, "lib", version, "site-packages"))
        import importlib
        importlib.invalidate_caches()
        attempt(importlib.import_module, "pip")
        attempt(importlib.import_module, "setuptools")""",
    "packages of other interpreters": """
        for directory in ("python3/dist-packages", "python3", "python3.11", "pypy3", "node_modules"):
            for above in ("/usr/lib/", "/lib/", "/usr/local/lib/", "/usr/lib64/"):
                if above + directory != os.path.dirname(library):
                    attempt(os.listdir, above + directory)""",
    "changed libraries": "attempt(write, library); attempt(os.truncate, library, 0); attempt(os.rename, library, '/tmp/x')",
    "attributes by number": """
        at = library.encode()
        call(463, -100, at, 0, b"user.x", at, 16); call(464, -100, at, 0, b"user.x", at, 16)
        call(465, -100, at, 0, at, 16); call(466, -100, at, 0, b"user.x")
        call(468, -100, at, at, 24, 0); call(469, -100, at, at, 24, 0)""",
    "calls that no kernel has yet": "for number in (470, 480, 500, 999, 1023, 4095, 2**20): call(number, 0, 0, 0, 0, 0, 0)",
    "inode flags": "import fcntl; attempt(fcntl.ioctl, os.open(library, os.O_RDONLY), 0x40086602, bytes(8))",
    "locks on shared files": "import fcntl; attempt(fcntl.flock, os.open(library, os.O_RDONLY), fcntl.LOCK_SH); attempt(fcntl.lockf, os.open(library, os.O_RDONLY), fcntl.LOCK_SH)",
    "pages of others": "import mmap; f = os.open(library, os.O_RDONLY); call(27, 0, 4096, 0); call(451, f, 0, 0, 0)",
    "a vfork by clone": "call(56, 0x4100 | 17, 0, 0, 0, 0); call(56, 0x10000 | 0x10000000, 0, 0, 0, 0)",
    "own filter and rules": "call(317, 1, 0, 0); call(444, 0, 0, 1); call(446, 3, 0); call(157, 22, 2, 0, 0, 0)",
    "a socket pair": "import socket; attempt(socket.socketpair)",
    "mounts seen by number": "call(457, 0, 0, 0, 0); call(458, 0, 0, 0, 0); call(428, -100, b'/', 0)",
}  # fmt: skip


@pytest.mark.parametrize("source", HELD.values(), ids=HELD)
def test_act_is_refused(sandbox: Sandbox, source: str) -> None:
    assert_held(attack(sandbox, source))


def test_a03_a04_a05_files_of_the_user(sandbox: Sandbox, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    for name in ("token", "gold.json"):
        (tmp_path / name).write_text(SECRET)
        (tmp_path / name).chmod(0o644)
    home = Path.home()
    outcome = attack(
        sandbox,
        f"""
        attempt(read, {str(tmp_path / "token")!r}); attempt(read, {str(tmp_path / "gold.json")!r})
        attempt(os.listdir, {str(tmp_path)!r}); attempt(read, {str(Path(__file__))!r})
        attempt(read, {str(home / ".bashrc")!r}); attempt(read, {str(home / ".netrc")!r})
        """,
    )
    assert_held(outcome, 6)


def test_a06_environment_is_empty(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    sandbox.close()  # the next server starts now
    known = attack(sandbox, "print(sorted(os.environ)); print(dict(os.environ))").stdout.decode()
    assert SECRET not in known
    assert not any(word in known for word in ("TOKEN", "KEY", "SECRET", "AWS_"))


@pytest.mark.enable_socket
def test_a09_a10_host_hears_nothing(sandbox: Sandbox) -> None:
    with (
        socket.socket() as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        tcp.setblocking(False)
        udp.setblocking(False)
        outcome = attack(
            sandbox,
            f"""
            import socket
            attempt(lambda: socket.create_connection(("127.0.0.1", {tcp.getsockname()[1]}), 1))
            attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(
                b"x", ("127.0.0.1", {udp.getsockname()[1]})))
            """,
        )
        assert_held(outcome, 2)
        with pytest.raises(BlockingIOError):
            tcp.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)


def test_a14_host_files_are_absent(sandbox: Sandbox, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    targets = [Path("/tmp/effopd-escape"), Path("/usr/effopd-escape"), tmp_path / "escape"]
    outcome = attack(sandbox, f"for path in {[str(t) for t in targets]}: attempt(write, path)")
    assert_held(outcome, 3)
    assert not any(target.exists() for target in targets)


def test_a19_a20_victim_lives(sandbox: Sandbox, victim: "subprocess.Popen[bytes]") -> None:
    outcome = attack(
        sandbox,
        f"""
        attempt(os.kill, {victim.pid}, 9); call(234, {victim.pid}, {victim.pid}, 9)
        call(101, 16, {victim.pid}, 0, 0); call(310, {victim.pid}, 0, 0, 0, 0, 0)
        call(434, {victim.pid}, 0); attempt(os.sched_setaffinity, {victim.pid}, [0])
        attempt(read, "/proc/{victim.pid}/environ")
        """,
    )
    assert_held(outcome, 7)
    assert victim.poll() is None


def test_a27_no_descriptor_but_three(sandbox: Sandbox) -> None:
    outcome = attack(
        sandbox,
        """
        def is_open(number):
            try:
                os.fstat(number)
            except OSError:
                return False
            return True
        print([number for number in range(5000) if is_open(number)])
        """,
    )
    assert outcome.stdout == b"[0, 1, 2]\n"


# Resources ----------------------------------------------------------------------------------------

ENDS = {
    "call of another architecture": ("""
        import mmap
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("b814000000 cd80 c3"))  # getpid of i386
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        print("out")""", {"runtime_error"}),
    "a31 threads": ("""
        threading.stack_size(65536)
        threads = []
        try:
            while len(threads) < 20000:
                threads.append(threading.Thread(target=time.sleep, args=(100,), daemon=True))
                threads[-1].start()
        except RuntimeError:
            print("held" if len(threads) < 1000 else f"out {len(threads)}")
        os._exit(0)""", {"finished"}),
    "a32 8 GiB": ("bytearray(8 * 2**30)", {"memory"}),
    "a32 slowly": ("x = []\nwhile True: x.append(bytearray(2**22))", {"memory"}),
    "a34 busy loop": ("while True: pass", {"timeout"}),
    "a41 stderr flood": ("while True: sys.stderr.write('x' * 65536)", {"output_limit"}),
    "a40 stdout flood": ("while True: print('x' * 65536)", {"output_limit"}),
    "a45 anonymous shared memory": ("import mmap\nx = [mmap.mmap(-1, 2**26) for _ in range(100)]", {"runtime_error", "memory"}),
    "a48 recursion": ("def f(): return f()\nf()", {"runtime_error"}),
    "a48 C recursion": ("sys.setrecursionlimit(10**9)\nx, y = [], []\nfor _ in range(10**6): x, y = [x], [y]\nx == y", {"runtime_error", "memory"}),
    "a49 null pointer": ("ctypes.string_at(0)", {"runtime_error"}),
    "a50 descriptors": ("x = [os.pipe() for _ in range(1000)]", {"runtime_error"}),
    "a37 stop self": ("os.kill(os.getpid(), signal.SIGSTOP)", {"runtime_error"}),
    "a52 exit code": ("os._exit(3)", {"runtime_error"}),
    "status of the boundary is not to be had": ("os._exit(87)", {"runtime_error"}),
    "abort": ("os.abort()", {"runtime_error"}),
}  # fmt: skip


@pytest.mark.parametrize(("source", "wanted"), ENDS.values(), ids=ENDS)
def test_program_ends_as_it_must(sandbox: Sandbox, source: str, wanted: set[str]) -> None:
    outcome = attack(sandbox, source)
    assert outcome.status in wanted, outcome
    assert b"out" not in outcome.stdout
    assert len(outcome.stdout) <= QUICK.output_bytes
    assert run_script(sandbox, "print(1)").stdout == b"1\n"


SLEEPERS = {
    "a35 sleep": "time.sleep(1000)",
    "a36 ignore signals": """
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        time.sleep(1000)""",
    "a39 thread holds the pipe": "threading.Thread(target=time.sleep, args=(1000,)).start()",
    "a55 no alarm": "signal.setitimer(signal.ITIMER_REAL, 0); signal.alarm(0); time.sleep(1000)",
    "a61 bare except": """
        while True:
            try: time.sleep(1000)
            except: pass""",
    "read own pipe": "os.read(os.pipe()[0], 1)",
    "exit function": "import atexit; atexit.register(time.sleep, 1000)",
}


@pytest.mark.parametrize("source", SLEEPERS.values(), ids=SLEEPERS)
def test_wall_holds(sandbox: Sandbox, source: str) -> None:
    started = time.monotonic()
    outcome = attack(sandbox, source, BRIEF)
    assert outcome.status == "timeout", outcome
    assert time.monotonic() - started < 10


def test_a33_memory_over_children_needs_children(sandbox: Sandbox) -> None:
    outcome = attack(sandbox, "for _ in range(40): attempt(os.fork)")
    assert_held(outcome, 40)


def test_a51_long_input_that_nobody_reads(sandbox: Sandbox) -> None:
    outcome = run_script(sandbox, "print(7)", b"x" * 100_000_000)
    assert (outcome.status, outcome.stdout) == ("finished", b"7\n")


# The result channel -------------------------------------------------------------------------------

NO_ANSWER = {
    "a52 exit before output": ("import sys; sys.exit(0)\nprint('42')", b""),
    "a52 exit at import": ("import os; os._exit(0)\nprint('42')", b""),
    "a52 in atexit": ("import atexit, os; atexit.register(os._exit, 0); print(end='42')", b""),
    "a56 result after exit": ("print('a', flush=True)\nimport os; os._exit(0)\nprint('b')", b"a\n"),
}


@pytest.mark.parametrize(("source", "stdout"), NO_ANSWER.values(), ids=NO_ANSWER)
def test_exit_prints_nothing_more(sandbox: Sandbox, source: str, stdout: bytes) -> None:
    assert run_script(sandbox, source).stdout == stdout


def test_a54_frames_hold_no_answers(sandbox: Sandbox) -> None:
    outcome = attack(
        sandbox,
        """
        import gc
        frame, names = sys._getframe(), set()
        while frame:
            names |= set(frame.f_locals) | set(frame.f_globals)
            frame = frame.f_back
        wanted = {"expected", "gt_out", "in_outs", "outputs", "gold", "reference"}
        print(sorted(wanted & names))
        texts = [str(o) for o in gc.get_objects() if isinstance(o, (dict, list)) and len(o) < 50]
        print(any("canary" + "-gold" in text for text in texts))
        """,
    )
    assert outcome.stdout == b"[]\nFalse\n"


def test_a56_output_is_bytes_and_no_verdict(sandbox: Sandbox) -> None:
    forged = '{"is_shut_in": true, "stopped": "", "exit_status": 0, "stdout_bytes": 2}'
    outcome = run_script(sandbox, f"print({forged!r})\nraise SystemExit(1)")
    assert outcome.status == "runtime_error"
    assert outcome.stdout == forged.encode() + b"\n"


def test_a58_bytes_come_back_as_they_were(sandbox: Sandbox) -> None:
    odd = b"\xff\x00\r\n\x1b[2J\x1b]0;title\x07" + b"x" * 500_000
    outcome = run_script(
        sandbox,
        "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()); raise ValueError('\x1b[2J')",
        odd,
    )
    assert outcome.stdout == odd
    assert "\x1b" not in outcome.detail


def test_a60_nothing_is_left_for_the_next(sandbox: Sandbox) -> None:
    first = """
        import builtins, json, math
        builtins.print_ = 1; json.loads = None; math.pi = 3; sys.modules["heapq"] = None
        attempt(write, "json.py"); attempt(write, "/tmp/state"); attempt(write, "/dev/shm/state")
        os.environ["STATE"] = "1"; sys.path.insert(0, "/tmp"); os.chdir("/")
        """
    assert attack(sandbox, first).status == "finished"
    second = """
        import builtins, heapq, json, math
        print("print_" in vars(builtins), math.pi > 3, json.loads("1"), "STATE" in os.environ,
              "/tmp" in sys.path, os.path.exists("/tmp/state"))
        """
    assert attack(sandbox, second).stdout == b"False True 1 False False False\n"


TRAINER = """
import sys, threading
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rewards.sandbox.program import Limits, Program
from effopd.rewards.sandbox.program import SandboxSettings
sandbox = open_sandbox(SandboxSettings(kind=sys.argv[1]))
def work():
    sandbox.run(Program(source="import time\\nwhile True: time.sleep(0.01)"), [b""], Limits(wall_s=300))
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
import time
time.sleep(1.5)
print("ready", flush=True)
time.sleep(300)
"""


def descendants(process: int) -> set[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents[int(status.parent.name)] = int(fields[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def test_a62_nothing_survives_the_trainer(sandbox: Sandbox) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, sandbox.kind], stdout=subprocess.PIPE
    ) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"ready\n"
        started = descendants(trainer.pid)
        assert len(started) >= 4  # two servers and two tests at least
        trainer.kill()
        trainer.wait()
    deadline = time.monotonic() + 5
    while alive := {p for p in started if Path(f"/proc/{p}").exists()}:
        assert time.monotonic() < deadline, f"left behind: {alive}"
        time.sleep(0.05)


def test_servers_started_in_a_thread_outlive_it(sandbox: Sandbox) -> None:
    """The kernel's signal at a parent's death is sent when the thread that forked ends."""
    sandbox.close()
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(run_script(sandbox, "print(1)")))
    thread.start()
    thread.join()
    source = "import os; print(os.getppid())"
    before = run_script(sandbox, source).stdout
    time.sleep(0.3)
    assert [outcome.stdout for outcome in outcomes] == [b"1\n"]
    assert run_script(sandbox, source).stdout == before
