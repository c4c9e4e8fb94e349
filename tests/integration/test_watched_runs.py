"""A run with the monitor on: what it records, and that it changes nothing."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.reference.monitor_twin import twin_inertia
from tests.support.tiny import (
    Raw,
    metrics_of,
    outcome,
    tiny_config,
    train_tiny,
    trainer_of,
    write_models,
)

from effopd.errors import ConfigError
from effopd.records import list_checkpoints, read_jsonl
from effopd.training.signals import StopRequest

WATCH = {"every": 1, "patience": 2}
PLAIN = {"method": "opd", "train.steps": 5, "checkpoint.every": 1, "checkpoint.keep": 99}


def rows_of(run: Path) -> list[Raw]:
    return read_jsonl(run / "monitor.jsonl")


def watched(models: Path, out: Path, settings: Raw) -> tuple[list[Raw], list[str]]:
    """Trains with the monitor on; its rows and the messages."""
    done, messages = train_tiny(tiny_config(models, settings | {"monitor": WATCH}), out)
    assert done
    return rows_of(out), messages


def positions(models: Path, run: Path) -> list[torch.Tensor]:
    """Weights of the untrained student and of each checkpoint, flat."""
    found = []
    for directory in [models / "student", *list_checkpoints(run / "checkpoints")[::-1]]:
        weights = load_file(directory / "model.safetensors")
        found.append(
            torch.cat([tensor.double().flatten() for _, tensor in sorted(weights.items())])
        )
    return found


def test_what_is_recorded_is_what_the_checkpoints_show(models: Path, tmp_path: Path) -> None:
    rows, _ = watched(models, tmp_path, PLAIN)
    points = positions(models, tmp_path)
    moves = [after - before for before, after in pairwise(points)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    length = 0.0
    for row, point, move in zip(rows, points[1:], moves, strict=True):
        length += move.norm().item()
        displacement = (point - points[0]).norm().item()
        assert row["displacement"] == pytest.approx(displacement, rel=1e-4)
        assert row["path_length"] == pytest.approx(length, rel=1e-4)
        assert row["straightness"] == pytest.approx(displacement / length, rel=1e-4)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairwise(moves)]
    assert [row["step_cosine"] for row in rows[1:]] == pytest.approx(cosines, abs=1e-3)
    assert rows[0]["step_cosine"] is None
    inertia = [twin_inertia(0.9, step, 1) for step in range(1, 5)]
    assert [row["inertia"] for row in rows[1:]] == pytest.approx(inertia)
    excess = [cosine - expected for cosine, expected in zip(cosines, inertia, strict=True)]
    holds = [math.fsum(pair) / 2 >= 0 for pair in pairwise(excess)]
    assert [row["foresight"] for row in rows] == [None, None, *holds]


def test_watching_changes_nothing_else(models: Path, tmp_path: Path) -> None:
    """Searches with jumps, and dropout that would notice a random number more."""
    models = write_models(tmp_path / "models", dropout=0.3)
    settings = {"train.steps": 6}
    train_tiny(tiny_config(models, settings), tmp_path / "plain")
    rows, _ = watched(models, tmp_path / "watched", settings)
    assert len(rows) == 6
    ours, theirs = outcome(tmp_path / "watched"), outcome(tmp_path / "plain")
    assert ours.files.keys() - theirs.files.keys() == {"monitor.safetensors"}
    assert theirs.files.items() <= ours.files.items()
    for name in ("counters", "metrics", "evals", "rollouts", "search"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert any(row["accepted_scale"] not in {None, 1.0} for row in metrics_of(tmp_path / "plain"))
    assert theirs.monitor == b""
    timing = read_jsonl(tmp_path / "watched" / "timing.jsonl")
    assert all(row["monitor_s"] > 0 for row in timing)


UNIT = 2.0**-7


def along_a_line(models: Path, out: Path, signs: Sequence[int], settings: Raw) -> list[str]:
    """Trains with updates that add or take away `UNIT` everywhere; returns the messages.

    The validator finds all candidates equal.
    """
    messages: list[str] = []
    settings = {"monitor": WATCH, "train.steps": len(signs)} | settings
    trainer, run = trainer_of(tiny_config(models, settings), out, messages.append)
    assert trainer.extrapolator is not None

    @torch.no_grad()
    def update_(rollouts: Any, step: int) -> Raw:
        for parameter in trainer.student.model.parameters():
            parameter += signs[step - 1] * UNIT
        return {}

    trainer.updater.update_ = update_  # type: ignore[method-assign]
    trainer.extrapolator._validate = lambda draw: 0.0
    assert trainer.run(StopRequest())
    run.close()
    return messages


@pytest.mark.parametrize(
    "validation",
    [
        {"type": "teacher_kl", "prompts": 8},
        {"type": "importance_kl", "source": "batch", "prompts": 8},
    ],
    ids=["search after the update", "search before the next update"],
)
def test_a_jump_is_part_of_the_path_but_not_of_the_direction(
    models: Path, tmp_path: Path, validation: Raw
) -> None:
    """Two steps ahead, a jump over eight more, one step back, one ahead."""
    settings = {
        "search.schedule": {"type": "at_steps", "steps": [2]},
        "search.scales": {"type": "ladder", "scales": [5.0]},
        "search.accept": {"type": "at_least"},
        "search.parameters": "all",
        "validation": validation,
    }
    along_a_line(models, tmp_path, [1, 1, -1, 1], settings)
    assert 5.0 in [row["accepted_scale"] for row in metrics_of(tmp_path)]
    rows = rows_of(tmp_path)
    unit = rows[0]["displacement"]
    assert unit == pytest.approx(UNIT * math.sqrt(len(positions(models, tmp_path)[0])), rel=1e-4)
    assert [row["displacement"] / unit for row in rows] == pytest.approx([1, 2, 9, 10], rel=1e-4)
    assert [row["path_length"] / unit for row in rows] == pytest.approx([1, 2, 11, 12], rel=1e-4)
    assert [row["step_cosine"] for row in rows[1:]] == pytest.approx([1, -1, -1], abs=1e-4)


def test_lost_foresight_is_an_alarm(models: Path, tmp_path: Path) -> None:
    """Four steps ahead, then to and fro."""
    settings = {
        "search.schedule": {"type": "at_steps", "steps": [1]},
        "monitor": WATCH | {"bound": 0.1},
    }
    signs = [1, 1, 1, 1, -1, 1, -1, 1, -1, 1, -1, 1]
    messages = along_a_line(models, tmp_path, signs, settings)
    rows = rows_of(tmp_path)
    assert rows[0]["step_cosine"] is None
    cosines = [row["step_cosine"] for row in rows[1:]]
    assert cosines == pytest.approx([1] * 3 + [-1] * 8, abs=1e-3)
    assert [row["foresight"] for row in rows] == [None, None, True, True, *[False] * 8]
    assert [row["step"] for row in rows if row["alarms"]] == [5]
    assert [m for m in messages if m.startswith("step 5: foresight is lost: ")]


# Resuming -----------------------------------------------------------------------------------------


def cut(models: Path, out: Path, monitor: Raw) -> None:
    config = tiny_config(models, PLAIN | {"monitor": monitor})
    assert not train_tiny(config, out, stop_after=2)[0]


def test_the_monitor_may_be_turned_off_on_the_way_but_not_on(models: Path, tmp_path: Path) -> None:
    cut(models, tmp_path / "on", WATCH)
    cut(models, tmp_path / "off", {})
    off, on = (tiny_config(models, PLAIN | {"monitor": m}) for m in ({}, WATCH))
    assert train_tiny(off, tmp_path / "on")[0]
    assert [row["step"] for row in rows_of(tmp_path / "on")] == [1, 2]
    assert len(metrics_of(tmp_path / "on")) == 5
    with pytest.raises(ConfigError, match=r"monitor.every: 0 -> 1"):
        train_tiny(on, tmp_path / "off")


def test_weights_that_are_not_finite_are_not_observed(models: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    config = tiny_config(models, PLAIN | {"monitor": WATCH, "train.steps": 2})
    trainer, run = trainer_of(config, tmp_path, messages.append)
    matrix = trainer.student.model.model.layers[0].mlp.up_proj.weight
    observe: Callable[[int], Any] = trainer.monitor.observe

    def poisoned(step: int) -> Any:
        kept = matrix.detach().clone()
        if step == 1:
            matrix.data[0, 0] = math.nan
        try:
            return observe(step)
        finally:
            matrix.data.copy_(kept)

    trainer.monitor.observe = poisoned  # type: ignore[method-assign]
    assert trainer.run(StopRequest())
    run.close()
    assert [row["step"] for row in rows_of(tmp_path)] == [2]
    assert any(m.startswith("step 1: not observed, a weight") for m in messages)
