"""Trackers follow a run: every row once, whatever is killed; whatever fails, the run goes on."""

import json
import signal
import struct
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support import processes
from tests.support.processes import kill_me
from tests.support.tiny import metrics_of, outcome, tiny_config, train_tiny

from effopd.errors import ConfigError, MissingExtraError
from effopd.records import Row, read_jsonl
from effopd.search.scales import Trial
from effopd.training import trackers
from effopd.training.config import make_config
from effopd.training.loop import Trainer
from effopd.training.trackers import Sent, Tracked, completion_of, scalars_of
from effopd.training.tracking import FILE, Tail, TrackingSettings

SETTINGS = {"train.steps": 4, "checkpoint.every": 2, "evaluation.every": 2}


class Fake:
    """A tracker in memory, which keeps what it was given from one opening to the next."""

    def __init__(self) -> None:
        self.opened: list[Tracked] = []
        self.scalars_: list[tuple[int, dict[str, float]]] = []
        self.tables: list[tuple[int, list[Row]]] = []
        self.finished = 0
        self.before: Callable[[], None] = lambda: None
        self.sent: Sent = {}

    def __call__(self, tracked: Tracked, sent: Sent) -> "Fake":
        self.opened.append(tracked)
        self.sent = sent
        return self

    def scalars(self, values: dict[str, float], step: int) -> None:
        self.before()
        self.scalars_.append((step, dict(values)))

    def table(self, rows: Sequence[Row], step: int) -> None:
        self.tables.append((step, list(rows)))

    def flush(self) -> None:
        pass

    def finish(self) -> None:
        self.finished += 1

    def steps(self, name: str) -> list[int]:
        """The steps at which a number came, in order of arrival."""
        return [step for step, values in self.scalars_ if name in values]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Stands for the tracker `trackio`, whose package need not be there."""
    module = types.ModuleType("trackio")
    module.__spec__ = types.SimpleNamespace(origin="here")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "trackio", module)
    found = Fake()
    monkeypatch.setitem(trackers.TRACKERS, "trackio", found)
    return found


def tracked(models: Path, **settings: Any) -> Any:
    more = {f"tracking.{name}": value for name, value in ({"wait_s": 600.0} | settings).items()}
    return tiny_config(models, SETTINGS | {"tracking.to": ["trackio"]} | more)


# What is sent -------------------------------------------------------------------------------------


def test_every_record_is_sent_once(models: Path, tmp_path: Path, fake: Fake) -> None:
    config = tracked(models, name="mine", project="sums")
    finished, _ = train_tiny(config, tmp_path)
    assert finished
    (opened,) = fake.opened
    assert (opened.name, opened.project, opened.config["optimizer.lr"]) == ("mine", "sums", 3e-4)
    assert opened.id == json.loads((tmp_path / FILE).read_text())["id"]
    sent = {tuple(sorted({"step": step} | values)) for step, values in fake.scalars_}
    for log in ("metrics", "timing", "search", "evals"):
        rows = read_jsonl(tmp_path / f"{log}.jsonl")
        names = {next(iter(scalars_of(log, row))).split("/")[0] for row in rows}
        found = [each for each in fake.scalars_ if next(iter(each[1])).split("/")[0] in names]
        assert found == [(row["step"], scalars_of(log, row)) for row in rows], log
    assert sent
    rollouts = read_jsonl(tmp_path / "rollouts.jsonl")
    assert [row for _, rows in fake.tables for row in rows] == [*map(completion_of, rollouts)]
    assert [step for step, _ in fake.tables] == [0, 2, 4]
    assert fake.finished == 1


def test_numbers_of_rows() -> None:
    row = {
        "schema": 1, "step": 3, "loss": 0.5, "skipped": None, "alarms": ["a", "b"],
        "verdicts": {"correct": 2}, "overlap_by_decile": [0.5, None], "foresight": True,
    }  # fmt: skip
    assert scalars_of("metrics", row) == {
        "train/loss": 0.5, "train/alarms": 2, "train/verdicts/correct": 2,
        "train/overlap_by_decile/0": 0.5, "train/foresight": 1,
    }  # fmt: skip
    assert scalars_of("evals", {"model": "student", "accuracy": 1.0}) == {"eval/accuracy": 1.0}
    teacher = {"model": "teacher", "accuracy": 1.0, "n": 6, "sampled_tokens": 0}
    assert scalars_of("evals", teacher) == {"teacher/accuracy": 1.0}
    trial = {"trial": 1, "scale": 2.0, "accepted": False}
    assert scalars_of("search", trial) == {"search/scale": 2.0, "search/accepted": 0}


def test_a_completion_has_its_reward_and_the_divergence_of_each_token() -> None:
    row = {
        "step": 2, "problem_id": "7", "prompt": "1+1", "completion": "is 2", "reward": 1.0,
        "finish_reason": "stop", "tokens": ["is", " 2", "<e>"], "kl_nats": [0.5, None, 0.25],
    }  # fmt: skip
    found = completion_of(row)
    assert (found["reward"], found["tokens"], found["kl_mean"]) == (1.0, 3, 0.375)
    assert found["kl_by_token"] == "is 0.500 ·  2 - · <e> 0.250"


def test_rollouts_of_a_step_wait_until_they_are_all_there(tmp_path: Path) -> None:
    def write(log: str, *steps: int) -> None:
        with open(tmp_path / f"{log}.jsonl", "a") as file:
            file.writelines(json.dumps({"step": step}) + "\n" for step in steps)

    tail = Tail(tmp_path)

    def new(*, over: bool = False) -> list[tuple[str, tuple[int, int]]]:
        return [(log, position) for log, position, _ in tail.rows(over=over)]

    write("rollouts", 0, 0)
    assert new() == []
    write("metrics", 1)
    assert new() == [("metrics", (1, 0)), ("rollouts", (0, 0)), ("rollouts", (0, 1))]
    write("rollouts", 1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')  # a line that is being written
    assert new() == []
    assert new(over=True) == [("rollouts", (1, 0))]


# Killed and resumed -------------------------------------------------------------------------------


def test_steps_that_are_trained_again_are_sent_once(
    models: Path, tmp_path: Path, fake: Fake
) -> None:
    config = tracked(models)
    real = Trainer._step

    def dying(trainer: Trainer) -> None:
        if trainer.progress.step == 3:  # step 3 is after the checkpoint of step 2
            raise RuntimeError("out of memory")
        real(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", dying)
        with pytest.raises(RuntimeError, match="out of memory"):
            train_tiny(config, tmp_path)
    assert fake.steps("train/loss") == [1, 2, 3]
    assert train_tiny(config, tmp_path)[0]
    assert fake.steps("train/loss") == fake.steps("time/elapsed_s") == [1, 2, 3, 4]
    searched = [row["step"] for row in read_jsonl(tmp_path / "search.jsonl")]
    assert fake.steps("search/scale") == searched
    assert fake.steps("eval/mean_length") == [0, 2, 4]
    assert len({each.id for each in fake.opened}) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"id": "x", "sent": {"trackio": [1]}}'])
def test_a_damaged_note_costs_the_run_nothing(
    models: Path, tmp_path: Path, fake: Fake, text: str
) -> None:
    (tmp_path / FILE).write_text(text)
    assert train_tiny(tracked(models), tmp_path)[0]
    assert fake.steps("train/loss") == [1, 2, 3, 4]


def test_a_run_that_is_finished_opens_no_tracker(models: Path, tmp_path: Path, fake: Fake) -> None:
    for _ in range(2):
        assert train_tiny(tracked(models), tmp_path)[0]
    assert len(fake.opened) == 1


# Trackers that fail -------------------------------------------------------------------------------


def test_a_tracker_that_fails_is_said_once_and_catches_up_later(
    models: Path, tmp_path: Path, fake: Fake
) -> None:
    def fail() -> None:
        raise OSError("no space left on device")

    fake.before = fail
    config = tracked(models)
    finished, messages = train_tiny(config, tmp_path / "run", stop_after=3)
    assert not finished
    (said,) = [text for text in messages if "trackio" in text]
    assert "OSError: no space left on device" in said
    assert "the run goes on" in said
    assert len(metrics_of(tmp_path / "run")) == 3
    fake.before = lambda: None
    assert train_tiny(config, tmp_path / "run")[0]
    assert fake.steps("train/loss") == [1, 2, 3, 4]
    assert train_tiny(tiny_config(models, SETTINGS), tmp_path / "plain")[0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "plain")


def test_a_tracker_that_hangs_neither_stops_the_run_nor_its_end(
    models: Path, tmp_path: Path, fake: Fake
) -> None:
    released = threading.Event()
    fake.before = lambda: released.wait() and None
    finished, messages = train_tiny(tracked(models, wait_s=0.0), tmp_path)
    released.set()
    assert finished
    assert [text for text in messages if "trackio" in text] == [
        "trackio has not taken every row 0 s after the end (tracking.wait_s): the records have "
        "them all"
    ]


def test_one_tracker_that_fails_takes_nothing_from_another(
    models: Path, tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(tracked: Tracked, sent: Sent) -> Any:
        raise ValueError("cannot log in")

    monkeypatch.setitem(sys.modules, "wandb", sys.modules["trackio"])
    monkeypatch.setitem(trackers.TRACKERS, "wandb", broken)
    finished, messages = train_tiny(tracked(models, to=["wandb", "trackio"]), tmp_path)
    assert finished
    assert sum("wandb failed" in text and "cannot log in" in text for text in messages) == 1
    assert fake.steps("train/loss") == [1, 2, 3, 4]


def test_what_is_not_installed_is_refused_before_the_run(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wandb").mkdir()  # as it leaves one behind
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'effopd\[wandb\]'"):
        train_tiny(tracked(models, to=["wandb"]), tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_settings() -> None:
    with pytest.raises(ConfigError, match=r"tracking.to may name .* got 'tensorbored'"):
        make_config({"tracking": {"to": ["tensorbored"]}})
    with pytest.raises(ConfigError, match="wait_s >= 0"):
        TrackingSettings(wait_s=-1.0)
    assert TrackingSettings(to=("trackio", "trackio")).to == ("trackio",)


# The real ones ------------------------------------------------------------------------------------


def killed_and_resumed(config: Any, out: Path, once: Callable[[], bool] = lambda: True) -> None:
    """A run that is killed in step 4, past its checkpoint of step 2, and continued."""

    def on_trial(step: int, index: int, trial: Trial) -> None:
        while step == 4 and not once():
            time.sleep(0.001)
        if step == 4:
            kill_me()

    assert processes.run(lambda: train_tiny(config, out, on_trial=on_trial)) == -signal.SIGKILL
    assert len(metrics_of(out)) == 3
    finished, messages = train_tiny(config, out)
    assert finished
    assert [text for text in messages if "failed" in text or "not taken" in text] == []


@pytest.fixture
def trackio_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    utils = pytest.importorskip("trackio.utils")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = sys.modules["trackio.sqlite_storage"]
    for module in (utils, storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return tmp_path / "trackio"


def test_trackio_has_a_killed_run_as_one(
    models: Path, tmp_path: Path, trackio_directory: Path
) -> None:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    killed_and_resumed(tracked(models, project="sums", name="mine"), tmp_path / "run")
    (run,) = trackio.Api().runs("sums")
    assert run.name.startswith("mine-")
    assert run.config["optimizer.lr"] == 3e-4
    rows = SQLiteStorage.get_logs("sums", run.name)
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(row["step"], row["loss"]) for row in metrics_of(tmp_path / "run")]
    searched = [row["step"] for row in read_jsonl(tmp_path / "run" / "search.jsonl")]
    assert sorted(row["step"] for row in rows if "search/scale" in row) == searched
    tables = [row for row in rows if "completions" in row]
    assert [row["step"] for row in tables] == [0, 2, 4]
    rollout = completion_of(read_jsonl(tmp_path / "run" / "rollouts.jsonl")[0])
    assert tables[0]["completions"]["_value"] == [rollout]


def test_tensorboard_has_a_killed_run_as_one(models: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed_and_resumed(tracked(models, to=["tensorboard"]), tmp_path)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in metrics_of(tmp_path)
    ]
    searched = [row["step"] for row in read_jsonl(tmp_path / "search.jsonl")]
    assert [event.step for event in found.Scalars("search/scale")] == searched
    texts = found.Tensors("completions/text_summary")
    assert [event.step for event in texts] == [0, 2, 4]
    assert "|kl_by_token|" in texts[0].tensor_proto.string_val[0].decode()
    assert len(found.Tensors("config/text_summary")) == 1


@pytest.mark.slow
def test_wandb_has_a_killed_run_as_one(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def logged() -> list[int]:
        parts = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
        rows = [row for part in parts for row in wandb_rows(part)]
        return [row["step"] for row in rows if "train/loss" in row]

    def is_written() -> bool:
        noted = json.loads((tmp_path / FILE).read_text())["sent"].get("wandb", {})
        return noted.get("metrics") == [3, 0] and logged() == [1, 2, 3]

    killed_and_resumed(tracked(models, to=["wandb"], project="sums"), tmp_path, is_written)
    wandb.teardown()  # its own process closes the file after `finish` has returned
    id_ = json.loads((tmp_path / FILE).read_text())["id"]
    parts = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert [name.rsplit("-")[-1] for name in parts] == [id_, id_]
    assert logged() == [1, 2, 3, 4]


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """What an offline run logged: records in the log format of LevelDB, after a header."""
    from wandb.proto import wandb_internal_pb2

    block, header, data = 32768, 7, path.read_bytes()
    rows, whole, at = [], b"", header
    while at + header <= len(data):
        if block - at % block < header:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + header])
        whole += data[at + header : at + header + length]
        at += header + length
        if kind in {1, 4}:  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                })  # fmt: skip
    return rows
