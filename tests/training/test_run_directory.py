"""The lock, the logs, and where a run may be resumed."""

import errno
import os
import signal
from pathlib import Path

import pytest
from tests.support import disk, processes

from effopd.errors import CheckpointError, ConfigError, RecordError, RunLockedError
from effopd.models.checkpoints import write_checkpoint
from effopd.records import checkpoint_path, read_jsonl
from effopd.training.run_directory import LOGS, RunDirectory


def with_steps(path: Path, steps: int) -> dict[str, int]:
    """Writes one metrics row a step and two evaluations; returns the offsets."""
    run = RunDirectory(path)
    for step in range(1, steps + 1):
        run.write("metrics", {"step": step, "loss": step / 7})
    run.write("evals", {"step": 0})
    run.write("evals", {"step": steps})
    offsets = run.offsets()
    run.close()
    return offsets


def save(run: RunDirectory, step: int) -> Path:
    path = checkpoint_path(run.checkpoints, step)
    write_checkpoint(path, lambda directory: (directory / "w").write_bytes(b"12") and None)
    return path


# The lock -----------------------------------------------------------------------------------------


def test_a_second_process_is_refused_by_name_until_the_first_one_dies(tmp_path: Path) -> None:
    ready, held = os.pipe()

    def hold() -> None:
        run = RunDirectory(tmp_path / "run")
        os.write(held, b"x")
        signal.pause()
        run.close()

    child = processes.fork(hold)
    os.read(ready, 1)
    try:
        with pytest.raises(RunLockedError, match=r"run is in use by another process.*--out"):
            RunDirectory(tmp_path / "run")
    finally:
        os.kill(child, signal.SIGKILL)
        assert processes.wait(child) == -signal.SIGKILL
    RunDirectory(tmp_path / "run").close()


def test_closing_releases_the_lock_and_the_same_process_is_refused_too(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(RunLockedError, match=str(tmp_path)):
        RunDirectory(tmp_path)
    run.close()
    RunDirectory(tmp_path).close()


def test_a_refused_lock_leaves_no_descriptor_open(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(RunLockedError):
            RunDirectory(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    run.close()


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"run cannot hold the run.*--out"):
        RunDirectory(tmp_path / "run")


def test_a_read_only_disk_is_a_clear_error(tmp_path: Path) -> None:
    with (
        disk.refuse_at(1, errno.EROFS),
        pytest.raises(ConfigError, match="Read-only file system"),
    ):
        RunDirectory(tmp_path / "run")


# The logs -----------------------------------------------------------------------------------------


def test_rewind_cuts_every_log_to_its_offset(tmp_path: Path) -> None:
    offsets = with_steps(tmp_path, 3)
    assert offsets["metrics"] == (tmp_path / "metrics.jsonl").stat().st_size > 0
    assert [offsets[name] for name in ("timing", "search", "rollouts")] == [0, 0, 0]
    before = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in LOGS}
    run = RunDirectory(tmp_path)
    for name in LOGS:
        run.write(name, {"step": 4})
    run.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"schema":1,"st')  # torn by a kill
    RunDirectory(tmp_path).rewind(offsets, 3)
    assert {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in LOGS} == before


def test_rewind_to_nothing_empties_every_log(tmp_path: Path) -> None:
    with_steps(tmp_path, 3)
    RunDirectory(tmp_path).rewind({}, 0)
    assert [read_jsonl(tmp_path / f"{name}.jsonl") for name in LOGS] == [[]] * len(LOGS)


@pytest.mark.parametrize("log", ["metrics", "evals"])
def test_a_lost_log_is_refused_not_ignored(tmp_path: Path, log: str) -> None:
    offsets = with_steps(tmp_path, 3)
    (tmp_path / f"{log}.jsonl").unlink()
    with pytest.raises(RecordError, match=f"{log}.jsonl: cannot go back"):
        RunDirectory(tmp_path).rewind(offsets, 3)


def test_an_offset_inside_a_line_is_refused(tmp_path: Path) -> None:
    offsets = with_steps(tmp_path, 3)
    offsets["metrics"] -= 4
    with pytest.raises(RecordError, match="inside a line"):
        RunDirectory(tmp_path).rewind(offsets, 3)


@pytest.mark.parametrize("step", [2, 4])
def test_records_of_another_run_are_refused(tmp_path: Path, step: int) -> None:
    offsets = with_steps(tmp_path, 3)
    with pytest.raises(CheckpointError, match=f"from 1 to {step}.*another run"):
        RunDirectory(tmp_path).rewind(offsets, step)


def test_rewinding_after_the_first_row_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write("metrics", {"step": 1})
    with pytest.raises(ConfigError, match="before the first row"):
        run.rewind({}, 0)


def test_a_full_disk_names_the_log_and_leaves_no_part_of_a_row(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write("metrics", {"step": 1})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with (
        disk.largest_file(len(whole) + 5),
        pytest.raises(RecordError, match=r"cannot write .*metrics.jsonl: .*free space"),
    ):
        run.write("metrics", {"step": 2})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    run.write("metrics", {"step": 2})
    assert [row["step"] for row in run.rows("metrics")] == [1, 2]


def test_a_disk_that_cannot_sync_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run = RunDirectory(tmp_path)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RecordError, match=r"metrics.jsonl: .*Input/output error"):
        run.offsets()


# Where to resume ----------------------------------------------------------------------------------


def test_a_new_directory_starts_without_a_word(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).resume_point(4) == (None, [])


def test_steps_before_the_first_checkpoint_are_done_again(tmp_path: Path) -> None:
    with_steps(tmp_path, 4)
    found, remarks = RunDirectory(tmp_path).resume_point(4)
    assert found is None
    assert remarks == ["no checkpoint yet: starting again from step 0"]


def test_the_newest_good_checkpoint_is_taken_and_damaged_ones_are_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    good, bad = save(run, 4), save(run, 8)
    (bad / "w").write_bytes(b"1")
    found, remarks = run.resume_point(4)
    assert found == good
    assert remarks == [
        f"skipping a damaged checkpoint: {bad}: w is missing or damaged",
        "resuming from step-00004",
    ]


def test_recorded_steps_are_never_thrown_away(tmp_path: Path) -> None:
    """More steps than lie between checkpoints: there was one, so it was lost or moved away."""
    with_steps(tmp_path, 5)
    with pytest.raises(CheckpointError, match="no undamaged checkpoint, but 5 steps are recorded"):
        RunDirectory(tmp_path).resume_point(4)


def test_with_all_checkpoints_damaged_nothing_is_started(tmp_path: Path) -> None:
    with_steps(tmp_path, 2)
    run = RunDirectory(tmp_path)
    for step in (1, 2):
        (save(run, step) / "w").unlink()
    with pytest.raises(CheckpointError, match="--out") as caught:
        run.resume_point(2)
    assert "step-00001: w is missing" in str(caught.value)
    assert "step-00002: w is missing" in str(caught.value)
    assert [row["step"] for row in run.rows("metrics")] == [1, 2]
