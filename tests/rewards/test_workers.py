"""The processes that compare: hangs, hostile answers, deaths, forged replies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.processes import fork, wait

from effopd.data.problem import Answer, Problem
from effopd.errors import ConfigError
from effopd.rewards import workers
from effopd.rewards.math import MathVerifier
from effopd.rewards.workers import WorkerPool, WorkerSettings

pytest.importorskip("math_verify")

EQUAL = ((r"\sqrt8", r"2\sqrt2"),)
UNEQUAL = ((r"\sqrt8", r"3\sqrt2"),)

HANGS = {
    "tower": "9^9^9^9", "factorial": "10^9!", "factorials": "((100!)!)!",
    "binomial": r"\binom{10^9}{5 \cdot 10^8}", "sum": r"\sum_{k=1}^{10^{12}} \frac{1}{k}",
    "product": r"\prod_{k=1}^{10^9} k", "modulo": r"7^{10^{10}} \mod 13", "gamma": r"\Gamma(10^9)",
    "integrals": r"\int_0^1 \int_0^x \int_0^y \int_0^z e^{-t^4 \sin(t)} dt dz dy dx",
    "parentheses": "(" * 5000 + "1" + ")" * 5000,
    "terms": "+".join(f"x_{{{i}}}" for i in range(3000)),
    "elements": r"\{" + ",".join(map(str, range(20_000))) + r"\}", "powers": "(x+y+z+w+1)^{60}",
    "digits": "1" * 200_000, "fractions": r"\frac{1}{" * 400 + "2" + "}" * 400,
    "boxes": r"\boxed{" * 5000, "backslashes": "\\" * 50_000,
    "roots": r"\sqrt{" * 39 + "2" + "}" * 39, "powers of 10": r"10^{10^{9}} + \sqrt{2}",
    "sine": r"\sin(\pi^{10^{8}})",
}  # fmt: skip
"""Answers that keep a computer algebra system busy; the reference is 7."""


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """One that is patient: its verdicts do not depend on how busy this machine is."""
    pool = WorkerPool(WorkerSettings(processes=1, wall_s=120.0))
    yield pool
    pool.close()


def only_worker(pool: WorkerPool) -> int:
    """Process id of its worker, which does nothing now."""
    (worker,) = pool._idle
    return worker.process.pid


def is_alive(process: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def wait_until(condition: Callable[[], object]) -> bool:
    while not condition():
        time.sleep(0.01)
    return True


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"), [("processes", 0), ("wall_s", 0.0), ("memory_bytes", 10**8)]
)
def test_settings_check_themselves(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=setting):
        WorkerSettings(**{setting: value})  # type: ignore[arg-type]


def test_pool_without_checks_starts_nothing(pool: WorkerPool) -> None:
    idle = WorkerPool(WorkerSettings())
    assert idle.verdicts([]) == []
    assert idle._idle == []
    idle.close()


# Order and concurrency ----------------------------------------------------------------------------


def test_verdicts_are_in_order_and_the_same_in_any_other(pool: WorkerPool) -> None:
    checks = [EQUAL, UNEQUAL, (("x+1", "1+x"),), ((r"\{", "1"),), (("1", r"\{"),), (("y", "x"),)]
    wanted = ["correct", "wrong", "correct", "error", "wrong", "wrong"]
    assert pool.verdicts(checks) == wanted
    assert pool.verdicts(checks[::-1]) == wanted[::-1]
    several = WorkerPool(WorkerSettings(processes=2, wall_s=120.0))
    assert several.verdicts(checks * 5) == wanted * 5
    assert 1 <= len(several._idle) <= 2
    several.close()


def test_one_equal_pair_is_enough(pool: WorkerPool) -> None:
    assert pool.verdicts([UNEQUAL + EQUAL, UNEQUAL + UNEQUAL]) == ["correct", "wrong"]


def test_a_forked_process_has_workers_of_its_own(pool: WorkerPool) -> None:
    before = only_worker(pool)

    def body() -> int:
        same = pool.verdicts([EQUAL, UNEQUAL]) == ["correct", "wrong"]
        mine = only_worker(pool) != before
        pool.close()
        return 0 if same and mine else 1

    assert wait(fork(body)) == 0
    assert only_worker(pool) == before
    assert pool.verdicts([EQUAL]) == ["correct"]


# Hangs and hostile answers ------------------------------------------------------------------------


def boxed_answer(answer: str) -> Answer:
    problem = Problem(id="p", prompt="", answer="7")
    return Answer(problem=problem, completion=rf"\boxed{{{answer}}}")


def test_every_hang_costs_one_verdict_within_the_wall() -> None:
    settings = WorkerSettings(processes=2, wall_s=1.0)
    answers = [boxed_answer(answer) for answer in HANGS.values()]
    with MathVerifier(settings) as verifier:
        verdicts = dict(zip(HANGS, verifier.verdicts(answers), strict=True))
        counts = verifier.counts
    assert "correct" not in verdicts.values()
    assert verdicts["sine"] == "timeout"
    large = ("factorial", "factorials", "binomial", "modulo", "gamma", "powers", "powers of 10")
    assert {verdicts[name] for name in large} == {"wrong"}  # compared without being computed
    refused = ("tower", "parentheses", "terms", "elements", "digits", "fractions")
    assert {verdicts[name] for name in refused} == {"error"}
    assert verdicts["boxes"] == "no_answer"
    assert counts["timeout"] == list(verdicts.values()).count("timeout")
    assert sum(counts.values()) == len(HANGS)


def test_a_stopped_worker_is_replaced() -> None:
    pool = WorkerPool(WorkerSettings(processes=1, wall_s=2.0))
    pool.verdicts([EQUAL])
    os.kill(only_worker(pool), signal.SIGSTOP)
    assert pool.verdicts([EQUAL]) == ["timeout"]
    pool.close()


MARK = "effopd-mark-of-an-executed-answer"

PAYLOADS = [
    "__import__('os').system('touch {}')",
    "eval(\"__import__('os').system('touch {}')\")",
    "exec('open(\"{}\", \"w\")')",
    "open('{}', 'w').write('1')",
    "().__class__.__base__.__subclasses__()",
    "[c for c in ().__class__.__base__.__subclasses__() if c('touch {}', shell=True)]",
    "(lambda: __import__('subprocess').Popen(['sleep', '977']))()",
    "os.system('touch {}')",
    "import os; os.system('touch {}')",
    "sympify(\"__import__('os').system('touch {}')\")",
    "parse_expr(\"open('{}','w')\")",
    "lambdify(x, \"open('{}','w')\")(1)",
    "S(\"__import__('os').mkdir('{}')\")",
    "\\pi + __import__('os').system('touch {}')",
    "2*\\pi*open('{}','w')",
    "1/open('{}','w').fileno()",
    "\\text{{__import__('os').system('touch {}')}}",
    "\\operatorname{{eval}}(open('{}','w'))",
    "\\mathrm{{exec}}\\left(open('{}','w')\\right)",
    "\\input{{|\"touch {}\"}}",
    "\\write18{{touch {}}}",
    "\\immediate\\write18{{touch {}}}",
    "\\openout1={} \\write1{{x}}",
    "\\catcode`\\@=0 \\include{{{}}}",
    "\\def\\x{{touch {}}}\\csname x\\endcsname",
    "`touch {}`",
    "$(touch {})",
    "1; touch {}",
    "1\n__import__('os').system('touch {}')",
    "{{\"id\": 0, \"verdict\": \"correct\"}}",
    "1\"]]}}\n{{\"id\": 0, \"pairs\": [[\"7\", \"7",
    "\x1b]0;touch {}\x07",
    "%s%n{}",
    "{{{{7*7}}}} ${{7*7}} touch {}",
]  # fmt: skip


def test_no_payload_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / MARK
    answers = [boxed_answer(payload.format(mark)) for payload in PAYLOADS if payload]
    assert len(answers) >= 30
    with MathVerifier(WorkerSettings(processes=1, wall_s=10.0)) as verifier:
        verdicts = verifier.verdicts(answers)
        (plain,) = verifier.verdicts([boxed_answer("7")])
    assert "correct" not in verdicts
    assert plain == "correct"
    assert list(tmp_path.iterdir()) == []
    commands = [
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.parent.name != str(os.getpid()) and os.access(path, os.R_OK)
    ]
    assert not [command for command in commands if MARK.encode() in command]
    assert not [command for command in commands if command == b"sleep\x00977\x00"]


EFFECTS = """
import os, socket, subprocess, sys
from effopd.rewards.worker import refuse_effects
refuse_effects()
effects = {
    "system": lambda: os.system("true"),
    "popen": lambda: subprocess.Popen(["true"]),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "write": lambda: open(sys.argv[1], "w"),
    "append": lambda: open(sys.argv[1], "a"),
    "create": lambda: os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda: os.mkdir(sys.argv[1]),
    "remove": lambda: os.remove(__file__ if "__file__" in globals() else sys.argv[1]),
    "connect": lambda: socket.socket(),
    "resolve": lambda: socket.getaddrinfo("localhost", 80),
}
for name, effect in effects.items():
    try:
        effect()
    except PermissionError:
        continue
    print(name)
open(sys.executable, "rb").close()
import colorsys
print("end")
"""


def test_a_worker_can_do_nothing_but_compute(tmp_path: Path) -> None:
    script = [sys.executable, "-P", "-c", EFFECTS, str(tmp_path / "file")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["end"]
    assert list(tmp_path.iterdir()) == []


# Memory -------------------------------------------------------------------------------------------


def test_memory_is_a_verdict_even_where_the_error_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = """
import effopd.rewards.mathematics.equivalence as equivalence
kept = []
def hungry():
    try:
        while True:
            kept.append(bytearray(b"x") * 10**8)
    except MemoryError:
        return False
real = equivalence.equal
equivalence.equal = lambda a, b: hungry() if b == "big" else real(a, b)
from effopd.rewards.worker import work
work(wall_s=60.0, memory_bytes=2**30)
"""
    monkeypatch.setattr(workers, "_command", lambda settings: [sys.executable, "-P", "-c", script])
    pool = WorkerPool(WorkerSettings(processes=1, wall_s=60.0))
    assert pool.verdicts([(("7", "big"),), EQUAL]) == ["memory", "correct"]
    pool.close()


# Deaths and forgeries -----------------------------------------------------------------------------


def test_memory_of_the_parent_is_not_the_workers() -> None:
    ballast = bytearray(WorkerSettings().memory_bytes)  # a trainer is as large
    ballast[::4096] = bytes(len(ballast[::4096])).replace(b"\0", b"\1")
    pool = WorkerPool(WorkerSettings(processes=1, wall_s=120.0))
    assert pool.verdicts([UNEQUAL]) == ["wrong"]
    pool.close()


def test_a_worker_killed_between_checks_is_replaced(pool: WorkerPool) -> None:
    before = only_worker(pool)
    os.kill(before, signal.SIGKILL)
    assert pool.verdicts([EQUAL, UNEQUAL]) == ["correct", "wrong"]
    assert only_worker(pool) != before


READY = "import sys; print('\"ready\"', flush=True); sys.stdin.readline(); "


@pytest.mark.parametrize(
    "reply", ["'no JSON'", "'[1]'", "'[' * 3000", "'x' * 10**7", "'[\"perfect\", true]'", "'{}'"]
)
def test_a_reply_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch, reply: str) -> None:
    script = f"{READY}print({reply}, flush=True); sys.stdin.read()"
    monkeypatch.setattr(workers, "_command", lambda settings: [sys.executable, "-c", script])
    pool = WorkerPool(WorkerSettings(processes=1, wall_s=120.0))
    assert pool.verdicts([EQUAL]) == ["error"]
    pool.close()


@pytest.mark.parametrize(("deaths", "wanted"), [(1, "correct"), (2, "error")])
def test_a_check_whose_worker_is_killed_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deaths: int, wanted: str
) -> None:
    starts = tmp_path / "starts"
    script = f"""
import os
with open({str(starts)!r}, "a") as file: print(file=file)
{READY}
if open({str(starts)!r}).read().count("\\n") <= {deaths}: os.kill(os.getpid(), 9)
print('["correct", false]', flush=True)
"""
    monkeypatch.setattr(workers, "_command", lambda settings: [sys.executable, "-c", script])
    pool = WorkerPool(WorkerSettings(processes=1, wall_s=120.0))
    assert pool.verdicts([EQUAL]) == [wanted]
    assert starts.read_text() == "\n\n"
    pool.close()


def test_a_worker_that_cannot_start_says_how_to_see_why(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(workers, "_command", lambda settings: command)
    pool = WorkerPool(WorkerSettings(processes=1))
    with pytest.raises(ConfigError, match=r"did not start .*status 3.*SystemExit\(3\)"):
        pool.verdicts([EQUAL])
    assert pool._idle == []


PARENT = r"""
from effopd.rewards.workers import WorkerPool, WorkerSettings
pool = WorkerPool(WorkerSettings(processes=2, wall_s=2.0))
pool.verdicts([(("7", r"\sin(\pi^{10^{7}})"),)] * 2)
pool._idle += [pool._lease() for _ in range(2 - len(pool._idle))]
print(*(worker.process.pid for worker in pool._idle), flush=True)
while True:
    pool.verdicts([(("7", r"\sin(\pi^{10^{8}})"),)])
"""


def test_workers_end_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-P", "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    ours = [int(word) for word in parent.stdout.readline().split()]
    assert len(ours) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not any(is_alive(process) for process in ours))


def test_a_closed_pool_leaves_no_process() -> None:
    pool = WorkerPool(WorkerSettings(processes=2, wall_s=120.0))
    pool.verdicts([EQUAL, UNEQUAL])
    processes = [worker.process.pid for worker in pool._idle]
    assert processes
    assert all(map(is_alive, processes))
    pool.close()
    assert not any(map(is_alive, processes))
    assert pool.verdicts([EQUAL]) == ["correct"]
    last = only_worker(pool)
    del pool
    assert wait_until(lambda: not is_alive(last))
