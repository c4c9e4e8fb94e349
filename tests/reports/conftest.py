"""Run directories with plausible curves, and a real browser to look at reports with."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from effopd.records import JsonlWriter, Run, load_run, write_json_atomic, write_text_atomic

BASE, TEACHER, STEPS = 0.082, 0.938, 48
RATE = {"opd": 0.055, "paper": 0.16, "effopd": 0.40}
JUMPS = {
    "opd": {},
    "paper": {8: 5.0, 16: 3.0, 32: 3.0},
    "effopd": {4: 8.0, 8: 4.0, 16: 2.0},
}
SCALES = {"paper": (3.0, 5.0, 7.0, 9.0, 11.0), "effopd": (2.0, 4.0, 8.0, 16.0)}
SEARCHED = {"paper": (8, 16, 24, 32, 40), "effopd": (4, 8, 16, 32)}
WORDS = (
    "Let us add 47 and 58 . First 7 + 8 = 15 , carry 1 ; then 4 + 5 + 1 = 10 . "
    "\n The answer is 105 ."
)


def write_rows(path, rows):
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)


def accuracy_at(method, step, rng):
    gap = math.exp(-RATE[method] * step) * (1 if step < 4 else 0.92)
    noise = 0 if step == 0 else rng.gauss(0, 0.008)
    return min(1.0, max(0.0, TEACHER * 0.995 - (TEACHER * 0.995 - BASE) * gap + noise))


def search_rows(method, rng):
    for step in SEARCHED.get(method, ()):
        score = -0.5 * math.exp(-step / 12)
        best = JUMPS[method].get(step, 0.5)
        common = {"step": step, "tokens": 8192, "seconds": 1.31}
        yield {
            **common, "trial": 0, "kind": "incumbent", "scale": 1.0, "score": score,
            "score_se": 0.004, "accepted": None, "reason": "the tip",
        }  # fmt: skip
        for trial, scale in enumerate(SCALES[method], start=1):
            gain = 0.12 * math.exp(-step / 14) - 0.05 * abs(math.log2(scale / best)) ** 1.5
            broken = scale > 6 * max(best, 1)
            yield {
                **common, "trial": trial, "kind": "candidate", "scale": scale,
                "score": None if broken else score + gain + rng.gauss(0, 0.004),
                "score_se": None if broken else 0.005, "accepted": scale == best,
                "reason": "not finite" if broken else "best, above 2 standard errors"
                if scale == best else "below the best",
            }  # fmt: skip


def rollout_rows(method, rng):
    tokens = [f"{word} " for word in WORDS.split(" ")]
    for step in (0, 16, 32, 48):
        spread = 1.4 * math.exp(-RATE[method] * step) + 0.01
        for index in range(8):
            kept = tokens[: rng.randint(18, len(tokens))]
            yield {
                "step": step, "problem_id": f"addition/{index:03d}", "prompt": "What is 47 + 58?",
                "completion": "".join(kept), "tokens": kept,
                "reward": float(len(kept) == len(tokens) or rng.random() < step / 50),
                "finish_reason": "stop" if len(kept) > 25 else "length",
                "kl_nats": [
                    round(rng.expovariate(1 / spread), 4) * (rng.random() < 0.35) for _ in kept
                ],
            }  # fmt: skip


def write_sample_run(directory, method, *, seed=0, **info):
    """Write a whole run directory of 48 steps."""
    rng = random.Random(f"{method} {seed}")
    found = list(search_rows(method, rng))
    evals = [
        {
            "step": 0, "model": "teacher", "accuracy": TEACHER, "accuracy_se": 0.0107,
            "reverse_kl": None, "n": 512, "sampled_tokens": 0, "teacher_tokens": 0,
        }
    ]  # fmt: skip
    metrics, timing, elapsed, tokens = [], [], 0.0, 0
    for step in range(STEPS + 1):
        trials = [row for row in found if row["step"] == step]
        tokens += (step > 0) * 16384 + sum(row["tokens"] for row in trials)
        elapsed += (step > 0) * 2.6 + sum(row["seconds"] for row in trials)
        if step % 2 == 0:
            accuracy = accuracy_at(method, step, rng)
            evals.append({
                "step": step, "model": "student", "accuracy": accuracy,
                "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / 512),
                "reverse_kl": 0.9 * math.exp(-RATE[method] * step * 0.9)
                + 0.011 * rng.uniform(0.9, 1.1),
                "mean_length": 30.0, "truncated_share": 0.02, "n": 512, "sampled_tokens": tokens,
                "teacher_tokens": tokens,
            })  # fmt: skip
        if step:
            metrics.append({"step": step, "reverse_kl": 0.1, "sampled_tokens": tokens})
            timing.append({"step": step, "elapsed_s": elapsed, "search_s": 0.0})
    versions = {"torch": "2.13.0", "transformers": "5.23.0"}
    known = {"label": method, "method": method, "preset": "tiny", "lr": 1e-4, "seed": seed}
    write_json_atomic(directory / "run.json", {"schema": 1, **known, "versions": versions, **info})
    write_text_atomic(
        directory / "config.toml",
        f'method = "{method}"\nseed = {seed}\n\n[optim]\nlr = 1e-4\nbetas = [0.9, 0.95]\n'
        "weight_decay = 0.0\n\n[rollout]\nbatch = 64\nmax_new_tokens = 64\ntemperature = 1.0\n",
    )
    write_rows(directory / "metrics.jsonl", metrics)
    write_rows(directory / "timing.jsonl", timing)
    write_rows(directory / "evals.jsonl", evals)
    write_rows(directory / "rollouts.jsonl", rollout_rows(method, rng))
    if found:
        write_rows(directory / "search.jsonl", found)
    return load_run(directory)


@pytest.fixture(scope="session")
def sample_runs(tmp_path_factory):
    """Three runs: plain distillation, the paper's search, and ours."""
    root = tmp_path_factory.mktemp("runs")
    return [write_sample_run(root / method, method) for method in ("opd", "paper", "effopd")]


@pytest.fixture
def make_run():
    """A run from rows: `make_run("opd", [(step, accuracy, tokens, seconds), ...], teacher=0.9)`."""

    def make(method, points, *, teacher=None, **info):
        evals = [
            {"step": step, "model": "student", "accuracy": accuracy, "sampled_tokens": tokens}
            for step, accuracy, tokens, _ in points
        ]
        if teacher is not None:
            evals.append({"step": 0, "model": "teacher", "accuracy": teacher})
        timing = [{"step": step, "elapsed_s": seconds} for step, _, _, seconds in points]
        info = {"label": method, "method": method, "lr": 1e-4, **info}
        return Run(
            directory=Path(method), label=info["label"], info=info, evals=evals, timing=timing
        )

    return make


class Browser:
    """Chromium steered through a pipe, so that no socket is opened."""

    launch = (
        "import fcntl, os, sys; "
        "r, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]); "
        "os.dup2(r, 3); os.dup2(w, 4); os.execvp(sys.argv[3], sys.argv[3:])"
    )
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--remote-debugging-pipe", "--window-size=1280,1000"),
    )

    def __init__(self, program, profile):
        from_us, self.to_browser = os.pipe()
        self.from_browser, to_us = os.pipe()
        command = [sys.executable, "-c", self.launch, str(from_us), str(to_us), program]
        self.process = subprocess.Popen(
            [*command, *self.flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self.pending, self.events, self.count, self.session = b"", [], 0, None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self):
        while b"\0" not in self.pending:
            data = os.read(self.from_browser, 1 << 20)
            assert data, "the browser ended"
            self.pending += data
        message, _, self.pending = self.pending.partition(b"\0")
        return json.loads(message)

    def open(self, path):
        """Load a page; its scripts have drawn everything once the browser says it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def wait_for(self, expression):
        """Look at every frame until the expression is true."""
        look = f"() => ({expression}) ? done() : requestAnimationFrame(look)"
        self.evaluate(f"new Promise((done) => {{ const look = {look}; look(); }})")

    def evaluate(self, expression):
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def problems(self):
        """Everything the page complained about: console, exceptions, policy violations."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        self.evaluate("0")
        return [event["params"] for event in self.events if event.get("method") in names]

    def addresses(self):
        """Everything the page asked for."""
        requests = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in requests]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.to_browser)
        os.close(self.from_browser)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if program is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def payloads():
    """Texts that would set `data-xss` on the document if any of them were taken for code."""
    act = "document.documentElement.dataset.xss=1"
    return [
        f"<script>{act}</script>",
        f"</script><script>{act}</script>",
        f"<img src=x onerror={act}>",
        f'"><svg/onload="{act}">',
        f"<a href='javascript:{act}'>click</a>",
        f"<!--<script>{act}//--></script>",
        f"{{{{page}}}}{{{{plotly}}}}{{% raw %}}%{{customdata}}${{{act}}}$x^2$",
        f"\u2028\u2029';{act};//</ScRiPt ><sCrIpT>{act}</sCrIpT>".translate(
            {0x2028: "", 0x2029: ""}
        ),
        f"&lt;img src=x onerror={act}&gt;<b>&amp;</b>",
        f"<iframe srcdoc='<script>parent.{act}</script>'></iframe>",
        f"]]><style>*{{display:none}}</style><base href=//x><meta http-equiv=refresh>{act}",
    ]


@pytest.fixture(scope="session")
def runs_saying():
    """One run per text, which stands in every field that may hold text."""

    def saying(text):
        evals = [
            {"step": step, "model": "student", "accuracy": step / 20, "accuracy_se": 0.01,
             "reverse_kl": 0.5, "sampled_tokens": step}
            for step in (1, 9)
        ]  # fmt: skip
        names = ("incumbent", text, "candidate", f"{text} candidate")
        search = [
            {"step": 8, "kind": kind, "scale": 2.0, "score": 0.5, "accepted": False, "reason": text}
            for kind in names
        ]
        rollout = {
            "step": 0, "problem_id": text, "prompt": text, "completion": text, "reward": 1.0,
            "finish_reason": text, "tokens": [text], "kl_nats": [0.5],
        }  # fmt: skip
        info = dict.fromkeys(("label", "method", "preset", "lr", "seed"), text)
        return Run(
            directory=Path("hostile"),
            label=text,
            info={**info, "versions": {text: text}},
            config=text,
            evals=evals,
            search=search,
            rollouts=[rollout],
        )

    return lambda texts: [saying(text) for text in texts]


@pytest.fixture(scope="session")
def hostile_runs(runs_saying, payloads):
    return runs_saying(payloads)
