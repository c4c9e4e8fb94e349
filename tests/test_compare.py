"""`effopd compare`: many runs in one plan, stopped, killed, resumed, refused, and summed up."""

import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
from tests.support import processes
from tests.support.tiny import WORLD, outcome
from typer.testing import CliRunner

from effopd.cli.main import STOPPED, app
from effopd.comparison import pool as pools
from effopd.comparison import run as comparison
from effopd.comparison.pool import Job, Outcome, Pool
from effopd.errors import ConfigError
from effopd.training.signals import StopRequest

pytestmark = pytest.mark.usefixtures("no_pictures")
TASK = ("type", "hidden", "layers", "operations", "train_problems", "test_problems")
SEARCH = {
    "schedule": {"type": "powers_of_two"},
    "scales": {"type": "geometric", "ratio": 8.0, "cap": 64.0},
}
RUNS = 6


class Here:
    """A pool whose jobs run in this process, one after the other."""

    def __init__(self, size: int, *, on_message: Callable[[str, str], None]) -> None:
        self._messages = SimpleNamespace(put=lambda message: on_message(*message))

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None:
        pools._process.clear()

    def run(
        self,
        jobs: Sequence[Job],
        stop: StopRequest,
        on_outcome: Callable[[Outcome], None],
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        asked = SimpleNamespace(is_set=lambda: bool(stop))
        pools._process.update(stop=asked, messages=self._messages)
        for job in jobs:
            future: Any = Future()
            try:
                future.set_result(pools._do(job))
            except Exception as error:
                future.set_exception(error)
            ended = pools._outcome(job, future)
            assert ended is not None
            on_outcome(ended)
            if ended.ending == "stopped":
                return


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "Pool", Here)
        yield


@pytest.fixture(scope="module")
def plan(models: Path) -> dict[str, Any]:
    """Two worlds, a method with two learning rates and one with one: 6 runs of 2 steps."""
    task = {name: getattr(WORLD, name) for name in TASK}
    searching = {
        "method": "effopd",
        "search": SEARCH,
        "validation": {"type": "teacher_kl", "prompts": 8},
    }
    return {
        "name": "small",
        "seeds": [0],
        "lrs": [1e-4, 1e-3],
        "common": {
            "student": {"path": str(models / "student")},
            "teacher": {"path": str(models / "teacher")},
            "sampling": {"max_new_tokens": 4},
            "train": {"steps": 2, "prompts_per_step": 8},
            "evaluation": {"every": 2, "first": [], "problems": 2, "recorded": 1},
            "checkpoint": {"every": 2, "keep": 1},
            "objective": {"type": "sampled_token"},
        },
        "worlds": {"one": {"task": task}, "two": {"task": task | {"seed": 1}}},
        "methods": {
            "opd": {"settings": {"method": "opd"}},
            "effopd": {"settings": searching, "lrs": [1e-3]},
        },
        "quick": {"lrs": [1e-4], "worlds": ["one"], "methods": ["opd"]},
    }


@pytest.fixture(scope="module")
def path(plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan"), plan)


def write_plan(directory: Path, plan: dict[str, Any]) -> Path:
    file = directory / "plan.toml"
    file.write_text(tomli_w.dumps(plan), encoding="utf-8")
    return file


def in_process(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def undisturbed(path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole comparison, and what it printed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = in_process(path, "--out", out, "--workers", 2)
    assert done.exit_code == 0, done.output
    return out, done.stdout


# Whole --------------------------------------------------------------------------------------------


def test_every_run_of_the_plan_is_a_run_directory(undisturbed: tuple[Path, str]) -> None:
    out, said = undisturbed
    runs = sorted(out.glob("*/*/*/*/run.json"))
    assert len(runs) == RUNS
    info = json.loads((out / "two/effopd/lr-1e-03/seed-0/run.json").read_text())
    assert [info[key] for key in ("label", "method", "lr", "seed")] == ["effopd", "effopd", 1e-3, 0]
    lines = re.findall(r"^runs: (\d+)/6  (\S+) finished  \d+:\d\d elapsed", said, re.MULTILINE)
    assert [int(count) for count, _ in lines] == list(range(1, RUNS + 1))
    assert {name for _, name in lines} == {str(run.parent.relative_to(out)) for run in runs}
    methods = [name.split("/")[1] for _, name in lines]
    assert methods == ["effopd"] * 2 + ["opd"] * 4, "the longest first"


def test_the_summary_has_every_setting(undisturbed: tuple[Path, str]) -> None:
    out, _ = undisturbed
    summary = json.loads((out / "summary.json").read_text())
    keys = [(row["world"], row["method"], row["lr"]) for row in summary["rows"]]
    assert keys == [
        (world, method, lr)
        for world in ("one", "two")
        for method, lr in (("opd", 1e-4), ("opd", 1e-3), ("effopd", 1e-3))
    ]
    assert {(row["seeds"], row["steps"]) for row in summary["rows"]} == {(1, 2)}
    for name in ("table.md", "report.html", "figures/accuracy_steps.png", "figures/lr_sweep.png"):
        assert (out / name).is_file()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Up to 2 runs were trained at a time" in page


def test_finished_runs_are_skipped_without_loading_torch(
    path: Path, undisturbed: tuple[Path, str]
) -> None:
    out, _ = undisturbed
    before = {run: (run.stat().st_mtime_ns, run.read_bytes()) for run in out.rglob("*.jsonl")}
    summary = (out / "summary.json").read_bytes()
    command = [sys.executable, "-X", "importtime", "-m", "effopd.cli.main", "compare", path]
    finished = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert finished.returncode == 0
    assert "torch" not in {
        line.rsplit("|")[-1].strip().split(".")[0] for line in finished.stderr.splitlines()
    }
    assert "elapsed" not in finished.stdout
    assert (out / "summary.json").read_bytes() == summary
    assert before == {run: (run.stat().st_mtime_ns, run.read_bytes()) for run in before}


# Stopped and killed -------------------------------------------------------------------------------


class After(StopRequest):
    """Becomes true once it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


def assert_the_same_comparison(out: Path, whole: Path) -> None:
    """In all but the seconds, also those of a processor."""

    def of(directory: Path) -> Any:
        summary = json.loads((directory / "summary.json").read_text())
        rows = {name: found for name, found in summary.items() if isinstance(found, list)}
        return {
            name: [
                {k: v for k, v in row.items() if "seconds" not in k and "cpu" not in k}
                for row in found
            ]
            for name, found in rows.items()
        } | {name: found for name, found in summary.items() if name not in rows}

    assert of(out) == of(whole)
    for run in whole.glob("*/*/*/*"):
        assert outcome(out / run.relative_to(whole)) == outcome(run), run


def test_stopped_inside_a_run_it_goes_on_to_the_same_end(
    path: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    whole, _ = undisturbed
    first = comparison.compare(path, tmp_path, stop=After(6))
    assert (first.ending, first.rows) == ("stopped", [])
    steps = [path.read_text().count("\n") for path in tmp_path.rglob("metrics.jsonl")]
    assert 1 in steps, "a run was stopped halfway"
    assert comparison.compare(path, tmp_path).ending == "finished"
    assert_the_same_comparison(tmp_path, whole)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, STOPPED),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_the_command_is_killed_and_goes_on_to_the_same_end(
    path: Path, undisturbed: tuple[Path, str], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """Processes train, a signal comes once the first of them has a step; this process goes on."""
    whole, _ = undisturbed
    out, log = tmp_path / "out", tmp_path / "log"

    def body() -> None:
        pytest.MonkeyPatch().setattr(comparison, "Pool", Pool)
        app(["compare", str(path), "--out", str(out), "--workers", "1"])

    child = processes.fork(body, log)
    while not any(rows.stat().st_size for rows in out.rglob("metrics.jsonl")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.02)
    os.kill(child, number)
    assert processes.wait(child) == status, log.read_text()
    hint = f"stopped and saved; go on with: effopd compare {path} --out {out} --workers 1"
    assert (hint in log.read_text()) is (number == signal.SIGTERM)
    assert not (out / "summary.json").exists()
    done = in_process(path, "--out", out)
    assert done.exit_code == 0, done.output
    assert_the_same_comparison(out, whole)


# Refused ------------------------------------------------------------------------------------------


def refusal(status: int, *arguments: str | Path) -> str:
    result = in_process(*arguments)
    assert result.exit_code == status, result.output
    return str(result.stderr.removeprefix("error: ").strip())


def test_a_changed_plan_is_refused_naming_the_runs(
    plan: dict[str, Any],
    undisturbed: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "MOST_LISTED", 2)
    out, _ = undisturbed
    changed = plan | {"methods": plan["methods"] | {"opd": {"settings": {"method": "opd"}}}}
    changed["common"] = plan["common"] | {"train": {"steps": 2, "prompts_per_step": 9}}
    message = refusal(2, write_plan(tmp_path, changed), "--out", out)
    assert message.startswith(f"{out} holds runs with other settings than the plan:\n")
    assert "one/opd/lr-1e-04/seed-0, one/opd/lr-1e-03/seed-0" in message
    assert " and 4 more:\n  train.prompts_per_step: 8 -> 9\n" in message
    world = plan | {"worlds": plan["worlds"] | {"two": plan["worlds"]["one"]}}
    message = refusal(2, write_plan(tmp_path, world), "--out", out)
    assert "task.seed: 1 -> 0" in message
    assert "one/" not in message


def test_settings_edited_in_a_run_are_noticed(
    path: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = undisturbed
    config = out / "one/opd/lr-1e-04/seed-0/config.toml"
    text = config.read_text()
    config.write_text(text.replace("max_new_tokens = 4", "max_new_tokens = 5"))
    try:
        assert "one/opd/lr-1e-04/seed-0:\n  sampling.max_new_tokens: 5 -> 4" in refusal(
            2, path, "--out", out
        )
    finally:
        config.write_text(text)


def test_wrong_settings_name_the_runs_and_start_nothing(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    common = plan["common"] | {"optimiser": {"lr": 1}, "train": {"steps": 0}}
    message = refusal(2, write_plan(tmp_path, plan | {"common": common}), "--out", tmp_path / "out")
    assert "one/opd/lr-1e-04/seed-0, " in message
    assert "unknown setting optimiser; did you mean 'optimizer'?" in message
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["comparison.lock"]


def test_a_directory_in_use(path: Path, tmp_path: Path) -> None:
    with open(tmp_path / "comparison.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refusal(1, path, "--out", tmp_path).startswith(
            f"{tmp_path} is in use by another process: "
        )


def test_a_directory_that_cannot_be_made(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(2, path, "--out", tmp_path / "file")
    assert message.startswith(f"{tmp_path / 'file'} cannot hold the comparison: ")


# Parts of it --------------------------------------------------------------------------------------


def test_the_list_says_what_is_finished(path: Path, undisturbed: tuple[Path, str]) -> None:
    out, _ = undisturbed
    lines = in_process(path, "--list", "--out", out).stdout.splitlines()
    assert len(lines) == RUNS
    assert all(line.endswith("  finished") for line in lines)
    assert in_process(path, "--list", "--quick", "--out", out / "gone").stdout.splitlines() == [
        "one/opd/lr-1e-04/seed-0"
    ]


def test_worlds_are_made_once_and_a_failed_run_does_not_stop_the_others(
    plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFOPD_CACHE", str(tmp_path / "cache"))
    brief = {"base_steps": 20, "base_greedy": 0.0, "noise_steps": 1, "teacher_steps": 1}
    nowhere = {"method": "opd", "student": {"path": str(tmp_path / "nowhere")}}
    common = {k: v for k, v in plan["common"].items() if k not in ("student", "teacher")}
    broken = plan | {
        "common": common | {"task": plan["worlds"]["one"]["task"] | brief},
        "worlds": {"one": {}},
        "methods": plan["methods"] | {"broken": {"settings": nowhere}},
        "quick": plan["quick"] | {"methods": ["broken", "opd"]},
    }
    file, out = write_plan(tmp_path, broken), tmp_path / "out"
    done = in_process(file, "--out", out, "--quick", "--workers", "1")
    assert done.exit_code == 1
    failed = "failed: one/broken/lr-1e-04/seed-0: no model directory at"
    assert done.stderr == f"{failed} {tmp_path / 'nowhere'}\n"
    (cached,) = (tmp_path / "cache").iterdir()
    assert {path.name for path in cached.iterdir()} == {"base", "teacher"}
    assert done.stdout.startswith("world of one/opd/lr-1e-04/seed-0: ")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["method"] for row in summary["rows"]] == ["opd"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "\nMissing, because they failed: one/broken/lr-1e-04/seed-0.\n" in table


class Ends(dict[str, Any]):
    """Settings that end the process that reads them."""

    def get(self, *_: Any) -> Any:
        os._exit(1)

    __iter__ = items = keys = get

    def __reduce__(self) -> Any:
        return Ends, ()


@pytest.mark.parametrize(("error", "shown"), [(ConfigError("no"), False), (KeyError("no"), True)])
def test_a_process_shows_where_an_unexpected_error_is_from(
    error: Exception,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(settings: Any) -> None:
        raise error

    monkeypatch.setattr("effopd.training.config.make_config", fails)
    with pytest.raises(type(error)) as raised:
        pools._do(Job(name="cell", kind="cell", settings={}))
    assert raised.value is error
    assert ("in fails\n    raise error" in capfd.readouterr().err) is shown


@pytest.mark.slow
def test_a_process_that_dies_is_a_failed_job_and_is_replaced(tmp_path: Path) -> None:
    jobs = [
        Job(name="dies", kind="cell", settings=Ends()),
        Job(name="wrong", kind="cell", settings={"seeds": 1}, out=str(tmp_path)),
    ]
    ended: list[Outcome] = []
    with Pool(1, on_message=lambda name, text: None) as pool:
        pool.run(jobs, StopRequest(), ended.append)
    assert [(outcome.job.name, outcome.ending) for outcome in ended] == [
        ("dies", "failed"),
        ("wrong", "failed"),
    ]
    assert ended[0].error.startswith("its process ended with status 1")
    assert ended[1].error == "unknown setting seeds; did you mean 'seed'?"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_a_run_has_freed_goes_back_to_the_system() -> None:
    """Blocks as large as a layer's, between small ones that stay: glibc alone would keep them."""
    script = """
from effopd.comparison.pool import return_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

blocks = [(bytearray(b"1" * 50_000), bytearray(2_000)) for _ in range(4_000)]
kept = [small for _, small in blocks]
full = resident()
del blocks
return_memory()
print((full - resident()) // 1_000_000)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 100  # of 200 MB
