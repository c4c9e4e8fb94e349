# ruff: noqa: E501 - a row is a program
"""What a program finds at its start and what becomes of what it leaves behind, as in CPython."""

import textwrap

import pytest
from tests.support.sandboxes import run_script

from effopd.rewards.sandbox.program import Sandbox

FAST_STREAMS = """
import os, sys
from io import BytesIO, IOBase
class Fast(IOBase):
    def __init__(self, file):
        self.descriptor, self.kept = file.fileno(), BytesIO()
        self.is_output = "w" in file.mode or "x" in file.mode
        self.write = self.kept.write if self.is_output else None
    def readline(self):
        if not self.kept.getbuffer().nbytes:
            size = max(os.fstat(self.descriptor).st_size, 1024)
            while chunk := os.read(self.descriptor, size):
                self.kept.write(chunk)
            self.kept.seek(0)
        return self.kept.readline()
    def flush(self):
        if self.is_output:
            os.write(self.descriptor, self.kept.getvalue())
            self.kept.seek(0)
            self.kept.truncate()
class Text(IOBase):
    def __init__(self, file):
        self.buffer = Fast(file)
        self.flush = self.buffer.flush
        self.write = lambda text: self.buffer.write(text.encode("ascii"))
        self.readline = lambda: self.buffer.readline().decode("ascii")
"""
"""The manner of the templates that most Python submissions on Codeforces begin with."""

PROGRAMS = {
    "modes": ("import sys; print(sys.stdin.mode, sys.stdout.mode, sys.stderr.mode, sys.stdin.buffer.mode)", b"", b"r w w rb\n"),
    "names": ("import sys; print(sys.stdin.name, sys.stdout.name, sys.stderr.name, __name__, __file__)", b"", b"<stdin> <stdout> <stderr> __main__ program.py\n"),
    "fast streams": (FAST_STREAMS + "sys.stdin, sys.stdout = Text(sys.stdin), Text(sys.stdout)\nprint(int(sys.stdin.readline()) + int(input()))", b"2\n4\n", b"6\n"),
    "fast stream of its own": (FAST_STREAMS + "out = Text(sys.stdout)\nout.write('6')", b"", b"6"),
    "raw": ("import sys; print(sys.stdin.buffer.raw.read())", b"a\nb", b"b'a\\nb'\n"),
    "descriptor": ("import os; print(os.read(0, 100))", b"a\nb", b"b'a\\nb'\n"),
    "fileinput": ("import fileinput\nfor line in fileinput.input(): print(line.strip())", b"a\nb\n", b"a\nb\n"),
    "mixed": ("import sys; print(input(), sys.stdin.readline().strip(), next(sys.stdin).strip(), sys.stdin.read())", b"a\nb\nc\nd", b"a b c d\n"),
    "reconfigured": ("import sys; sys.stdout.reconfigure(write_through=True); sys.stdin.reconfigure(encoding='ascii'); print(input())", b"6", b"6\n"),
    "Windows lines": ("print([input(), input()])", b"a\r\nb\r\n", b"['a', 'b']\n"),
    "long integer printed": ("print(2**20000 == int(str(2**20000)), str(2**20000)[:3])", b"", b"True 398\n"),
    "long integer read": ("print(int(input()) % 7)", b"1" * 5000, b"4\n"),
    "limit on digits set by the program": ("import sys; sys.set_int_max_str_digits(5000); print(len(str(10**4999)))", b"", b"5000\n"),
    "open(1)": ("f = open(1, 'w'); f.write('6')", b"", b"6"),
    "open(1) in a cycle": ("def main():\n    f = open(1, 'w'); f.write('6')\n    kept = [f]; kept.append(kept)\nmain()", b"", b"6"),
    "fdopen": ("import os; f = os.fdopen(1, 'wb'); f.write(b'6')", b"", b"6"),
    "buffered writer": ("import io; f = io.BufferedWriter(io.FileIO(1, 'w', closefd=False)); f.write(b'6')", b"", b"6"),
    "two files": ("f = open(1, 'w', closefd=False); g = open(1, 'w', closefd=False); f.write('6'); g.write('7'); print(5)", b"", b"5\n67"),
    "file that an exit function holds": ("import atexit; f = open(1, 'w'); f.write('6'); atexit.register(lambda f=f: None)", b"", b"6"),
    "file of a thread that never ends": ("import threading, time\ndef work(f):\n    f.write('6')\n    written.set()\n    time.sleep(100)\nwritten = threading.Event()\nthreading.Thread(target=work, args=(open(1, 'w'),), daemon=True).start()\nwritten.wait()", b"", b"6"),
    "file that a module holds": ("import math; math.f = open(1, 'w'); math.f.write('6')", b"", b"6"),
    "/dev/stdin": ("print(open('/dev/stdin').read())", b"6", b"6\n"),
    "memory that is full": ("import resource\nf = open(1, 'w'); f.write('6')\nx = [[] for _ in range(10**6)]\nresource.setrlimit(resource.RLIMIT_AS, (2**20,) * 2)", b"", b"6"),
    "stream put aside": ("import io, sys; o = sys.stdout; sys.stdout = io.StringIO(); print(5); o.write('6')", b"", b"6"),
    "original stream": ("import io, sys; sys.stdout = io.StringIO(); sys.__stdout__.write('6')", b"", b"6"),
    "detached stream": ("import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.detach(), newline='\\n'); print(6)", b"", b"6\n"),
    "stream over the buffer": ("import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8'); print(6)", b"", b"6\n"),
    "closed stream": ("import sys; print(6); sys.stdout.close()", b"", b"6\n"),
    "no stream": ("import sys; print(6); sys.stdout = None; sys.stderr = None", b"", b"6\n"),
    "exit function": ("import atexit, sys\nout = []\natexit.register(lambda: sys.stdout.write(' '.join(out)))\nout.append('6')", b"", b"6"),
    "exit after output": ("import sys\nf = open(1, 'w')\nf.write('6')\nsys.exit()", b"", b"6"),
    "exit with 256": ("print(6); raise SystemExit(256)", b"", b"6\n"),
    "destructor": ("import os\nclass Out:\n    def __del__(self): os.write(1, b'6')\nout = Out()", b"", b"6"),
    "executor that is not shut down": ("from concurrent.futures import ThreadPoolExecutor\nworkers = ThreadPoolExecutor(2); print(workers.submit(pow, 2, 3).result())", b"", b"8\n"),
    "thread that prints last": ("import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\nf = open(1, 'w')\nthreading.Thread(target=lambda: f.write('6')).start()", b"", b"6"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "given", "printed"), PROGRAMS.values(), ids=PROGRAMS)
def test_program_prints(sandbox: Sandbox, source: str, given: bytes, printed: bytes) -> None:
    outcome = run_script(sandbox, textwrap.dedent(source), given)
    assert (outcome.status, outcome.stdout) == ("finished", printed), outcome


ERRORS = {
    "print after close": "import sys; print(6); sys.stdout.close(); print(7)",
    "nothing to flush into": "import sys; print(6); sys.stdout.detach()",
    "exit with a text": "import sys; print(6); sys.exit('no')",
    "exit with a status": "import sys; print(6); sys.exit(3)",
    "error after a file was written": "f = open(1, 'w'); f.write('6\\n'); 1 / 0",
    "error without standard error": "import sys; print(6); sys.stderr = None; 1 / 0",
}


@pytest.mark.parametrize("source", ERRORS.values(), ids=ERRORS)
def test_program_ends_with_an_error(sandbox: Sandbox, source: str) -> None:
    outcome = run_script(sandbox, source)
    assert (outcome.status, outcome.stdout) == ("runtime_error", b"6\n"), outcome
