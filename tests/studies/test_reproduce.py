"""`python -m studies.paper` from nothing, in a world that takes seconds."""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies.paper import accuracy, geometry, reproduce
from studies.paper.reproduce import measures
from studies.paper.study import (
    BOTH,
    TEACHER_OF,
    Scene,
    Study,
    minutes,
    quick_study,
    run_settings,
    train_run,
)

from effopd.analysis.modules import update_norm
from effopd.data.world import TinyWorld, make_model, make_tokenizer
from effopd.errors import ConfigError, EffopdError
from effopd.models.checkpoints import write_checkpoint
from effopd.models.layout import matrices, module_tensors

WORLD = {
    "hidden": 32,
    "layers": 3,
    "modulus": 2,
    "operations": 2,
    "train_problems": 20,
    "test_problems": 16,
    "base_greedy": 0.0,
    "noise_steps": 10,
    "teacher_steps": 1,
}
PLAN = """
name = "small"
seeds = [1]
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
[methods.release]
settings = { method = "effopd", preset = "release", validation = { prompts = 4 } }
[methods.effopd]
settings = { method = "effopd", validation = { prompts = 4 } }
[quick]
seeds = [1]
"""


def study_in(directory: Path) -> Study:
    plan, teacher = directory / "plan.toml", directory / "teacher"
    world = "\n".join(f"{name} = {value}" for name, value in WORLD.items())
    plan.write_text(PLAN.replace("WORLD", world).replace("TEACHER", str(teacher)))
    model = make_model(TinyWorld(**WORLD | {"seed": 1}))  # the base, untrained, is its own equal
    model.save_pretrained(teacher)
    make_tokenizer(TinyWorld(**WORLD)).save_pretrained(teacher)
    return Study(
        out=directory / "out",
        seeds=(1,),
        bases=(WORLD,),
        rl_steps=4,
        rl_prompts=4,
        responses=4,
        steps=4,
        save_every=2,
        moments=2,
        answers=8,
        problems=8,
        passes=1,
        plan=plan,
        quick=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Scene]:
    """One seed of reinforcement learning and of the distillation from it."""
    directory = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EFFOPD_CACHE", str(directory / "cache"))
        study = study_in(directory)
        for method in BOTH:
            train_run(study, method, 1)
        yield Scene(study, 1)


def test_measurements_agree_with_each_other(
    trained: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "SCALES", (0.5, 1.0))
    few = replace(trained.study, top_shares=(0.5,), bottom_shares=(0.5,), windows=2)
    trained = Scene(few, 1)
    measured = (accuracy.scaling, accuracy.embeddings, accuracy.ranks, accuracy.windows)
    scaled, replaced, ranked, windows = (measure(trained) for measure in measured)
    assert windows["layers"] == [1, 3]
    assert windows["is_whole"] == [False, False]
    for method in BOTH:
        update = trained.update(method)
        norm, layers = update_norm(update), accuracy.layer_norms(update, WORLD["layers"])
        assert 0 < math.hypot(*layers["mlp"], *layers["attention"]) <= norm
        assert scaled[method]["norm"] == [scale * norm for scale in accuracy.SCALES]
        whole = scaled[method]["accuracy"][-1]
        assert whole == replaced[method]["full"] == ranked[method]["full"]
        assert 0 < ranked[method]["tail_norm"] < norm
        assert 0 < ranked[method]["tail_share"] < 1
        modules = matrices(module_tensors(update.shapes))
        table = geometry.table_1(update, modules)
        assert 0 < table["top_1_ratio"] < table["top_5_ratio"] < 1
    assert replaced["base"] == ranked["base"]
    assert ranked["matched"]["step"] in trained.study.saved_steps("grpo", 1)


def test_a_checkpoint_of_an_interruption_is_none_of_the_study(tmp_path: Path) -> None:
    study = Study(out=tmp_path, save_every=4)
    for step in (4, 7, 8, 11):
        write_checkpoint(study.checkpoint("grpo", 0, step), lambda new: new.mkdir(exist_ok=True))
    assert study.saved_steps("grpo", 0) == [4, 8, 11]


def test_states_and_gradients_are_measured_at_the_base(trained: Scene) -> None:
    shifted = geometry.shift(trained)
    for method in BOTH:
        assert 0.5 < shifted[method]["state_cosine"] < 1
        assert 0.5 < shifted[method]["embedding_cosine"] <= 1
    found = geometry.estimators(trained)
    assert found.keys() == {"opd", "sampled_opd", "rl"}
    for row in found.values():
        assert row["trace"] >= 0
    # The sampled token's gradients have the expectation of the whole vocabulary's, and spread more.
    assert found["sampled_opd"]["trace"] > found["opd"]["trace"] > 0


def one_by_one(function: Callable[[Any], str], units: Iterable[Any], workers: int) -> None:
    """In this process: that of each unit takes longer to start than the unit itself."""
    for unit in units:
        function(unit)


@pytest.mark.slow
def test_everything_is_trained_measured_and_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFOPD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reproduce, "_in_parallel", one_by_one)
    study, page = study_in(tmp_path), tmp_path / "docs" / "reproduction.md"
    reproduce.reproduce(study, page)
    written = {
        path: path.stat().st_mtime_ns for path in study.out.rglob("*.json*") if path.is_file()
    }
    assert all(study.measurement(n, s).is_file() for s in study.seeds for n in measures(study, s))
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
    reproduce.reproduce(study, page)
    assert page.read_text("utf-8") == text
    again = {path: path.stat().st_mtime_ns for path in written}
    trained = [p for p in written if "measurements" in p.parts or p.name == "metrics.jsonl"]
    changed = {path for path in trained if again[path] != written[path]}
    assert changed == {study.measurement("scaling", 1)}


@pytest.mark.slow
def test_units_run_in_processes_of_one_thread_until_one_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with pytest.raises(TypeError, match="str expected, not int"):
        reproduce._in_parallel(os.getenv, ["OMP_NUM_THREADS", 3, "HOME"], workers=1)
    assert capsys.readouterr().out == "[1/3] 1\n"


def test_a_study_checks_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distinct"):
        Study(out=tmp_path, seeds=(0, 0))
    with pytest.raises(ConfigError, match=r"steps must be at least two checkpoints"):
        Study(out=tmp_path, steps=4, save_every=4)
    with pytest.raises(ConfigError, match="rl_steps must be at least two checkpoints"):
        Study(out=tmp_path, rl_steps=4, save_every=4)
    with pytest.raises(ConfigError, match="bases"):
        Study(out=tmp_path, bases=())


def saved(study: Study, method: str, steps: Iterable[int]) -> None:
    for step in steps:
        study.checkpoint(method, 0, step).mkdir(parents=True)


@pytest.mark.parametrize(
    ("steps", "moments"),
    [
        (range(4, 41, 4), [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]),
        ([*range(4, 117, 4), 118], [12, 24, 36, 48, 60, 72, 84, 96, 108, 118]),
        ([4, 8, 11], [4, 4, 4, 4, 4, 8, 8, 8, 11, 11]),  # too few: some twice
    ],
)
def test_runs_of_any_length_are_compared_at_equal_parts(
    tmp_path: Path, steps: Iterable[int], moments: list[int]
) -> None:
    study = Study(out=tmp_path)
    saved(study, "grpo", steps)
    found = study.moment_steps("grpo", 0)
    assert len(found) == 10
    assert found[-1] == moments[-1]
    assert found == pytest.approx(moments, abs=4)


def test_every_distillation_learns_from_its_own_teacher(tmp_path: Path) -> None:
    study = Study(out=tmp_path)
    assert study.methods(0) == ("grpo", "dapo", "ppo", "opd", "opd_dapo", "opd_ppo")
    assert study.methods(4) == ("grpo", "opd")
    for method, source in TEACHER_OF.items():
        with pytest.raises(EffopdError, match=f"{source}.* has no checkpoint to distil"):
            run_settings(study, method, 0)
        saved(study, source, [4, 8, 11])
        config = run_settings(study, method, 0)
        assert config.method == "opd"
        assert config.teacher is not None
        assert config.teacher.path == str(study.checkpoint(source, 0, 11))


def test_reinforcement_learning_has_the_shape_and_the_end_of_the_papers(tmp_path: Path) -> None:
    for method in ("grpo", "dapo", "ppo"):
        train = run_settings(Study(out=tmp_path), method, 1).train
        assert (train.prompts_per_step, train.responses_per_prompt) == (8, 16)
        assert (train.stop.reward_patience, train.stop.reward_window) == (5, 5)
        assert not train.stop.reads_evaluations
    patient = run_settings(Study(out=tmp_path, patience=20), "grpo", 1).train
    assert patient.stop.reward_patience == 20


def test_seeds_start_from_different_bases(tmp_path: Path) -> None:
    study = Study(out=tmp_path)
    assert len(study.seeds) == 5
    assert [study.base_of(seed) for seed in study.seeds] == [0, 1, 0, 1, 0]
    assert study.world(0) != study.world(1)
    assert run_settings(study, "grpo", 1).task == study.world(1)
    wide = study.of_size(192)
    assert (wide.world(0).hidden, wide.out) == (192, tmp_path / "hidden-192")
    assert wide.methods(0) == ("grpo", "opd")


def test_the_comparison_has_the_seeds_of_the_study(tmp_path: Path) -> None:
    few, all_seeds = Study(out=tmp_path, seeds=(0, 1)).cells(), Study(out=tmp_path).cells()
    assert {cell.seed for cell in few} == {0, 1}
    assert few == [cell for cell in all_seeds if cell.seed < 2]


def test_the_plan_fits_into_an_hour(tmp_path: Path) -> None:
    """By costs of a step that were measured; every run as long as it may be."""
    assert minutes(quick_study(tmp_path)) < 15 < minutes(Study(out=tmp_path)) <= 60
    assert minutes(Study(out=tmp_path), workers=1) == 2 * minutes(Study(out=tmp_path))
