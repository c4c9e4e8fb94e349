"""Verdicts on programs per second, against a fresh Python process without a boundary.

    python bench/code.py [--json] [--data ../shared/data] [--programs 120] [--processes 2]

Three sets of programs, each a completion with a fenced block:

- `stdin`: adds two numbers, five tests by standard input; every other program is wrong.
- `plus`: the reference solutions of HumanEval+ and MBPP+, all their tests, by calls.
- `broken`: does not parse.

Ours is a warm `CodeVerifier` in the best sandbox of the machine. The peer runs the same program on
the same inputs with `subprocess` and no protection at all, one process a test for `stdin` and
`broken`, one for all calls of a `plus` program, as harnesses without a sandbox do; as many at once.
Both judge a set in one call. The peer's results of calls are not compared with anything, which
flatters it. `passed` counts what ours accepts.

The line `hang` is seconds from a program that never ends to the next verdict, at a wall of one
second; `first` those until the first verdict of a new verifier.

ratio: how many times more verdicts a second than the peer.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from platform import python_version
from typing import Any

from effopd.data.benchmarks import load_benchmark
from effopd.data.code_tests import CodeTests
from effopd.data.problem import Answer, Problem
from effopd.rewards.code import CodeChecking, CodeVerifier
from effopd.rewards.sandbox.program import Limits, SandboxSettings

DATA = Path(__file__).parents[2] / "shared" / "data"
SHOWN = ("setting", "programs", "ours", "peer", "ratio", "passed")
SUMS = [(f"{i} {i * i}\n", f"{i + i * i}\n") for i in range(5)]

Answers = list[Answer]


def answer(name: str, source: str, tests: CodeTests) -> Answer:
    problem = Problem(id=name, prompt="", tests=tests)
    return Answer(problem=problem, completion=f"```python\n{source}\n```")


def answer_sets(data: Path, size: int) -> dict[str, Answers]:
    """Name of a set -> its completions."""
    inputs, outputs = zip(*SUMS, strict=True)
    sums = CodeTests(kind="stdin", inputs=inputs, outputs=outputs)
    source = "a, b = map(int, input().split())\nprint(a + b + {})"
    sets = {"stdin": [answer("s", source.format(i % 2), sums) for i in range(size)]}
    for name, file in (("humaneval+", "humaneval_plus_60"), ("mbpp+", "mbpp_plus_60")):
        if (path := data / f"{file}.jsonl").is_file():
            found = load_benchmark(name, str(path)).questions
            given = [Answer(problem=q.problem, completion=q.solution) for q in found]
            sets["plus"] = [*sets.get("plus", []), *given][:size]
    sets["broken"] = [answer("b", f"print({i}", sums) for i in range(size)]
    return sets


def peer_run(given: Answer) -> None:
    """The program of an answer on its tests, unprotected."""
    tests = given.problem.tests
    assert tests is not None
    source = given.completion.removeprefix("```python\n").removesuffix("\n```")
    if tests.kind == "stdin":
        for text in tests.inputs:
            subprocess.run([sys.executable, "-c", source], input=text.encode(), capture_output=True)
        return
    calls = f"\nfor arguments in {list(tests.inputs)!r}:\n    {tests.entry_point}(*arguments)\n"
    subprocess.run([sys.executable, "-"], input=(source + calls).encode(), capture_output=True)


def seconds(act: Callable[[], object], repeats: int) -> float:
    """Of the fastest repeat."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return min(times)


def rows(data: Path, size: int, processes: int, repeats: int) -> Iterator[dict[str, Any]]:
    settings = CodeChecking(sandbox=SandboxSettings(processes=processes))
    began = time.perf_counter()
    with CodeVerifier(settings) as verifier, ThreadPoolExecutor(processes) as pool:
        sets = answer_sets(data, size)
        verifier.rewards(sets["stdin"][:1])
        yield waiting("first", time.perf_counter() - began, verifier.sandbox_kind)
        for name, answers in sets.items():
            passed = verifier.rewards(answers).count(1.0)  # references are run once, here
            ours = len(answers) / seconds(lambda a=answers: verifier.rewards(a), repeats)
            peer = len(answers) / seconds(lambda a=answers: list(pool.map(peer_run, a)), repeats)
            yield {
                "name": "code",
                "setting": name,
                "ours": round(ours, 1),
                "peer": round(peer, 1),
                "peer_name": "subprocess without a boundary",
                "peer_version": python_version(),
                "unit": "verdicts/s",
                "ratio": round(ours / peer, 2),
                "programs": len(answers),
                "passed": passed,
                "sandbox": verifier.sandbox_kind,
            }
    yield hang()


def hang() -> dict[str, Any]:
    """A program that never ends, and the next one after it."""
    inputs, outputs = zip(*SUMS, strict=True)
    sums = CodeTests(kind="stdin", inputs=inputs, outputs=outputs)
    limits = Limits(wall_s=1.0, cpu_s=1.0)
    with CodeVerifier(
        CodeChecking(sandbox=SandboxSettings(processes=1), limits=limits)
    ) as verifier:
        good = answer("g", "print(sum(map(int, input().split())))", sums)
        assert verifier.rewards([good]) == [1.0]
        endless = answer("e", "while True: pass", sums)
        taken = seconds(lambda: verifier.rewards([endless]) + verifier.rewards([good]), 1)
        assert verifier.counts["timeout"] == 1
        return waiting("hang", taken, verifier.sandbox_kind)


def waiting(setting: str, taken: float, sandbox: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("peer", "peer_name", "peer_version", "ratio"))
    row = {"name": "code", "setting": setting, "ours": round(taken, 2), "unit": "s"}
    return row | {"sandbox": sandbox} | nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the EvalPlus files")
    parser.add_argument("--programs", type=int, default=120, help="programs in a set, at most")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    for row in rows(options.data, options.programs, options.processes, options.repeats):
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            shown = [f"{key} {row[key]}" for key in SHOWN if row.get(key) is not None]
            print("  ".join([*shown, row["unit"], row["sandbox"]]), flush=True)


if __name__ == "__main__":
    main()
