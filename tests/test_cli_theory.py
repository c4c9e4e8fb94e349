"""The local theory of runs of a second: what it reads of a run, and what it writes."""

import csv
import json
import math
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import tiny_config, train_tiny, write_models
from typer.testing import CliRunner

from effopd.analysis.run_theory import (
    check_is_distillation,
    frozen_loss,
    read_checkpoints,
    read_rays,
    run_theory,
    write_text,
)
from effopd.analysis.theory import PastRay
from effopd.cli.main import app
from effopd.errors import ConfigError
from effopd.objectives import group_advantages
from effopd.records import checkpoint_path, load_run
from effopd.training.build import Parts, build_parts
from effopd.training.config import load_config, make_config

STEPS = 5
SMALL = ("--rank", "3", "--contexts", "40", "--steps", "4")
SEARCHES = {
    "fresh": {"validation": {"type": "importance_kl", "source": "fresh", "prompts": 16}},
    "batch": {"validation": {"type": "importance_kl", "source": "batch"}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs that differ in when they search."""
    directory = tmp_path_factory.mktemp("runs")
    models = write_models(directory)
    every = {"train.steps": STEPS, "checkpoint.every": 1, "checkpoint.keep": 9}
    for name, validation in SEARCHES.items():
        train_tiny(tiny_config(models, every | validation), directory / name)
    return {name: directory / name for name in SEARCHES}


def rays_of(run: Path, said: list[str]) -> tuple[Parts, list[PastRay]]:
    parts = build_parts(load_config(run / "config.toml", []), print)
    loss = frozen_loss(parts, write_text(parts, 20, said.append))
    return parts, read_rays(run, parts, loss, read_checkpoints(run, loss), said.append)


def effopd(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["theory", *map(str, arguments)])


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "tables" / f"theory_{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(rows: Sequence[dict[str, str]], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


# The command --------------------------------------------------------------------------------------


def test_tables_of_a_run(runs: dict[str, Path], tmp_path: Path) -> None:
    result = effopd(runs["fresh"], "--out", tmp_path, *SMALL)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "theory.json").read_text("utf-8"))
    assert summary["schema"] == 1
    assert summary["contexts"] >= 40
    assert summary["random_cosine"] == pytest.approx(summary["parameters"] ** -0.5)
    assert f"{summary['contexts']} contexts, {summary['parameters']} parameters" in result.output
    assert summary["hessian_smallest"] <= summary["drive_hessian"] <= summary["hessian_largest"]
    assert 0 < summary["drive_curvature"] <= summary["eigenvalues"][0]
    assert summary["eigenvalues"] == sorted(summary["eigenvalues"], reverse=True)
    inside = sum(beta**2 for beta in summary["drive_coefficients"]) / summary["drive_norm"] ** 2
    assert inside == pytest.approx(summary["leading_drive_share"])
    descent = table(tmp_path, "descent")
    assert [row["step"] for row in descent] == ["1", "2", "4"] * 4
    rates = [share / summary["eigenvalues"][0] for share in (0.1, 0.5, 1.0, 1.9)]
    assert numbers(descent[::3], "rate") == pytest.approx(rates)
    assert numbers(descent[::3], "cosine") == pytest.approx([1.0] * 4)  # the gradient is exact
    modules = table(tmp_path, "modules")
    assert sum(numbers(modules, "drive_share")) == pytest.approx(1.0)
    assert sum(numbers(modules, "update_share")) == pytest.approx(1.0)
    assert sum(numbers(modules, "parameters")) == summary["parameters"]
    drive = math.hypot(*numbers(modules, "drive_norm"))
    assert drive == pytest.approx(summary["drive_norm"])
    assert list(summary["estimators"]) == ["opd", "sampled_opd", "rl"]


def test_checkpoints_and_scales_are_those_of_the_run(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_theory(runs["batch"], rank=3, contexts=40, steps=4)
    assert capsys.readouterr().out == ""
    checkpoints = found.tables["checkpoints"]
    assert [row["step"] for row in checkpoints] == [1, 2, 3, 4, 5]
    assert min(row["loss"] for row in checkpoints) < found.summary["base_loss_nats"]
    norms = [row["update_norm"] for row in found.tables["modules"]]
    assert math.hypot(*norms) == pytest.approx(checkpoints[-1]["norm"])
    metrics = load_run(runs["batch"]).metrics
    accepted = {r["step"] - 1: r["accepted_scale"] for r in metrics if r["accepted_scale"]}
    assert {r["step"]: r["accepted_scale"] for r in found.tables["scales"]} == accepted
    assert len(accepted) == 3


@pytest.mark.parametrize("option", ["--rank", "--contexts", "--steps"])
def test_nothing_to_compute_is_refused(runs: dict[str, Path], tmp_path: Path, option: str) -> None:
    result = effopd(runs["fresh"], "--out", tmp_path, option, "0")
    assert result.exit_code == 2
    assert f"{option} must be at least 1, got 0" in result.stderr


def test_a_damaged_checkpoint_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["fresh"], tmp_path / "run")
    (checkpoint_path(copy / "checkpoints", 3) / "config.json").write_text("{}", "utf-8")
    result = effopd(copy, "--out", tmp_path / "out", *SMALL)
    assert result.exit_code == 1
    assert "config.json is missing or damaged" in result.stderr


# What a run is ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHES)
def test_every_ray_starts_where_the_last_search_ended(runs: dict[str, Path], name: str) -> None:
    said: list[str] = []
    _, rays = rays_of(runs[name], said)
    assert [ray.step for ray in rays] == [1, 2, 4]
    assert not [line for line in said if "left out" in line]
    assert float((rays[0].anchor_P - rays[0].tip_P).norm()) > 0
    for last, ray in pairwise(rays):
        moves = ray.anchor_P != ray.tip_P
        ended = last.anchor_P + last.scale * (last.tip_P - last.anchor_P)
        torch.testing.assert_close(ray.anchor_P[moves], ended[moves], rtol=1e-4, atol=1e-6)


def test_only_what_the_search_moves_has_a_ray(runs: dict[str, Path]) -> None:
    said: list[str] = []
    parts, rays = rays_of(runs["batch"], said)
    names = [n for n, _ in parts.student.model.named_parameters()]
    space = frozen_loss(parts, write_text(parts, 20, said.append)).space
    update = space.tensors(rays[0].tip_P - rays[0].anchor_P)
    moved = {name for name in names if bool(update[name].any())}
    assert moved
    assert all("attn" in name or "mlp" in name or "attention" in name for name in moved)
    still = space.tensors(rays[0].tip_P)["lm_head.weight"]
    assert bool(still.any())  # trained, though no search moves it


def test_searches_without_checkpoints_are_counted(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["batch"], tmp_path / "run")
    shutil.rmtree(checkpoint_path(copy / "checkpoints", 2))
    said: list[str] = []
    _, rays = rays_of(copy, said)
    assert [ray.step for ray in rays] == [1, 4]
    assert [line for line in said if line.startswith("1 of 3 searches left out")]


def test_text_is_whole_groups_with_their_advantages(runs: dict[str, Path]) -> None:
    parts = build_parts(load_config(runs["fresh"] / "config.toml", []), print)
    text = write_text(parts, 30, lambda line: None)
    again = write_text(parts, 30, lambda line: None)
    assert text == again
    ids = [rollout.problem.id for rollout in text.rollouts]
    assert ids == [problem for problem in dict.fromkeys(ids) for _ in range(4)]
    lengths = [len(rollout.completion.token_ids) for rollout in text.rollouts]
    assert sum(lengths[:-4]) < 30 <= sum(lengths)
    assert parts.verifier is not None
    rewards = parts.verifier.rewards([rollout.answer for rollout in text.rollouts])
    table_GR = torch.tensor(rewards, dtype=torch.float64).view(-1, 4)
    expected = group_advantages(table_GR, "std").flatten().repeat_interleave(torch.tensor(lengths))
    assert list(text.advantages or ()) == expected.tolist()


def test_target_of_an_exaggerated_teacher(runs: dict[str, Path]) -> None:
    """Its drive is that of the teacher plus the share by which it goes beyond the reference."""
    path, drives = runs["fresh"] / "config.toml", {}
    for scale in (1.0, 1.5):
        settings = ["objective.type='exopd'", f"objective.reward_scale={scale}"]
        parts = build_parts(load_config(path, settings), print)
        drives[scale] = frozen_loss(parts, write_text(parts, 20, lambda line: None)).drive()
    torch.testing.assert_close(drives[1.5], 1.5 * drives[1.0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"method": "grpo"}, "reinforcement learning"),
        ({"objective": {"type": "full_kl", "divergence": "forward"}}, "divergence = 'forward'"),
        ({"self_teacher": {"decay": 0.9}}, "follows the student"),
    ],
)
def test_runs_that_the_theory_is_not_about_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        check_is_distillation(make_config({"task": {"type": "tiny_world"}, **settings}))
