"""Runs that are killed, at random and at the worst moments, end as if nothing had happened."""

import dataclasses
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import disk, processes
from tests.support.processes import EventCounter, kill_me
from tests.support.tiny import (
    metrics_of,
    outcome,
    search_rows,
    tiny_config,
    train_tiny,
    write_models,
)

from effopd.cli.main import STOPPED, app
from effopd.config.reading import to_toml
from effopd.records import list_checkpoints, read_jsonl
from effopd.rollouts.hf import SeededSampler
from effopd.search.line_search import LineSearch
from effopd.search.ray import Ray
from effopd.search.validation import Draw
from effopd.training import loop, optimizers
from effopd.training import run as assemble
from effopd.training.collect import Collector
from effopd.training.config import Config
from effopd.training.loop import Trainer
from effopd.training.run_directory import LOGS, RunDirectory
from effopd.training.update import Updater


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    models = write_models(tmp_path_factory.mktemp("models"))
    return tiny_config(models, {"train.steps": 5, "checkpoint.every": 2})


@pytest.fixture(scope="module")
def undisturbed(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train_tiny(config, out)[0]
    return out


def assert_records_are_readable(out: Path) -> None:
    """Every line but an unfinished last one is valid, and no step is there twice."""
    for name in LOGS:
        if (out / f"{name}.jsonl").exists():
            read_jsonl(out / f"{name}.jsonl")
    if (out / "metrics.jsonl").exists():
        steps = [row["step"] for row in metrics_of(out)]
        assert steps == list(range(1, len(steps) + 1))


def assert_ends_like(undisturbed: Path, config: Config, out: Path) -> None:
    """Resumes `out` to the end and compares everything."""
    assert_records_are_readable(out)
    assert train_tiny(config, out)[0]
    assert outcome(out) == outcome(undisturbed)
    assert_records_are_readable(out)
    kept = [path.name for path in list_checkpoints(out / "checkpoints")]
    assert kept[:2] == ["step-00005", "step-00004"]


# At random ----------------------------------------------------------------------------------------

PHASES: dict[str, tuple[Any, str]] = {
    "start": (assemble, "build_parts"),
    "generation": (Collector, "collect"),
    "update": (Updater, "update_"),
    "search": (Trainer, "_search"),
    "records": (Trainer, "_finish"),
    "evaluation": (Trainer, "_evaluate"),
    "save": (Trainer, "_save"),
}
"""What happens there, and in which function."""
FIVE = dict.fromkeys(["update", "search", "records", "evaluation", "save"], 1)
TWENTY = dict.fromkeys(PHASES, 1) | {"generation": 4, "update": 4, "search": 4, "save": 5}


def events_in_each_phase(config: Config, out: Path) -> dict[str, int]:
    """Python calls and returns inside each phase of a whole run."""
    counters = {phase: EventCounter() for phase in PHASES}
    with pytest.MonkeyPatch.context() as patch:
        for phase, (owner, name) in PHASES.items():
            counters[phase].watch(patch, owner, name)
        train_tiny(config, out)
    return {phase: counter.count for phase, counter in counters.items()}


@pytest.mark.parametrize(
    "kills", [FIVE, pytest.param(TWENTY, marks=pytest.mark.slow)], ids=["five", "twenty"]
)
def test_kills_at_random_moments(
    config: Config, undisturbed: Path, tmp_path: Path, kills: dict[str, int]
) -> None:
    """SIGKILL at a random Python call or return, a fixed number of times in each phase."""
    counts = events_in_each_phase(config, tmp_path / "counted")
    rng = random.Random(0)
    for phase, times in kills.items():
        for kill in range(times):
            out, event = tmp_path / f"{phase}-{kill}", rng.randrange(1, int(0.9 * counts[phase]))
            status = train_and_die(config, out, phase, event)
            assert status == -signal.SIGKILL, f"still alive at event {event} of {phase}"
            assert_ends_like(undisturbed, config, out)


def test_a_student_with_adapters_is_killed_too(tmp_path: Path) -> None:
    """Factors, their optimizer and the anchor of their product come back as they were."""
    pytest.importorskip("peft")
    settings = {
        "train.steps": 5, "checkpoint.every": 2, "optimizer.lr": 1e-2,
        "student.lora": {"r": 2, "alpha": 4.0},
    }  # fmt: skip
    config = tiny_config(write_models(tmp_path / "models"), settings)
    assert train_tiny(config, tmp_path / "undisturbed")[0]
    assert any(row["accepted"] for row in search_rows(tmp_path / "undisturbed"))
    counts = events_in_each_phase(config, tmp_path / "counted")
    rng = random.Random(1)
    for phase in ("search", "save"):
        out, event = tmp_path / phase, rng.randrange(1, int(0.9 * counts[phase]))
        assert train_and_die(config, out, phase, event) == -signal.SIGKILL
        assert_ends_like(tmp_path / "undisturbed", config, out)


def train_and_die(config: Config, out: Path, phase: str, event: int) -> int:
    """Exit status of a child that kills itself at an event of a phase."""

    def body() -> None:
        EventCounter(event).watch(pytest.MonkeyPatch(), *PHASES[phase])
        train_tiny(config, out)

    return processes.run(body)


def wait_for_rows(out: Path, rows: int, has_ended: Callable[[], bool]) -> None:
    """Until so many steps are recorded, or the run has ended."""
    log = out / "metrics.jsonl"
    while not has_ended() and (not log.exists() or log.read_bytes().count(b"\n") < rows):
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("points", [0, 1, 2])
def test_a_crash_at_every_operation_on_files(
    config: Config, undisturbed: Path, tmp_path: Path, points: int
) -> None:
    """Every third operation, so that the parts are as long as other slow tests."""
    while True:
        out = tmp_path / str(points)
        try:
            with disk.crash_before(points + 1):
                train_tiny(config, out)
        except disk.Crash:
            assert_ends_like(undisturbed, config, out)
            points += 3
        else:
            break
    assert points > 200


@pytest.mark.slow
def test_the_command_survives_kills(config: Config, tmp_path: Path) -> None:
    """The real command in processes of its own, killed while it is at a chosen step."""
    longer = config.model_copy(update={"train": dataclasses.replace(config.train, steps=40)})
    assert train_tiny(longer, tmp_path / "undisturbed")[0]
    (tmp_path / "run.toml").write_text(to_toml(longer))
    command = [sys.executable, "-m", "effopd.cli.main", "train", "run.toml", "--out", "run"]
    for rows in (1, 2, 5, 9, 16, 23):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        wait_for_rows(tmp_path / "run", rows, lambda p=process: p.poll() is not None)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert_records_are_readable(tmp_path / "run")
    subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")


# Around a search ----------------------------------------------------------------------------------

SEARCHED = 4
"""The step whose search is interrupted; its trials in an undisturbed run are at least three."""

Patch = pytest.MonkeyPatch


def before(patch: Patch, owner: Any, name: str, step: Callable[[Any], int]) -> None:
    """Kills before `owner.name(...)` when `step` of its first argument is `SEARCHED`."""
    real = getattr(owner, name)

    def killing(*arguments: Any, **keywords: Any) -> Any:
        if step(arguments[0]) == SEARCHED:
            kill_me()
        return real(*arguments, **keywords)

    patch.setattr(owner, name, killing)


def after_the_choice(patch: Patch) -> None:
    real = LineSearch.ask

    def asking(search: LineSearch) -> Draw | None:
        draw = real(search)
        if draw is None and search.result.step == SEARCHED:
            assert search.result.accepted_scale > 1.0  # there is a swap to miss
            kill_me()
        return draw

    patch.setattr(LineSearch, "ask", asking)


def after_the_swap(patch: Patch) -> None:
    searches = [0]
    real = Ray.advance_anchor_

    def advancing(ray: Ray, scale: float) -> None:
        searches[0] += 1
        if searches[0] == 3:  # steps 1, 2, 4
            kill_me()
        real(ray, scale)

    patch.setattr(Ray, "advance_anchor_", advancing)


MOMENTS: dict[str, tuple[Callable[[Patch], None], bool]] = {
    "after the choice": (after_the_choice, False),
    "after the swap": (after_the_swap, False),
    "before the log": (lambda p: before(p, Trainer, "_finish", lambda t: t.progress.step), False),
    "after the log": (lambda p: before(p, Trainer, "_save", lambda t: t.progress.step), True),
    "before the checkpoint has a name": (
        lambda p: before(p, loop, "write_checkpoint", lambda path: int(path.name[-5:])),
        True,
    ),
    "before pruning": (
        lambda p: before(p, loop, "prune", lambda path: int(list_checkpoints(path)[0].name[-5:])),
        True,
    ),
}
"""How to die there, and whether the step is in metrics.jsonl by then."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_around_a_search_neither_repeats_nor_skips_it(
    config: Config, undisturbed: Path, tmp_path: Path, moment: str
) -> None:
    die, is_logged = MOMENTS[moment]

    def body() -> None:
        die(pytest.MonkeyPatch())
        train_tiny(config, tmp_path / "run")

    assert processes.run(body) == -signal.SIGKILL
    trials = [row for row in search_rows(undisturbed) if row["step"] <= SEARCHED]
    assert search_rows(tmp_path / "run") == trials
    assert len(metrics_of(tmp_path / "run")) == (SEARCHED if is_logged else SEARCHED - 1)
    assert_ends_like(undisturbed, config, tmp_path / "run")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_kill_between_candidates_repeats_the_whole_search(
    config: Config, undisturbed: Path, tmp_path: Path, index: int
) -> None:
    def on_trial(step: int, trial: int, _: Any) -> None:
        if (step, trial) == (SEARCHED, index):
            kill_me()

    def body() -> None:
        train_tiny(config, tmp_path / "run", on_trial=on_trial)

    assert processes.run(body) == -signal.SIGKILL
    found = [r["trial"] for r in search_rows(tmp_path / "run") if r["step"] == SEARCHED]
    assert found == list(range(index))
    assert len([r for r in search_rows(undisturbed) if r["step"] == SEARCHED]) >= 3
    assert_ends_like(undisturbed, config, tmp_path / "run")


# Signals, through the command ---------------------------------------------------------------------


def at(patch: Patch, owner: Any, name: str, call: int, happen: Callable[[], None]) -> None:
    """Has `happen` called just before the `call`-th call of `owner.name`."""
    real, calls = getattr(owner, name), [0]

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            happen()
        return real(*arguments, **keywords)

    patch.setattr(owner, name, wrapped)


def command(config: Config, directory: Path) -> list[str]:
    """Arguments of `effopd`: a recipe, an override that needs quoting, and where to write."""
    recipe = directory / "a recipe.toml"
    recipe.write_text(to_toml(config))
    out = directory / "run"
    return ["train", str(recipe), "label='two words'", "--out", str(out)]


def exit_status(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as caught:
        app(arguments)
    return caught.value.code


SIGNALS = {
    "SIGTERM in an update": (signal.SIGTERM, Updater, "update_", 3, 3),
    "SIGINT in an update": (signal.SIGINT, Updater, "update_", 3, 3),
    "SIGUSR1 in an update": (signal.SIGUSR1, Updater, "update_", 3, 3),
    "SIGTERM in generation": (signal.SIGTERM, SeededSampler, "__call__", 30, None),
    "SIGINT in the scoring of a candidate": (signal.SIGINT, Ray, "move_to_", 3, 1),
    "SIGINT in a save": (signal.SIGINT, optimizers, "save_file", 1, 2),
}
"""Signal, where, at which call, and the step that is the last before the stop."""


@pytest.mark.parametrize("case", SIGNALS)
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(
    config: Config, undisturbed: Path, tmp_path: Path, case: str
) -> None:
    number, owner, name, call, last = SIGNALS[case]
    arguments = command(config, tmp_path)

    def body() -> None:
        at(pytest.MonkeyPatch(), owner, name, call, lambda: os.kill(os.getpid(), number))
        app(arguments)

    assert processes.run(body, tmp_path / "output") == STOPPED == 75
    output = (tmp_path / "output").read_text()
    assert "finishing this step, then saving; Ctrl-C stops at once" in output
    run = tmp_path / "run"
    steps = len(metrics_of(run))
    assert list_checkpoints(run / "checkpoints")[0].name == f"step-{steps:05d}"
    assert steps == last or (last is None and 1 <= steps < 5)
    (line,) = [line for line in output.splitlines() if line.startswith("stopped and saved")]
    shown = shlex.split(line.split("resume with: ")[1])
    assert shown == ["effopd", *arguments]
    assert exit_status(shown[1:]) == 0
    assert outcome(run) == outcome(undisturbed)


def test_a_second_ctrl_c_stops_at_once_and_the_run_can_be_resumed(
    config: Config, undisturbed: Path, tmp_path: Path
) -> None:
    arguments = command(config, tmp_path)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    def body() -> None:
        at(pytest.MonkeyPatch(), Updater, "update_", 4, twice)
        app(arguments)

    assert processes.run(body) == 130
    run = tmp_path / "run"
    assert len(metrics_of(run)) == 3
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00002"]
    assert exit_status(arguments) == 0
    assert outcome(run) == outcome(undisturbed)


def test_a_second_ctrl_c_in_a_save_leaves_no_half_of_it(
    config: Config, undisturbed: Path, tmp_path: Path
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    def body() -> None:
        at(pytest.MonkeyPatch(), optimizers, "save_file", 2, twice)  # in the second checkpoint
        app(command(config, tmp_path))

    assert processes.run(body) == 130
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00002"]
    assert exit_status(command(config, tmp_path)) == 0
    assert outcome(tmp_path / "run") == outcome(undisturbed)


def test_a_directory_in_use_is_refused_by_the_command(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = RunDirectory(tmp_path / "run")
    assert exit_status(command(config, tmp_path)) == 1
    assert f"error: {tmp_path / 'run'} is in use by another process" in capsys.readouterr().err
    holder.close()


def test_a_full_disk_is_one_line_and_status_one(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk.largest_file(6000):
        status = exit_status(command(config, tmp_path))
    assert status == 1
    error = capsys.readouterr().err
    assert "error: cannot write checkpoint" in error
    assert "free space or fix permissions and resume" in error
    assert "Traceback" not in error
    assert os.listdir(tmp_path / "run" / "checkpoints") == []
