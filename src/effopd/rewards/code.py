"""Rewards for programs: each runs on the inputs of its problem, and its results are compared here.

What is expected never enters the process that runs a program, and its exit status, its messages and
its files decide nothing: a program earns its reward by the right results alone.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from effopd.data.code_tests import CodeTests
from effopd.data.problem import Answer
from effopd.errors import ConfigError, EffopdError
from effopd.rewards.code_comparison import is_expected
from effopd.rewards.code_extraction import assembled, written_program
from effopd.rewards.sandbox.opening import open_sandbox
from effopd.rewards.sandbox.program import (
    GoesOn,
    Limits,
    Outcome,
    Program,
    Sandbox,
    SandboxSettings,
)

CodeVerdict = Literal[
    "passed", "wrong_answer", "runtime_error", "timeout", "memory", "output_limit",
    "no_answer", "truncated",
]  # fmt: skip
"""How the check of a program ended: the first test that it did not pass decides."""


class SandboxError(EffopdError, RuntimeError):
    """The sandbox failed where it was tried again, too: nothing is known of the program."""


@dataclass(frozen=True, kw_only=True)
class CodeChecking:
    """How programs are checked.

    `reward` "all" is 1 for a program that passes every test, else 0, and stops at the first
    failure; "share" is the share of the tests that it passes.
    """

    sandbox: SandboxSettings = SandboxSettings()
    limits: Limits = Limits()
    reward: Literal["all", "share"] = "all"

    def __post_init__(self) -> None:
        if self.reward not in {"all", "share"}:
            raise ConfigError(f"reward must be 'all' or 'share', got {self.reward!r}")


_DEFAULT = CodeChecking()


class CodeVerifier:
    """Runs the last Python block of a completion on the tests of its problem.

    Programs run side by side, one a process of the sandbox. Close the verifier, or use it in a
    `with` statement, to end the processes early; they end with this process anyway.
    """

    def __init__(self, settings: CodeChecking = _DEFAULT) -> None:
        """Opens the sandbox, so that one that does not hold is known at once."""
        self.settings = settings
        self._sandbox: Sandbox = open_sandbox(settings.sandbox)
        self._expected: dict[CodeTests, tuple[Any, ...]] = {}
        self._counts: Counter[CodeVerdict] = Counter()
        self._lock = threading.Lock()

    @property
    def sandbox_kind(self) -> str:
        """Which boundary is used, for records."""
        return self._sandbox.kind

    @property
    def counts(self) -> Mapping[str, int]:
        """Verdicts so far."""
        with self._lock:
            return {verdict: self._counts[verdict] for verdict in get_args(CodeVerdict)}

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """One reward in [0, 1] per answer, in order.

        A SandboxError, raised by the check of any answer, ends the call: a program of which nothing
        is known must not be scored.
        """
        return [reward for _, reward in self._checked(answers)]

    def verdicts(self, answers: Sequence[Answer]) -> list[CodeVerdict]:
        """How each check ended, in order; raises as `rewards` does."""
        return [verdict for verdict, _ in self._checked(answers)]

    def _checked(self, answers: Sequence[Answer]) -> list[tuple[CodeVerdict, float]]:
        """Verdict and reward of each answer; verdicts are added to `counts`."""
        with ThreadPoolExecutor(self.settings.sandbox.processes) as pool:
            checked = list(pool.map(self._check, answers))
        with self._lock:
            self._counts.update(verdict for verdict, _ in checked)
        return checked

    def close(self) -> None:
        """Ends the processes; another check would start them again."""
        self._sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, answer: Answer) -> tuple[CodeVerdict, float]:
        tests = answer.problem.tests
        if tests is None:
            raise ConfigError(f"problem {answer.problem.id} has no tests: it asks for no program")
        if answer.is_truncated:
            return "truncated", 0.0
        written = written_program(answer.completion, continues_prompt=bool(tests.preamble))
        if written is None:
            return "no_answer", 0.0
        expected = tests.outputs or self._reference_outputs(tests)
        source = assembled(tests.preamble, written)
        verdicts: list[CodeVerdict] = []

        def goes_on(index: int, outcome: Outcome) -> bool:
            verdict: CodeVerdict = "passed"
            if outcome.status != "finished":
                verdict = next(known for known in get_args(CodeVerdict) if known == outcome.status)
            elif not is_expected(tests, index, expected[index], _result(tests, outcome)):
                verdict = "wrong_answer"
            verdicts.append(verdict)
            return self.settings.reward == "share" or verdict == "passed"

        self._run(source, tests, goes_on)
        failed = (verdict for verdict in verdicts if verdict != "passed")
        ended: CodeVerdict = next(failed, "passed")
        share = verdicts.count("passed") / len(tests.inputs)
        return ended, share if self.settings.reward == "share" else float(ended == "passed")

    def _reference_outputs(self, tests: CodeTests) -> tuple[Any, ...]:
        """What the reference gives, where the problem does not say what is expected."""
        with self._lock:
            known = self._expected.get(tests)
        if known is None:
            outcomes = self._run(tests.reference, tests, lambda _, each: each.status == "finished")
            last = outcomes[-1]
            if last.status != "finished":
                raise SandboxError(
                    f"the reference solution of {tests.entry_point or 'a problem'} came to "
                    f"{last.status} {last.detail[-200:]}: give it more in limits, allow the "
                    "packages that it imports (sandbox.packages), or leave the problem out"
                )
            known = tuple(_result(tests, each) for each in outcomes)
            with self._lock:
                self._expected[tests] = known
        return known

    def _run(self, source: str, tests: CodeTests, goes_on: GoesOn) -> list[Outcome]:
        """Runs a program on the tests, as long as it goes on; SandboxError where that fails."""
        outcomes = self._sandbox.run(
            Program(source=source, entry_point=tests.entry_point),
            [each.encode() if tests.kind == "stdin" else each for each in tests.inputs],
            self.settings.limits,
            lambda index, each: each.status != "sandbox_error" and goes_on(index, each),
        )
        if outcomes[-1].status == "sandbox_error":
            raise SandboxError(
                f"a program could not be checked ({outcomes[-1].detail[-200:]}): it is neither "
                "right nor wrong. See the sandbox and the memory of this machine, then go on"
            )
        return outcomes


def _result(tests: CodeTests, outcome: Outcome) -> Any:
    return outcome.stdout if tests.kind == "stdin" else outcome.value
