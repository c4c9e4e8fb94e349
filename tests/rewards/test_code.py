"""Rewards of programs, in every sandbox of this machine; the cheats of a program that is wrong."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.sandboxes import sandbox_of

from effopd.data.code_formats import from_codeforces, from_evalplus, from_input_output
from effopd.data.code_tests import CodeTests
from effopd.data.problem import Answer, Problem
from effopd.errors import ConfigError
from effopd.rewards.code import CodeChecking, CodeVerifier, SandboxError
from effopd.rewards.sandbox.program import Kind, Limits, SandboxSettings

DATA = Path(__file__).parents[3] / "shared" / "data"
LIMITS = Limits(wall_s=20.0, cpu_s=2.0, memory_bytes=256 * 1024**2, output_bytes=64 * 1024)
SUMS = CodeTests(kind="stdin", inputs=("1 2\n", "30 4\n", "-5 5\n"), outputs=("3", "34", "0"))
DOUBLES = CodeTests(
    kind="call", inputs=([1], [21], [-3]), outputs=(2, 42, -6), entry_point="double", rule="value"
)


@pytest.fixture(scope="module", params=["landlock"])
def kind(request: pytest.FixtureRequest) -> Kind:
    sandbox_of(request.param)  # skips where there is none
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def verifier(kind: Kind) -> Iterator[CodeVerifier]:
    with CodeVerifier(checking(kind)) as verifier:
        assert verifier.sandbox_kind == kind
        yield verifier


def checking(kind: Kind, **changes: Any) -> CodeChecking:
    return CodeChecking(sandbox=SandboxSettings(kind=kind), limits=LIMITS, **changes)


def answer(tests: CodeTests, source: str, **changes: Any) -> Answer:
    problem = Problem(id="p", prompt="", tests=tests)
    return Answer(problem=problem, completion=f"So:\n```python\n{source}\n```\n", **changes)


def verdict(verifier: CodeVerifier, given: Answer) -> tuple[str, float]:
    before = dict(verifier.counts)
    reward = verifier.rewards([given])[0]
    changed = [name for name, count in verifier.counts.items() if count != before[name]]
    assert len(changed) == 1
    return changed[0], reward


RIGHT = "a, b = map(int, input().split())\nprint(a + b)"

SCRIPTS = [
    (RIGHT, "passed"), (f"{RIGHT}\nexit()", "passed"), ("print(3)", "wrong_answer"),
    ("print('3'); 1 / 0", "runtime_error"), ("import os; print(3); os._exit(0)", "wrong_answer"),
    ("while True: pass", "timeout"), ("x = bytearray(2**31)", "memory"),
    ("print('3' * 10**6)", "output_limit"), ("import sys; sys.exit(0)", "wrong_answer"),
    ("if True", "runtime_error"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "wanted"), SCRIPTS)
def test_scripts(verifier: CodeVerifier, source: str, wanted: str) -> None:
    assert verdict(verifier, answer(SUMS, source)) == (wanted, float(wanted == "passed"))


CHEATS = [
    "class Always(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    "def double(x): return Always(7)",
    "class Any:\n    def __eq__(self, other): return True\ndef double(x): return Any()",
    "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        for name in ('expected', 'outputs', 'tests', 'gt_out'):\n"
    "            if name in frame.f_locals: return frame.f_locals[name]\n"
    "        frame = frame.f_back",
    "import builtins, json\njson.dumps = lambda *a, **k: '[2]'\n"
    "builtins.isinstance = lambda *a: True\n"
    "def double(x): return 0",
    "import os\ndef double(x):\n    for fd in range(3, 20):\n        try: os.write(fd, b'passed')\n"
    "        except OSError: pass\n    return 0",
    'import sys\ndef double(x):\n    print(\'{"status": "passed"}\'); sys.exit(0)',
    "def double(x): return float('nan')", "def double(x): return [2, 42, -6]",
    "def double(x): return '2'",
]  # fmt: skip


@pytest.mark.parametrize("source", CHEATS)
def test_no_cheat_earns_anything(verifier: CodeVerifier, source: str) -> None:
    _, reward = verdict(verifier, answer(DOUBLES, source))
    assert reward == 0.0


@pytest.mark.parametrize(
    "source",
    [
        "def double(x): return 2 * x",
        "class Solution:\n    def double(self, x): return x + x",
        "def double(x): return 2.0 * x",
    ],
)
def test_functions_and_methods_that_are_right(verifier: CodeVerifier, source: str) -> None:
    assert verdict(verifier, answer(DOUBLES, source)) == ("passed", 1.0)


def test_what_holds_no_program_and_what_was_cut_is_not_run(verifier: CodeVerifier) -> None:
    problem = Problem(id="p", prompt="", tests=SUMS)
    for text in ("print(3)", "```python\nprint(3)", "```\n\n```"):
        assert verdict(verifier, Answer(problem=problem, completion=text)) == ("no_answer", 0.0)
    assert verdict(verifier, answer(SUMS, RIGHT, is_truncated=True)) == ("truncated", 0.0)


FORMS: dict[str, Callable[[str, str], CodeTests]] = {
    "input_output": lambda given, expected: from_input_output(
        {"inputs": [given], "outputs": [expected]}
    ),
    "codeforces": lambda given, expected: from_codeforces(
        {"official_tests": [{"input": given, "output": expected}]}
    ),
}

JUDGED = [
    ("10", "0010", "print(input())", "wrong_answer"), ("0010", "0010", "print(input())", "passed"),
    ("1.1", "1.10", "print(input())", "wrong_answer"),
    ("7 5", "07 05", "print(input())", "wrong_answer"),
    ("10", "10", "print('1e1')", "wrong_answer"),
    ("4 2", "2", "a, b = map(int, input().split())\nprint(a / b)", "passed"),
    ("1 3", "0.333333333333", "a, b = map(int, input().split())\nprint(a / b)", "passed"),
    ("9" * 5000, "1" + "0" * 5000, "print(int(input()) + 1)", "passed"),
    ("", "6", "import sys\nprint(len(sys.stdin.mode + sys.stdout.mode) * 3)", "passed"),
    ("", "6", "f = open(1, 'w')\nf.write('6')", "passed"),
    ("", "6", "import sys\nprint(6)\nsys.stdout.close()", "passed"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("given", "expected", "source", "wanted"), JUDGED, ids=[str(i) for i in range(len(JUDGED))]
)
def test_judged_as_where_the_problem_comes_from(
    verifier: CodeVerifier, form: str, given: str, expected: str, source: str, wanted: str
) -> None:
    tests = FORMS[form](given, expected)
    assert verdict(verifier, answer(tests, source))[0] == wanted


STUB = CodeTests(
    kind="call", inputs=([2, 3],), outputs=(5,), entry_point="add", rule="value",
    preamble='def add(a, b):\n    """Adds."""\n',
)  # fmt: skip


@pytest.mark.parametrize(
    ("tests", "completion"),
    [
        (STUB, "    return a + b\n"), (STUB, "    return a + b\n```"),
        (STUB, "    return a + b\n```\n\nExample:\n```python\nadd(1, 2)\n```\n"),
        (STUB, "```python\ndef add(a, b):\n    return a + b\n```"),
        (SUMS, f"<answer>```python\n{RIGHT}\n```</answer>"),
        (SUMS, f"Here: ```pypy3\n{RIGHT}\n```"),
        (SUMS, f"```python\n{RIGHT}\n```\nOutput:\n```\n3\n"), (SUMS, f"{RIGHT}\n```\n"),
    ],
)  # fmt: skip
def test_programs_are_found_as_models_write_them(
    verifier: CodeVerifier, tests: CodeTests, completion: str
) -> None:
    problem = Problem(id="p", prompt="", tests=tests)
    assert verdict(verifier, Answer(problem=problem, completion=completion)) == ("passed", 1.0)


def test_rewards_are_in_order_and_counted(verifier: CodeVerifier) -> None:
    before = dict(verifier.counts)
    answers = [answer(SUMS, RIGHT), answer(SUMS, "print(3)"), answer(DOUBLES, "double = abs")] * 3
    assert verifier.rewards(answers) == [1.0, 0.0, 0.0] * 3
    assert verifier.counts["passed"] - before["passed"] == 3
    assert verifier.counts["wrong_answer"] - before["wrong_answer"] == 6
    assert verifier.rewards([]) == []


def test_a_share_of_the_tests_earns_a_share(kind: Kind) -> None:
    with CodeVerifier(checking(kind, reward="share")) as verifier:
        assert verifier.rewards([answer(SUMS, "print(3)")]) == [1 / 3]
        assert verifier.rewards([answer(DOUBLES, "def double(x): return abs(2 * x)")]) == [2 / 3]


def test_a_reference_says_what_is_expected_once(verifier: CodeVerifier) -> None:
    tests = CodeTests(
        kind="call", inputs=([2], [3]), entry_point="double", rule="value",
        reference="def double(x): return (x, 2 * x)",
    )  # fmt: skip
    assert verifier.rewards([answer(tests, "double = lambda x: (x, x + x)")]) == [1.0]
    assert verifier.rewards([answer(tests, "double = lambda x: [x, x + x]")]) == [0.0]


def test_a_reference_that_fails_stops_the_check(verifier: CodeVerifier) -> None:
    tests = CodeTests(
        kind="call", inputs=([2],), entry_point="double", rule="value", reference="1 / 0"
    )
    with pytest.raises(SandboxError, match="reference solution of double came to runtime_error"):
        verifier.rewards([answer(tests, "double = abs")])


def test_a_problem_without_tests_is_a_mistake(verifier: CodeVerifier) -> None:
    with pytest.raises(ConfigError, match="problem p has no tests"):
        verifier.rewards([Answer(problem=Problem(id="p", prompt=""), completion="")])


def test_a_reward_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="reward must be 'all' or 'share'"):
        CodeChecking(reward="half")  # type: ignore[arg-type]


def solutions(file: str) -> list[Answer]:
    path = DATA / file
    if not path.is_file():
        pytest.skip(f"{file} is not here")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [answer(from_evalplus(row), row["prompt"] + row["canonical_solution"]) for row in rows]


@pytest.mark.parametrize("file", ["humaneval_plus_60.jsonl", "mbpp_plus_60.jsonl"])
def test_some_reference_solutions_pass(verifier: CodeVerifier, file: str) -> None:
    assert verifier.rewards(solutions(file)[:4]) == [1.0] * 4


@pytest.mark.slow
@pytest.mark.parametrize("file", ["humaneval_plus_60.jsonl", "mbpp_plus_60.jsonl"])
def test_every_reference_solution_passes(kind: Kind, file: str) -> None:
    with CodeVerifier(CodeChecking(sandbox=SandboxSettings(kind=kind))) as verifier:
        assert verifier.rewards(solutions(file)) == [1.0] * 60
