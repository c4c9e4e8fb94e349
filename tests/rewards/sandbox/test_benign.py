# ruff: noqa: E501 - a row is a program
"""Honest programs run as they would anywhere; every sandbox passes the same table."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
from tests.support.sandboxes import QUICK, run_script, sandbox_of

from effopd.errors import ConfigError
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rewards.sandbox.program import Limits, Program, Sandbox, SandboxSettings

SCRIPTS = {
    "print": ("print(1)", b"", b"1\n"),
    "no newline": ("print('a', end='')", b"", b"a"),
    "input loop": ("""
        total = 0
        try:
            while True: total += int(input())
        except EOFError: print(total)""", b"1\n2\n3", b"6\n"),
    "binary input": ("import sys; print(len(sys.stdin.buffer.read()))", b"\x00\xff\n", b"3\n"),
    "open(0)": ("print(open(0).read().split())", b"a b\n", b"['a', 'b']\n"),
    "unicode": ("print(input() + '\u00e9\u4e2d\U0001f600')", "\u00fc".encode(), "\u00fc\u00e9\u4e2d\U0001f600\n".encode()),
    "exit": ("print(1); exit()", b"", b"1\n"),
    "sys.exit": ("import sys; print(1); sys.exit(0)", b"", b"1\n"),
    "threads": ("""
        import threading
        found = []
        workers = [threading.Thread(target=lambda i=i: found.append(i)) for i in range(20)]
        for w in workers: w.start()
        for w in workers: w.join()
        print(sum(found))""", b"", b"190\n"),
    "thread nobody joins": ("import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(5))).start()", b"", b"5\n"),
    "deep recursion": ("""
        import sys, threading
        sys.setrecursionlimit(60000)
        def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
        print(depth(50000))
        threading.stack_size(2**26)
        t = threading.Thread(target=lambda: print(depth(50000))); t.start(); t.join()""", b"", b"50000\n50000\n"),
    "raised stack": ("import resource; resource.setrlimit(resource.RLIMIT_STACK, (resource.getrlimit(resource.RLIMIT_STACK)[1],) * 2); print(1)", b"", b"1\n"),
    "memory": ("x = bytearray(200 * 2**20); x[::4096] = b'x' * len(x[::4096]); print(len(x) >> 20)", b"", b"200\n"),
    "libraries": ("import decimal, fractions, sqlite3, lzma, xml.dom.minidom, zoneinfo, csv, asyncio; print(decimal.Decimal(1))", b"", b"1\n"),
    "main guard": ("def main(): print('m')\nif __name__ == '__main__': main()", b"", b"m\n"),
    "exit function": ("import atexit; atexit.register(print, 'last'); print('first')", b"", b"first\nlast\n"),
    "dataclass and pickle": ("import dataclasses, pickle\n@dataclasses.dataclass\nclass A:\n    x: int\nprint(pickle.loads(pickle.dumps(A(3))))", b"", b"A(x=3)\n"),
    "imports after caches are dropped": ("import importlib; importlib.invalidate_caches(); import wave, xml.sax; print(1)", b"", b"1\n"),
    "clocks and names": ("import threading, time, os, select; threading.current_thread().name = 'x'; time.sleep(0.001); os.sched_getaffinity(0); select.epoll().close(); print(os.get_terminal_size if os.isatty(0) else 1)", b"", b"1\n"),
    "alarm": ("import signal, time\ndef f(*_): raise TimeoutError\nsignal.signal(signal.SIGALRM, f); signal.setitimer(signal.ITIMER_REAL, 0.05)\ntry: time.sleep(60)\nexcept TimeoutError: print('late')", b"", b"late\n"),
    "urandom": ("import secrets; print(len(secrets.token_bytes(8)), open('/dev/null', 'w').write('x'))", b"", b"8 1\n"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "given", "printed"), SCRIPTS.values(), ids=SCRIPTS)
def test_script(sandbox: Sandbox, source: str, given: bytes, printed: bytes) -> None:
    outcome = run_script(sandbox, textwrap.dedent(source), given)
    assert (outcome.status, outcome.stdout) == ("finished", printed), outcome


CALLS: dict[str, tuple[str, list[Any], Any]] = {
    "types": (
        "def f(x): return x",
        [[None, True, 2, 2.5, 1 + 2j, "\u00e9\ud800", b"\xff", (1,), {1, 2}, {(1, 2): [3]}, 10**30]],
        [None, True, 2, 2.5, 1 + 2j, "\u00e9\ud800", b"\xff", (1,), {1, 2}, {(1, 2): [3]}, 10**30],
    ),
    "infinite": ("def f(): return [float('inf'), -1e999, -(2**63)]", [], [float("inf"), float("-inf"), -(2**63)]),
    "subclasses": (
        "from collections import *\nclass I(int):\n    def __eq__(s, o): return True\n    def __hash__(s): return 1\n"
        "def f(): return [I(3), Counter('aa'), namedtuple('P', 'x')(1), OrderedDict(a=I(1))]",
        [],
        [3, {"a": 2}, (1,), {"a": 1}],
    ),
    "method": ("class Solution:\n    def f(self, x): return x + 1", [1], 2),
    "prints too": ("print('noise')\ndef f(x):\n    print('more')\n    return x", [1], 1),
}  # fmt: skip


@pytest.mark.parametrize(("source", "arguments", "value"), CALLS.values(), ids=CALLS)
def test_call(sandbox: Sandbox, source: str, arguments: list[Any], value: Any) -> None:
    program = Program(source=source, entry_point="f")
    outcome = sandbox.run(program, [arguments], QUICK)[0]
    assert (outcome.status, outcome.value) == ("finished", value), outcome
    assert type(outcome.value) is type(value)


NO_VALUE = {
    "no function": "x = 1",
    "object": "class A:\n    def __eq__(s, o): return True\ndef f(): return A()",
    "generator": "def f(): return (i for i in range(3))",
    "decimal": "from decimal import Decimal\ndef f(): return Decimal('1e999999999')",
    "deep": "def f():\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "cyclic": "def f():\n    x = []\n    x.append(x)\n    return x",
    "long integer": "def f(): return 1 << 33_219_281",
    "exits": "import sys\ndef f(): sys.exit(0)",
    "exits hard": "import os\ndef f(): os._exit(0)",
    "forged garbage": "import os\ndef f(): os.write(3, b'{\"x\": 1}'); os._exit(0)",
    "forged twice": "import os\ndef f(): os.write(3, b'[1]'); return 2",
    "forged depth": "import os\ndef f(): os.write(3, b'[' * 100000); os._exit(0)",
    "forged infinity": "import os\ndef f(): os.write(3, b'1e400'); os._exit(0)",
    "forged NaN": "import os\ndef f(): os.write(3, b'NaN'); os._exit(0)",
    "forged digits": "import os\ndef f(): os.write(3, b'9' * 10000); os._exit(0)",
    "forged bytes": "import os\ndef f(): os.write(3, b'\\xff\\x00'); os._exit(0)",
    "colliding set": "def f(): return {i * (2**61 - 1) for i in range(1, 200)}",
    "json replaced": "import json\njson.dumps = lambda *a, **k: 'true'\ndef f(): return object()",
}


@pytest.mark.parametrize("source", NO_VALUE.values(), ids=NO_VALUE)
def test_what_is_no_plain_value_is_an_error_of_the_program(sandbox: Sandbox, source: str) -> None:
    outcome = sandbox.run(Program(source=source, entry_point="f"), [[]], QUICK)[0]
    assert outcome.status in {"runtime_error", "memory"}, outcome
    assert outcome.value is None


def test_every_input_has_its_outcome_in_order(sandbox: Sandbox) -> None:
    program = Program(source="x = int(input())\nprint(10 // x)")
    outcomes = sandbox.run(program, [b"1", b"0", b"5"], QUICK)
    assert [o.status for o in outcomes] == ["finished", "runtime_error", "finished"]
    assert [o.stdout for o in outcomes] == [b"10\n", b"", b"2\n"]
    assert "ZeroDivisionError" in outcomes[1].detail


@pytest.mark.parametrize("source", ["def f(:", "print('a\x00')", "\ud800", "x" * (9 * 2**20)])
def test_what_is_no_program_is_an_error_of_the_program(sandbox: Sandbox, source: str) -> None:
    assert run_script(sandbox, source).status == "runtime_error"


def test_state_is_fresh_and_sets_have_one_order(sandbox: Sandbox) -> None:
    source = "print(list({'a', 'b', 'c', 'd'}), hash('a'))"
    first = run_script(sandbox, source).stdout
    sandbox.close()
    assert run_script(sandbox, source).stdout == first


def test_input_of_the_wrong_kind_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match="bytes for a script"):
        sandbox.run(Program(source="", entry_point="f"), [b""], QUICK)
    with pytest.raises(ConfigError, match="bytes for a script"):
        sandbox.run(Program(source=""), [[1]], QUICK)


def test_a_server_that_dies_is_replaced(sandbox: Sandbox) -> None:
    run_script(sandbox, "")
    for server in list(sandbox._idle):
        server._process.kill()
        server._process.wait()
    assert run_script(sandbox, "print(1)").stdout == b"1\n"


def test_declared_package_is_there() -> None:
    sandbox = open_sandbox(SandboxSettings(packages=("numpy",)))
    source = "import numpy as np\ndef f(): return [np.arange(3), np.float64(2.5), np.linalg.det(np.eye(3))]"
    limits = Limits(memory_bytes=1024**3)
    outcome = sandbox.run(Program(source=source, entry_point="f"), [[]], limits)[0]
    sandbox.close()
    assert outcome.value == [[0, 1, 2], 2.5, 1.0], outcome


def test_a_declared_package_brings_no_other() -> None:
    sandbox_of("landlock")
    sandbox = open_sandbox(SandboxSettings(packages=("numpy",)))
    neighbours = Path(pytest.__file__).parents[1]
    source = f"""
import os, numpy.fft, numpy.random
for act in (lambda: __import__("pytest"), lambda: os.listdir({str(neighbours)!r}),
            lambda: open({str(neighbours / "pytest" / "__init__.py")!r})):
    try: act()
    except (ImportError, OSError) as error: print(type(error).__name__)
"""
    outcome = run_script(sandbox, source)
    sandbox.close()
    assert outcome.stdout.split()[0] == b"ModuleNotFoundError", outcome
    assert len(outcome.stdout.split()) == 3


def test_packages_are_absent_unless_declared() -> None:
    outcome = run_script(sandbox_of("landlock"), "import numpy")
    assert outcome.status == "runtime_error"
    assert "ModuleNotFoundError" in outcome.detail
