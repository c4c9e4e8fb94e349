"""A run that was interrupted equals one that never was, bit for bit; what differs is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import (
    Raw,
    copy_run,
    metrics_of,
    outcome,
    search_rows,
    sha256,
    tiny_config,
    train_tiny,
    trainer_of,
    write_models,
)

from effopd.errors import CheckpointError, ConfigError, EffopdError
from effopd.models.checkpoints import newest_good
from effopd.records import list_checkpoints, read_jsonl
from effopd.search.validation import Draw
from effopd.training import rows as rows_of_a_run
from effopd.training.config import Config
from effopd.training.loop import Trainer
from effopd.training.run_directory import LOGS, RunDirectory
from effopd.training.signals import StopRequest


@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of the default preset; copy it before changing it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train_tiny(tiny_config(models), out) == (True, messages_of(out))
    return out


def messages_of(out: Path) -> list[str]:
    """What a run says when nothing happens: its alarms."""
    said = rows_of_a_run.with_advice
    return [f"step {row['step']}: {said(a)}" for row in metrics_of(out) for a in row["alarms"]]


# Equality -----------------------------------------------------------------------------------------

DEFAULT = {"search.schedule": {"type": "every_n", "n": 1}}
RELEASE = {
    "preset": "release",
    "validation.type": "teacher_kl",
}
FULL = {
    "method": "opd",
    "objective.type": "full_kl",
    "student.dtype": "bfloat16",
    "optimizer.decay": "linear",
    "optimizer.warmup_steps": 3,
}
CASES: dict[str, tuple[int, dict[str, Any], Raw]] = {
    "default, sampled token, dropout": (8, {"dropout": 0.3}, DEFAULT),
    "paper, exopd, tied": (9, {"tied": True}, {"preset": "paper", "objective.type": "exopd"}),
    "opd, full vocabulary, bfloat16": (8, {}, FULL),
    "release": (5, {}, RELEASE),
}
"""Steps, which models, and which settings."""


THOROUGH = "default, sampled token, dropout"
"""The case that is resumed at every step in each run of the tests; the others are cut in three."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=() if name == THOROUGH else pytest.mark.slow) for name in CASES],
)
def test_resuming_at_any_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(rows_of_a_run, "LENGTH_RATIO", 1.0)  # alarms compare with the first steps
    config, undisturbed = whole_run(case, tmp_path)
    expected = outcome(undisturbed)
    for step in range(1, config.train.steps):
        resumed = copy_run(undisturbed, tmp_path / f"from-{step}", steps=[step])
        torch.manual_seed(step)  # the state of the process does not matter
        done, messages = train_tiny(config, resumed)
        assert done
        assert messages[0] == f"resuming from step-{step:05d}"
        assert outcome(resumed) == expected, f"resumed from step {step}"
        later = {n: f for n, f in checkpoints(undisturbed).items() if n >= f"step-{step:05d}"}
        assert checkpoints(resumed) == later


def whole_run(case: str, directory: Path) -> tuple[Config, Path]:
    """Settings and directory of an undisturbed run; alarms must be at LENGTH_RATIO 1."""
    steps, kind, settings = CASES[case]
    models = write_models(directory / "models", **kind)
    settings = settings | {"train.steps": steps, "evaluation.every": 5, "evaluation.first": [1]}
    config = tiny_config(models, settings | {"checkpoint.every": 1, "checkpoint.keep": 99})
    undisturbed = directory / "undisturbed"
    assert train_tiny(config, undisturbed)[0]
    assert any("mean length" in alarm for alarm in metrics_of(undisturbed)[-1]["alarms"])
    verdicts = {row["accepted"] for row in search_rows(undisturbed)}
    assert verdicts == (set() if config.method == "opd" else {None, True, False})
    return config, undisturbed


def checkpoints(run: Path) -> dict[str, dict[str, str]]:
    """Digests of all tensors of all checkpoints."""
    return {
        directory.name: {path.name: sha256(path) for path in directory.rglob("*.safetensors")}
        for directory in list_checkpoints(run / "checkpoints")
    }


@pytest.mark.parametrize("case", [name for name in CASES if name != THOROUGH])
def test_a_run_cut_into_pieces_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(rows_of_a_run, "LENGTH_RATIO", 1.0)
    config, undisturbed = whole_run(case, tmp_path)
    for stop_after in (1, config.train.steps - 1):
        torch.manual_seed(stop_after)
        assert not train_tiny(config, tmp_path / "pieces", stop_after=stop_after)[0]
    assert train_tiny(config, tmp_path / "pieces")[0]
    assert outcome(tmp_path / "pieces") == outcome(undisturbed)
    assert checkpoints(tmp_path / "pieces") == checkpoints(undisturbed)


def test_the_seed_decides_every_bit(models: Path, finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    same, other = tmp_path / "same", tmp_path / "other"
    train_tiny(tiny_config(models), same)
    train_tiny(tiny_config(models, {"seed": 4}), other)
    assert outcome(same) == outcome(finished)
    assert (same / "config.toml").read_bytes() == (finished / "config.toml").read_bytes()
    weights = [outcome(run).files["model.safetensors"] for run in (finished, other)]
    assert weights[0] != weights[1]


# A search that accepts nothing is invisible -------------------------------------------------------

COUNTERS = {
    "accepted_scale", "validation_tokens", "sampled_tokens", "teacher_tokens", "student_passes",
}  # fmt: skip


def without_counters(run: Path) -> list[Raw]:
    return [{k: v for k, v in row.items() if k not in COUNTERS} for row in metrics_of(run)]


def restless(draw: Draw) -> float:
    """A validator that never accepts and stirs torch's global generator."""
    torch.manual_seed(1234)
    torch.rand(7)
    return 0.0


@pytest.mark.parametrize(("dropout", "how"), [(0.0, "margin"), (0.3, "restless")])
def test_rejected_searches_leave_no_trace(tmp_path: Path, dropout: float, how: str) -> None:
    models = write_models(tmp_path / "models", dropout=dropout)
    plain, searched = tmp_path / "plain", tmp_path / "searched"
    train_tiny(tiny_config(models, {"method": "opd", "train.steps": 5}), plain)
    config = tiny_config(
        models,
        {"search.parameters": "all", "search.schedule": {"type": "every_n", "n": 1}}
        | {"train.steps": 5}
        | ({"search.accept": {"type": "paired_margin", "z": 1e9}} if how == "margin" else {}),
    )
    trainer, run = trainer_of(config, searched)
    assert trainer.extrapolator is not None
    if how == "restless":
        trainer.extrapolator._validate = restless
    assert trainer.run(StopRequest())
    run.close()

    assert [row["accepted_scale"] for row in metrics_of(searched)] == [1.0] * 5
    assert {row["accepted"] for row in search_rows(searched)} == {None, False}
    assert without_counters(searched) == without_counters(plain)
    ours, theirs = outcome(searched).files, outcome(plain).files
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert ours[name] == theirs[name]
    assert outcome(searched).rollouts == outcome(plain).rollouts
    for ours_row, theirs_row in zip(
        read_jsonl(searched / "evals.jsonl"), read_jsonl(plain / "evals.jsonl"), strict=True
    ):
        for name in ("accuracy", "reverse_kl", "mean_length"):
            assert ours_row[name] == theirs_row[name]


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture
def two_checkpoints(finished: Path, tmp_path: Path) -> Path:
    run = copy_run(finished, tmp_path / "run")
    assert [path.name[-1] for path in list_checkpoints(run / "checkpoints")] == ["8", "4"]
    return run


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "trainer/optimizer.safetensors",
     "trainer/search-00000-of-00001.safetensors", "trainer_state.json", "config.json",
     "tokenizer.json", "manifest.json"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    models: Path, finished: Path, two_checkpoints: Path, name: str
) -> None:
    damaged = two_checkpoints / "checkpoints" / "step-00008"
    path = damaged / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done, messages = train_tiny(tiny_config(models), two_checkpoints)
    assert done
    assert messages[0].startswith("skipping a damaged checkpoint: ")
    assert f"step-00008: {name}" in messages[0]
    assert messages[1] == "resuming from step-00004"
    assert outcome(two_checkpoints) == outcome(finished)
    assert newest_good(two_checkpoints / "checkpoints")[0] == damaged  # it was replaced


def test_with_both_checkpoints_damaged_nothing_is_lost_or_started(
    models: Path, two_checkpoints: Path
) -> None:
    for path in (two_checkpoints / "checkpoints").glob("*/trainer/optimizer.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    before = {name: (two_checkpoints / f"{name}.jsonl").read_bytes() for name in LOGS}
    with pytest.raises(CheckpointError, match="no undamaged checkpoint, but 8 steps") as caught:
        train_tiny(tiny_config(models), two_checkpoints)
    assert "step-00004: trainer/optimizer.safetensors" in str(caught.value)
    assert "step-00008: trainer/optimizer.safetensors" in str(caught.value)
    assert "--out" in str(caught.value)
    assert {n: (two_checkpoints / f"{n}.jsonl").read_bytes() for n in LOGS} == before
    RunDirectory(two_checkpoints).close()  # not locked by the failure


def test_a_half_written_checkpoint_is_ignored(
    models: Path, finished: Path, two_checkpoints: Path
) -> None:
    newest = two_checkpoints / "checkpoints" / "step-00008"
    newest.rename(newest.with_name(".writing-step-00008"))
    done, messages = train_tiny(tiny_config(models), two_checkpoints)
    assert done
    assert messages[0] == "resuming from step-00004"
    assert outcome(two_checkpoints) == outcome(finished)
    assert sorted(os.listdir(newest.parent)) == ["step-00004", "step-00008"]


def test_torn_and_surplus_lines_are_cut_off(models: Path, finished: Path, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path / "run", steps=[4])
    for name in LOGS:
        with (run / f"{name}.jsonl").open("ab") as file:
            file.write(b'{"schema":1,"step":9,"loss":0.0}\n{"schema":1,"st')
    assert train_tiny(tiny_config(models), run)[0]
    assert outcome(run) == outcome(finished)
    for name in ("metrics", "timing"):
        assert [row["step"] for row in read_jsonl(run / f"{name}.jsonl")] == list(range(1, 9))
        assert (run / f"{name}.jsonl").read_bytes().endswith(b"}\n")


def test_a_checkpoint_of_another_run_is_refused(
    models: Path, two_checkpoints: Path, tmp_path: Path
) -> None:
    """Even one of the same model and search: its records are not these."""
    other = tmp_path / "other"
    train_tiny(tiny_config(models, {"seed": 4, "evaluation.problems": 0}), other)
    stolen = two_checkpoints / "checkpoints" / "step-00006"
    copy_run(other / "checkpoints" / "step-00008", stolen)
    config = tiny_config(models, {"train.steps": 20})
    for step in (4, 8):
        copy_run(two_checkpoints / "checkpoints" / f"step-{step:05d}", tmp_path / str(step))
        for path in (two_checkpoints / "checkpoints" / f"step-{step:05d}").glob("*.*"):
            path.unlink()
    with pytest.raises(EffopdError, match=r"metrics.jsonl"):
        train_tiny(config, two_checkpoints)


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"optimizer.lr": 4e-4}, "optimizer.lr: 0.0003 -> 0.0004"),
        ({"seed": 4}, "seed: 3 -> 4"),
        ({"method": "opd"}, "method: effopd -> opd"),
        ({"objective.type": "exopd"}, "objective.reward_scale: None -> 1.25"),
        ({"train.steps": 6}, "train.steps: 8 -> 6"),
        ({"train.prompts_per_step": 5}, "train.prompts_per_step: 16 -> 5"),
        ({"search.accept": {"type": "at_least"}}, "search.accept.type: strict -> at_least"),
        ({"memory.master_weights": True, "student.dtype": "bfloat16"},
         "memory.master_weights: False -> True"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_and_shown(
    models: Path, finished: Path, tmp_path: Path, settings: Raw, difference: str
) -> None:
    run = copy_run(finished, tmp_path / "run")
    with pytest.raises(ConfigError, match="other settings") as caught:
        train_tiny(tiny_config(models, settings), run)
    assert f"\n  {difference}\n" in str(caught.value)
    assert "--out" in str(caught.value)
    assert outcome(run) == outcome(finished)
    assert (run / "config.toml").read_bytes() == (finished / "config.toml").read_bytes()


def test_a_longer_run_continues_a_finished_one(
    models: Path, finished: Path, tmp_path: Path
) -> None:
    longer = tiny_config(models, {"train.steps": 12})
    grown, whole = copy_run(finished, tmp_path / "grown"), tmp_path / "whole"
    assert train_tiny(longer, grown)[0]
    assert train_tiny(longer, whole)[0]
    assert outcome(grown) == outcome(whole)
    assert (grown / "config.toml").read_bytes() == (whole / "config.toml").read_bytes()


def test_a_decaying_rate_cannot_be_continued_for_longer(models: Path, tmp_path: Path) -> None:
    settings = {"method": "opd", "train.steps": 2, "optimizer.decay": "linear"}
    train_tiny(tiny_config(models, settings), tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)train.steps: 2 -> 3.*optimizer.decay = 'linear'"):
        train_tiny(tiny_config(models, settings | {"train.steps": 3}), tmp_path)


@pytest.mark.parametrize("content", [b"= 3", b"\xff\xfe", b""])
def test_damaged_settings_are_refused(
    models: Path, finished: Path, tmp_path: Path, content: bytes
) -> None:
    run = copy_run(finished, tmp_path / "run")
    (run / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config.toml is damaged|other settings"):
        train_tiny(tiny_config(models), run)


@pytest.mark.parametrize("kept", ["checkpoints", "evals.jsonl"])
def test_records_without_settings_are_refused(
    models: Path, finished: Path, tmp_path: Path, kept: str
) -> None:
    """They may be another program's; starting over would empty them."""
    run = copy_run(finished, tmp_path / "run")
    for path in run.iterdir():
        if path.is_file() and path.name != kept:
            path.unlink()
    if kept != "checkpoints":
        shutil.rmtree(run / "checkpoints")
    before = everything(run)
    with pytest.raises(ConfigError, match=r"records or checkpoints but no config.toml.*--out"):
        train_tiny(tiny_config(models), run)
    (run / "run.lock").unlink()
    assert everything(run) == before


# Finished runs ------------------------------------------------------------------------------------


def everything(run: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(run)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in run.rglob("*")
        if path.is_file()
    }


def test_a_finished_run_says_so_and_is_left_alone(
    models: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("a finished run needs no trainer")

    run = copy_run(finished, tmp_path / "run")
    before = everything(run)
    monkeypatch.setattr(Trainer, "__init__", never)
    done, messages = train_tiny(tiny_config(models), run)
    assert done
    assert messages == [
        f"{run} is finished (after step 8: last step), nothing was changed. Raise train.steps to "
        "go on after the last step, or choose another directory (--out)."
    ]
    assert everything(run) == before


def test_run_json_describes_the_run(finished: Path) -> None:
    info = json.loads((finished / "run.json").read_text())
    assert (info["method"], info["preset"], info["lr"], info["seed"]) == (
        "effopd", "default", 3e-4, 3,
    )  # fmt: skip
    assert {"effopd", "torch", "transformers"} <= info["versions"].keys()
