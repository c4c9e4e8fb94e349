"""`effopd reproduce` from nothing, in a world that takes seconds."""

import json
import os
from pathlib import Path

import pytest

from effopd.cli.reproduce import measures, reproduce_study
from effopd.cli.reproduction.study import Study
from effopd.demo.world import TinyWorld, make_model, make_tokenizer
from effopd.errors import ConfigError

WORLD = {
    "hidden": 32,
    "layers": 3,
    "modulus": 2,
    "operations": 2,
    "train_problems": 20,
    "test_problems": 16,
    "base_greedy": 0.0,
    "noise_steps": 60,
    "teacher_steps": 1,
}
PLAN = """
name = "small"
seeds = [0, 1]
lrs = [3e-4]
[common]
teacher = { path = "TEACHER" }
evaluation = { every = 1, problems = 16, recorded = 0 }
train = { steps = 2, prompts_per_step = 8 }
[worlds.sharpen.task]
type = "tiny_world"
WORLD
[methods.opd]
settings = { method = "opd" }
[methods.paper]
settings = { method = "effopd", preset = "paper", validation = { prompts = 4 } }
[methods.exopd]
settings = { method = "exopd", objective = { type = "exopd" } }
[methods.alphaopd]
settings = { method = "alphaopd", search = { schedule = { steps = [2] } } }
[methods.effopd]
settings = { method = "effopd", validation = { prompts = 4 } }
[quick]
seeds = [0, 1]
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EFFOPD_CACHE", str(tmp_path / "cache"))
    plan, teacher = tmp_path / "plan.toml", tmp_path / "teacher"
    world = "\n".join(f"{name} = {value}" for name, value in WORLD.items())
    plan.write_text(PLAN.replace("WORLD", world).replace("TEACHER", str(teacher)))
    model = make_model(TinyWorld(**WORLD | {"seed": 1}))  # the base, untrained, is its own equal
    model.save_pretrained(teacher)
    make_tokenizer(TinyWorld(**WORLD)).save_pretrained(teacher)
    return Study(
        out=tmp_path / "out",
        seeds=(0, 1),
        steps=4,
        save_every=2,
        answers=16,
        problems=16,
        passes=1,
        world=WORLD,
        plan=plan,
        quick=True,
    )


def test_everything_is_trained_measured_and_written_once(study: Study, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "reproduction.md"
    reproduce_study(study, page)
    written = {
        path: path.stat().st_mtime_ns for path in study.out.rglob("*.json*") if path.is_file()
    }
    assert all(study.measurement(n, s).is_file() for n in measures(study) for s in study.seeds)
    for picture in ("norms", "windows", "ranks", "subspaces", "heat-maps", "rescaling", "methods"):
        file = page.parent / "assets" / "reproduction" / f"{picture}.png"
        assert file.read_bytes().startswith(b"\x89PNG")
        assert f"(assets/reproduction/{picture}.png)" in page.read_text("utf-8")
    progress = json.loads(study.measurement("progress", 1).read_text("utf-8"))
    assert progress["opd"]["steps"] == [2, 4]
    first, last = progress["opd"]["norm"]
    assert 0 < first < last

    study.measurement("scaling", 1).unlink()  # as if it had been interrupted there
    text = page.read_text("utf-8")
    reproduce_study(study, page)
    assert page.read_text("utf-8") == text
    again = {path: path.stat().st_mtime_ns for path in written}
    trained = [p for p in written if "measurements" in p.parts or p.name == "metrics.jsonl"]
    changed = {path for path in trained if again[path] != written[path]}
    assert changed == {study.measurement("scaling", 1)}
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_a_study_checks_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distinct"):
        Study(out=tmp_path, seeds=(0, 0))
    with pytest.raises(ConfigError, match="two checkpoints"):
        Study(out=tmp_path, steps=4, save_every=4)


@pytest.mark.parametrize(("steps", "every", "early"), [(40, 4, 4), (40, 2, 4), (8, 2, 2)])
def test_the_early_checkpoint_is_a_tenth_of_the_way(
    tmp_path: Path, steps: int, every: int, early: int
) -> None:
    assert Study(out=tmp_path, steps=steps, save_every=every).early_step == early
