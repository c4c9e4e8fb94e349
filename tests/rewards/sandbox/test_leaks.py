"""Nothing of one program, of its tests or of a reference is where another one runs."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.sandboxes import run_script, sandbox_of

from effopd.data.code_tests import CodeTests
from effopd.data.problem import Answer, Problem
from effopd.rewards.code import CodeChecking, CodeVerifier
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rewards.sandbox.program import Kind, Limits, Program, Sandbox, SandboxSettings

AMPLE = Limits(wall_s=60.0, cpu_s=30.0, memory_bytes=512 * 1024**2)

SEARCH = r"""
import ctypes, gc, os, re, sys

def pages():
    '''All that this process can read, found without a fault: a bad address is an error of write.'''
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    read, write = os.pipe()
    known = sorted({id(each) >> 12 for each in gc.get_objects()} | {libc.sbrk(0) >> 12})
    around = 2**13  # pages, 32 MiB
    start = end = known[0]
    ranges = []
    for page in known:
        if page - end > 2 * around:
            ranges.append((start - around, end + around))
            start = page
        end = page
    ranges.append((start - around, end + around))
    for start, end in ranges:
        before = b""
        for page in range(start, end):
            if libc.write(write, ctypes.c_void_p(page << 12), ctypes.c_size_t(4096)) == 4096:
                content = os.read(read, 4096)
                yield before + content
                before = (before + content)[-2000:]
            else:
                before = b""

MARK = re.compile(rb"canary-([a-z]+)-[0-9]{6}")

def marks():
    found = set()
    for content in pages():
        found.update(MARK.findall(content))
    for each in gc.get_objects():
        if isinstance(each, (dict, list, tuple, set)):
            found.update(MARK.findall(repr(each)[:100_000].encode()))
    frame = sys._getframe()
    while frame:
        found.update(MARK.findall(repr(frame.f_locals).encode()))
        frame = frame.f_back
    return sorted(each.decode() for each in found)
"""
"""Looks through its memory, its objects and the frames below it for marks."""


@pytest.fixture
def kind() -> Kind:
    sandbox_of("landlock")  # skips where there is none
    return "landlock"


@pytest.fixture
def sandbox(kind: Kind) -> Iterator[Sandbox]:
    """One server, which all programs of a test share."""
    sandbox = open_sandbox(SandboxSettings(kind=kind, processes=1))
    yield sandbox
    sandbox.close()


def leave_marks(sandbox: Sandbox) -> None:
    """Programs of which everything is marked: what they are, what they get and what they leave."""
    script = (
        "import sys; a = 'canary-source-000001'; print(input()); sys.exit('canary-error-000001')"
    )
    outcome = run_script(sandbox, script, b"canary-input-000001\n" * 40)
    assert outcome.stdout == b"canary-input-000001\n"
    call = Program(
        source="def canary_f(x):\n    'canary-reference-000001'\n    return x[::-1] + 'x' * 999",
        entry_point="canary_f",
    )
    calls: list[bytes | list[Any]] = [["canary-argument-000001" * 50], ["100000-eulav-yranac"]]
    values = [each.value for each in sandbox.run(call, calls, AMPLE)]
    assert values[1] == "canary-value-000001" + "x" * 999
    hung = Program(source="a = 'canary-hung-000001'\nwhile True: pass")
    assert sandbox.run(hung, [b""], Limits(wall_s=0.3))[0].status == "timeout"


def test_a_script_finds_nothing_of_others(sandbox: Sandbox) -> None:
    leave_marks(sandbox)
    found = run_script(sandbox, SEARCH + "print(input()[:6], marks())", b"canary-own-000001", AMPLE)
    assert found.stdout == b"canary ['own']\n", found


def test_a_function_finds_nothing_of_others(sandbox: Sandbox) -> None:
    leave_marks(sandbox)
    program = Program(source=SEARCH + "def f(x): return marks()", entry_point="f")
    (found,) = sandbox.run(program, [["canary-own-000001"]], AMPLE)
    assert found.value == ["own"], found


def test_a_test_finds_nothing_of_the_tests_before(sandbox: Sandbox) -> None:
    program = Program(source=SEARCH + "print(marks(), input()[:0])\nprint('canary-out-000001')")
    given = [b"canary-first-000001", b"canary-second-000001"]
    found = sandbox.run(program, [b"", *given], AMPLE)
    assert [each.status for each in found] == ["runtime_error", "finished", "finished"]
    assert [each.stdout.split(b"]")[0] for each in found[1:]] == [b"['out'", b"['out'"]


def one_process(kind: Kind) -> CodeVerifier:
    return CodeVerifier(CodeChecking(sandbox=SandboxSettings(kind=kind, processes=1), limits=AMPLE))


def completions(tests: CodeTests, sources: list[str]) -> list[Answer]:
    problem = Problem(id="p", prompt="", tests=tests)
    return [Answer(problem=problem, completion=f"```python\n{each}\n```") for each in sources]


def test_what_was_printed_before_cannot_be_printed_again(kind: Kind) -> None:
    tests = CodeTests(kind="stdin", inputs=("6 7",), outputs=("42",))
    right = "a, b = map(int, input().split())\nprint(a * b)"
    again = (
        "import gc, sys\nframe = sys._getframe()\nwhile frame:\n    for each in "
        "[*frame.f_locals.values(), *gc.get_objects()]:\n        text = getattr(each, 'stdout', "
        "None)\n        if isinstance(text, (bytes, bytearray)) and text: "
        "print(text.decode()); sys.exit()\n    frame = frame.f_back"
    )
    with one_process(kind) as verifier:
        answers = completions(tests, [right, again, again, right, again])
        assert verifier.rewards(answers) == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_a_reference_is_not_found_in_memory(kind: Kind) -> None:
    lines = "".join(f"    # line {place} of a long solution\n" for place in range(150))
    tests = CodeTests(
        kind="call", inputs=([2], [3]), entry_point="secret", rule="value",
        reference=f"def secret(x):\n{lines}    return x * x * x - 17\n",
    )  # fmt: skip
    thief = (
        SEARCH + "text = re.compile(rb'a long solu' + rb'tion\\n    return ([x *0-9-]{14})')\n"
        "for content in pages():\n    if found := text.search(content):\n"
        "        secret = eval('lambda x: ' + found[1].decode())\n"
    )
    with one_process(kind) as verifier:
        right, stolen = completions(tests, ["def secret(x): return x ** 3 - 17", thief])
        assert verifier.rewards([stolen, right, stolen]) == [0.0, 1.0, 0.0]


SLEEPERS = """
import threading, time
threading.stack_size(65536)
for _ in range(510):
    threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
time.sleep(3)
"""
HONEST = """
import threading
workers = [threading.Thread(target=print, args=("x",)) for _ in range(60)]
for each in workers: each.start()
for each in workers: each.join()
"""


def most_threads() -> int:
    """Of any process on this machine."""
    most = 0
    for tasks in Path("/proc").glob("[0-9]*/task"):
        try:
            most = max(most, len(os.listdir(tasks)))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return most


def test_threads_of_one_program_are_not_counted_for_another(kind: Kind) -> None:
    sandbox = open_sandbox(SandboxSettings(kind=kind, processes=2))
    sleeping = threading.Thread(target=run_script, args=(sandbox, SLEEPERS, b"", AMPLE))
    sleeping.start()
    try:
        while sleeping.is_alive() and most_threads() < 500:
            time.sleep(0.01)
        assert sleeping.is_alive()
        outcome = run_script(sandbox, HONEST, limits=AMPLE)
    finally:
        sleeping.join()
        sandbox.close()
    assert (outcome.status, outcome.stdout.count(b"x")) == ("finished", 60), outcome
