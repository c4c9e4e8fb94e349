"""Many calls in one process: each has an outcome, a state and limits of its own."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.sandboxes import BRIEF, QUICK, sandbox_of

from effopd.data.code_tests import CodeTests
from effopd.data.problem import Answer, Problem
from effopd.rewards.code import CodeChecking, CodeVerifier
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rewards.sandbox.program import Limits, Outcome, Program, Sandbox, SandboxSettings
from effopd.rewards.sandbox.server_process import Ending, Job, ServerProcess


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each child was given, in order."""
    given: list[int] = []
    run = ServerProcess.run

    def counted(self: ServerProcess, job: Job) -> Ending:
        given.append(job.numbers["calls"])
        return run(self, job)

    monkeypatch.setattr(ServerProcess, "run", counted)
    return given


def calls(
    sandbox: Sandbox, source: str, inputs: list[Any], limits: Limits = QUICK
) -> list[Outcome]:
    program = Program(source=source, entry_point="f")
    return sandbox.run(program, [[each] for each in inputs], limits)


def test_all_calls_are_made_in_one_child(sandbox: Sandbox, jobs: list[int]) -> None:
    outcomes = calls(sandbox, "def f(x): return x * x", list(range(200)))
    assert [each.value for each in outcomes] == [n * n for n in range(200)]
    assert jobs == [200]


def test_globals_are_made_anew_for_each_call(sandbox: Sandbox) -> None:
    source = """
memo, count = {}, 0
def f(x, seen=[]):
    global count
    count += 1
    seen.append(x)
    memo.setdefault("first", x)
    return [count, list(seen), memo["first"]]
"""
    outcomes = calls(sandbox, source, [5, 6, 7])
    assert [each.value for each in outcomes] == [[1, [n], n] for n in (5, 6, 7)]


FAILURES = {
    "raises": ("1 / 0", "runtime_error"), "exits": ("raise SystemExit(0)", "runtime_error"),
    "exits hard": ("import os; os._exit(0)", "runtime_error"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "runtime_error"),
    "no value": ("return object()", "runtime_error"),
    "memory": ("return len(bytearray(2**33))", "memory"),
    "floods": ("print('x' * 2**21)", "output_limit"),
    "floods errors": ("import sys; sys.stderr.write('x' * 2**21)", "output_limit"),
    "long value": ("return 'x' * 2**21", "output_limit"),
    "forges": ("import os; os.write(3, b'{\"x\": 1}\\n')", "runtime_error"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "status"), FAILURES.values(), ids=FAILURES)
def test_a_call_that_fails_fails_alone(sandbox: Sandbox, act: str, status: str) -> None:
    source = f"def f(x):\n    if x % 3 == 1:\n        {act}\n    return -x"
    outcomes = calls(sandbox, source, list(range(6)))
    assert [each.status for each in outcomes] == ["finished", status, "finished"] * 2
    assert [each.value for each in outcomes] == [0, None, -2, -3, None, -5]


def test_what_earlier_calls_used_up_fails_none(sandbox: Sandbox, jobs: list[int]) -> None:
    """Memory, output and threads of a child are those of all its calls; each may have them all."""
    source = """
import sys
kept = sys.modules["math"].__dict__.setdefault("kept", [])
def f(x):
    kept.append(bytearray(60 * 2**20))
    print("x" * 300_000)
    return len(kept)
"""
    outcomes = calls(sandbox, source, list(range(8)))
    assert [each.status for each in outcomes] == ["finished"] * 8
    assert len(jobs) > 1


def test_a_hang_ends_its_own_call_once(sandbox: Sandbox, jobs: list[int]) -> None:
    source = "def f(x):\n    while x == 2: pass\n    return x"
    for limits in (BRIEF, Limits(wall_s=20.0, cpu_s=0.5, memory_bytes=256 * 1024**2)):
        jobs.clear()
        outcomes = calls(sandbox, source, [0, 1, 2, 3], limits)
        assert [each.status for each in outcomes] == ["finished"] * 2 + ["timeout", "finished"]
        assert jobs == [4, 1]  # the one that hangs is not tried again


def test_time_is_counted_for_each_call(jobs: list[int]) -> None:
    source = "import time\ndef f(x): time.sleep(0.5); return x"
    sandbox = sandbox_of("landlock")
    jobs.clear()  # of the probe
    outcomes = calls(sandbox, source, list(range(6)), Limits(wall_s=2.5))
    assert [each.value for each in outcomes] == list(range(6))
    assert jobs == [6]


def test_time_is_won_by_values_alone(sandbox: Sandbox) -> None:
    """What a program writes to have more time is taken for what its calls came to."""
    source = """
import os, time
def f(x):
    for _ in range(20):
        time.sleep(0.2)
        os.write(3, b"0\\n")
    return x
"""
    outcomes = calls(sandbox, source, [1, 2, 3], BRIEF)
    assert [(each.status, each.value) for each in outcomes] == [("finished", 0)] * 3
    source = "import os\ntry: os.eventfd_write(5, 1); os.write(5, b'1')\nexcept OSError: pass\n"
    outcomes = calls(sandbox, source + "def f(x):\n    while True: pass", [1, 2], BRIEF)
    assert [each.status for each in outcomes] == ["timeout"] * 2


def test_the_first_outcome_that_is_not_wanted_is_the_last(
    sandbox: Sandbox, jobs: list[int]
) -> None:
    def is_small(place: int, outcome: Outcome) -> bool:
        return outcome.status == "finished" and outcome.value != 3

    program = Program(source="def f(x): return x", entry_point="f")
    outcomes = sandbox.run(program, [[n] for n in range(100)], QUICK, is_small)
    assert [each.value for each in outcomes] == [0, 1, 2, 3]
    endless = Program(source="while True: pass")
    assert len(sandbox.run(endless, [b""] * 20, BRIEF, is_small)) == 1
    endless = Program(source="def f(x):\n    while True: pass", entry_point="f")
    assert len(sandbox.run(endless, [[n] for n in range(20)], BRIEF, is_small)) == 1
    assert jobs == [100, 1, 20]


def test_a_caller_that_fails_leaves_no_program_behind(sandbox: Sandbox) -> None:
    def fails(place: int, outcome: Outcome) -> bool:
        raise ZeroDivisionError

    program = Program(source="print(1)\ndef f(x): return x", entry_point="f")
    with pytest.raises(ZeroDivisionError):
        sandbox.run(program, [[n] for n in range(100)], QUICK, fails)
    assert calls(sandbox, "def f(x): return x", [1])[0].value == 1


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    settings = CodeChecking(sandbox=SandboxSettings(processes=1), limits=BRIEF)
    with CodeVerifier(settings) as verifier:
        yield verifier


@pytest.mark.parametrize("kind", ["stdin", "call"])
def test_a_program_that_hangs_costs_one_limit(
    verifier: CodeVerifier, jobs: list[int], kind: Any
) -> None:
    if kind == "stdin":
        tests = CodeTests(kind="stdin", inputs=("1",) * 20, outputs=("1",) * 20)
        source = "while True: pass"
    else:
        tests = CodeTests(
            kind="call", inputs=([1],) * 20, outputs=(1,) * 20, entry_point="f", rule="value"
        )
        source = "def f(x):\n    while True: pass"
    problem = Problem(id="p", prompt="", tests=tests)
    answer = Answer(problem=problem, completion=f"```python\n{source}\n```")
    assert verifier.verdicts([answer]) == ["timeout"]
    assert len(jobs) == 1


def test_arguments_of_later_calls_take_no_memory() -> None:
    """A call has the memory of a program that is given its arguments alone."""
    sandbox = open_sandbox(SandboxSettings(processes=1))
    limits = Limits(memory_bytes=64 * 2**20)
    text = "x" * (8 * 2**20)
    outcomes = calls(sandbox, "def f(x): return len(x)", [text] * 12, limits)
    sandbox.close()
    assert [each.value for each in outcomes] == [len(text)] * 12
