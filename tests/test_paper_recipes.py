"""The paper's experiments: every recipe resolves, and passes a smoke test by every method."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from effopd import figures
from effopd.cli.evaluate import checkpoints_of
from effopd.cli.run import run_recipe
from effopd.comparison.plan import load_plan
from effopd.doctor.sizes import model_shape
from effopd.doctor.smoke import smoke_run
from effopd.errors import ConfigError
from effopd.evaluation.benchmarks.run import evaluate
from effopd.methods import ExOPD, PolicyGradient, SampledTokenOPD
from effopd.records import read_jsonl
from effopd.training.config import Config, load_config, make_config
from effopd.training.run import train

PAPER = Path(__file__).parents[1] / "recipes" / "paper"
PLAN = PAPER / "compare-math.toml"
RECIPES = sorted(
    path for path in PAPER.glob("*.toml") if not path.stem.startswith(("base-", "compare-"))
)
DISTILLING = [path for path in RECIPES if not path.stem.startswith("teacher-")]
METHODS = ("opd", "effopd", "exopd", "alphaopd")
ONE_OF_EACH = {
    ("math-4b", "effopd"), ("math-1.5b", "exopd"), ("code-1.5b", "opd"), ("code-4b", "alphaopd"),
    ("teacher-8b-base", "ppo"), ("teacher-8b-base", "dapo"), ("teacher-4b", "grpo"),
}  # fmt: skip
RUNS = [(path, method) for path in DISTILLING for method in METHODS]
RUNS += [(path, "") for path in RECIPES if path not in DISTILLING]
RUNS += [(PAPER / "teacher-8b-base.toml", "dapo")]


def method_of(path: Path, method: str) -> str:
    return method or load_config(path).method


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.parametrize(
    ("path", "method"),
    [
        pytest.param(
            path,
            method,
            marks=[] if (path.stem, method_of(path, method)) in ONE_OF_EACH else pytest.mark.slow,
            id=f"{path.stem}-{method_of(path, method)}",
        )
        for path, method in RUNS
    ],
)
def test_two_steps_of_a_smoke_test(
    path: Path, method: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFOPD_CACHE", str(cache))
    overrides = ["smoke=true", *([f"method={method}"] if method else [])]
    assert run_recipe(path, overrides, tmp_path / "run")
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    resolved = load_config(tmp_path / "run" / "config.toml")
    assert resolved.method == method_of(path, method)
    assert resolved.student is not None
    model = json.loads((Path(resolved.student.path) / "config.json").read_text())
    shapes = json.loads((PAPER / "shapes.json").read_text())
    student = load_config(path).student
    assert student is not None
    assert model["model_type"] == shapes[student.path]["model_type"]


def test_sizes_are_those_that_names_promise() -> None:
    billions = {"1.5b": 1.78, "4b": 4.02, "7b": 7.62, "8b": 8.19, "14b": 14.77}
    shapes = json.loads((PAPER / "shapes.json").read_text())
    for path in RECIPES:
        config = load_config(path)
        assert config.student is not None
        shape = model_shape(shapes[config.student.path], path)
        size = path.stem.split("-")[1]
        assert shape.parameters / 1e9 == pytest.approx(billions[size], abs=0.01)
        if config.teacher is not None:
            teacher = model_shape(shapes[config.teacher.path], path)
            larger = path.stem.partition("-teacher-")[2]
            assert teacher.parameters / 1e9 == pytest.approx(billions[larger or size], abs=0.01)
            assert larger or teacher == shape


@pytest.mark.slow
def test_figure_6_from_the_plan_to_the_picture_on_stand_ins(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFOPD_CACHE", str(cache))
    sums = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(2)]
    seeds: dict[str, list[Path]] = {}
    for cell in load_plan(PLAN).cells():
        if cell.world not in {"1.5b", "8b-teacher-14b"} or cell.method not in {"opd", "effopd"}:
            continue
        run = tmp_path / cell.name
        train(smoke_run(make_config({**cell.settings, "smoke": True}), PLAN), run)
        for path in checkpoints_of(run, 1):
            evaluate(
                str(path), "sums", out=run / "benchmarks" / path.name, data={"sums": sums},
                settings={"sampling": {"max_new_tokens": 4}},
            )  # fmt: skip
        seeds[f"{cell.world} {cell.method}"] = [run]
    figure = figures.accuracy(seeds, benchmark="sums")
    drawn = {trace["name"]: trace for trace in figure["data"] if "name" in trace}
    assert drawn.keys() == seeds.keys()
    for name, (run,) in seeds.items():
        summaries = [
            json.loads((run / f"benchmarks/step-{step:05}/sums/summary.json").read_text())
            for step in (1, 2)
        ]
        assert drawn[name]["x"] == [1, 2]
        assert drawn[name]["y"] == [summary["avg"]["mean"] for summary in summaries]
    figures.save_png(figure, tmp_path / "figure-6.png")
    assert (tmp_path / "figure-6.png").read_bytes().startswith(b"\x89PNG")


def test_figure_6_has_every_size_by_every_method() -> None:
    cells = load_plan(PLAN).cells()
    recipes = {path.stem.removeprefix("math-"): path for path in DISTILLING if "math-" in path.stem}
    assert {cell.world for cell in cells} == recipes.keys()
    assert len(cells) == len(recipes) * len(METHODS)
    for cell in cells:
        config = make_config(cell.settings)
        recipe = load_config(recipes[cell.world], [f"method={cell.method}"])
        own = {"label": cell.method, "checkpoint": config.checkpoint}
        assert config == recipe.model_copy(update=own)
        # Every checkpoint of a run stays.
        assert config.checkpoint.every * config.checkpoint.keep >= config.train.steps


def test_analyses_of_public_models_are_commands(tmp_path: Path) -> None:
    for program in ("effopd", "hf"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (tmp_path / program).chmod(0o755)
    done = subprocess.run(
        ["bash", str(PAPER / "analyze-1.5b.sh"), "--workers", "1"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    first, *lines = done.stdout.splitlines()
    branch = first.split()[-1]
    assert "--revision brorl" in first
    assert [line.split()[3] for line in lines] == [
        "hbx/JustRL-DeepSeek-1.5B", branch, "nvidia/Nemotron-Research-Reasoning-Qwen-1.5B",
    ]  # fmt: skip
    for line, name in zip(lines, ("justrl", "brorl", "prorl"), strict=True):
        assert line.split()[:3] == [
            "effopd",
            "analyze",
            "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        ]
        assert line.endswith(f"--what norms,spectra --out runs/analysis-{name} --workers 1")


def config_of(name: str, *overrides: str) -> Config:
    return load_config(PAPER / f"{name}.toml", overrides)


def test_distillation_has_the_numbers_of_appendix_d() -> None:
    for path in DISTILLING:
        config = load_config(path)
        assert (config.optimizer.lr, config.optimizer.warmup_steps) == (1e-6, 0)
        assert (config.optimizer.betas, config.optimizer.weight_decay) == ((0.9, 0.999), 0.01)
        assert (config.prompt.max_tokens, config.sampling.max_new_tokens) == (2048, 16_384)
        assert (config.train.prompts_per_step, config.train.responses_per_prompt) == (1024, 1)
        assert config.objective == SampledTokenOPD()
    assert isinstance(config_of("math-4b", "method=exopd").objective, ExOPD)


def test_teachers_have_the_numbers_of_appendix_d() -> None:
    for name, method, kl, high in (
        ("4b", "grpo", 1e-3, 0.2),
        ("8b-base", "dapo", 0.0, 0.28),
        ("14b-base", "dapo", 0.0, 0.28),
    ):
        config = config_of(f"teacher-{name}", f"method={method}")
        assert isinstance(config.objective, PolicyGradient)
        assert (config.objective.kl_coefficient, config.objective.clip_high) == (kl, high)
        assert config.train.prompts_per_step * config.train.responses_per_prompt == 512
        assert config.sampling.max_new_tokens == 20_480
        assert (config.train.stop.reward_patience, config.train.stop.patience) == (5, 0)
        assert (config.optimizer.betas, config.optimizer.weight_decay) == ((0.9, 0.999), 0.01)


def test_the_teacher_of_14b_learns_from_both_data_sets() -> None:
    names = {
        name: [source.name for source in config_of(f"teacher-{name}").task.sources]
        for name in ("8b-base", "14b-base")
    }
    assert names == {"8b-base": ["deepmath"], "14b-base": ["deepmath", "math_12k"]}


def test_a_recipe_extends_one_in_its_directory(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("seed = 7\n[optimizer]\nlr = 1e-3\nwarmup_steps = 2\n")
    path = tmp_path / "run.toml"
    path.write_text('extends = "base.toml"\n[optimizer]\nlr = 2e-3\n')
    config = load_config(path, ["seed=8"])
    assert (config.seed, config.optimizer.lr, config.optimizer.warmup_steps) == (8, 2e-3, 2)
    (tmp_path / "third.toml").write_text('extends = "run.toml"\n')
    with pytest.raises(ConfigError, match=r"run\.toml is extended .*: copy its settings"):
        load_config(tmp_path / "third.toml")


@pytest.mark.parametrize("name", ['"../base.toml"', '"/base.toml"', '"base"', "3", '""', '".."'])
def test_what_cannot_be_extended(name: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f"extends = {name}\n")
    with pytest.raises(ConfigError, match="extends must name a TOML file in the same directory"):
        load_config(tmp_path / "run.toml")
