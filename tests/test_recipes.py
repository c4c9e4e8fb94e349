"""Every shipped recipe parses, survives its resolved copy, and holds the numbers it promises."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from effopd.comparison.plan import load_plan
from effopd.config.reading import to_toml
from effopd.data.dataset import DatasetTask
from effopd.data.mapping import TEMPLATES
from effopd.doctor import check_file
from effopd.evaluation.validators import AccuracyValidation, TeacherKLValidation
from effopd.methods import SampledTokenOPD
from effopd.models.gpus import gpu_named
from effopd.search.extrapolator import Search
from effopd.search.schedule import PowersOfTwo
from effopd.training.config import Config, load_config, make_config

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
PLANS = sorted(FILES[0].parent.rglob("compare-*.toml"))
RECIPES = [path for path in FILES if path not in PLANS]
QWEN = next(path for path in RECIPES if path.stem == "qwen3-4b-deepmath-effopd")


def resolved(config: Config, directory: Path) -> Config:
    """What comes back from the `config.toml` of a run."""
    path = directory / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return load_config(path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", [None, "default", "paper", "release"])
def test_recipe_round_trips(recipe: Path, preset: str | None, tmp_path: Path) -> None:
    config = load_config(recipe, [f"preset={preset}"] if preset else [])
    again = resolved(config, tmp_path)
    assert again == config
    assert to_toml(again) == to_toml(config)


SHIPPED = sorted((Path(__file__).parents[1] / "recipes").rglob("*.toml"))
RUNNING = [path for path in SHIPPED if not path.stem.startswith("base-")]
HEADER = re.compile(
    r"# Runs on: (?:the CPU[.;]|(?P<card>[A-Z0-9]+ \d+GB) with (?P<host>\d+(?:\.\d)?) GB of host "
    r"memory; at most (?P<hours>\d+\.\d) hours a step\.)"
)


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: path.stem)
def test_a_recipe_passes_the_doctor_on_the_machine_it_names(path: Path) -> None:
    header = HEADER.match(path.read_text(encoding="utf-8"))
    assert header is not None, f"the first line of {path} does not name what it runs on"
    card = gpu_named(header["card"]) if header["card"] else None
    findings = check_file(path, [], offline=True, gpu=card).findings
    assert [each for each in findings if each.level == "problem"] == []
    assert not [each for each in findings if each.remedy.startswith("set ")]
    if card is None:
        assert [each.text for each in findings if each.check == "device"] == [
            "cpu (device = 'cpu')"
        ]
        return
    said = {each.check: each.text for each in findings}
    assert f"at most {header['hours']} hours a step" in said["time"]
    assert f", {header['host']} GB on the host" in said["writing"]


PAPER = [path for path in RUNNING if path.parent.stem == "paper" and path not in PLANS]
OTHERS = [
    (path, change)
    for path in PAPER
    for change in ("method=opd", "method=exopd", "method=alphaopd", "preset=default")
    if not path.stem.startswith("teacher-")
] + [(path, "method=dapo") for path in PAPER if path.stem == "teacher-8b-base"]


@pytest.mark.parametrize(
    ("path", "change"), OTHERS, ids=[f"{path.stem}-{change}" for path, change in OTHERS]
)
def test_its_other_methods_fit_there_too(path: Path, change: str) -> None:
    header = HEADER.match(path.read_text(encoding="utf-8"))
    assert header is not None
    findings = check_file(path, [change], offline=True, gpu=gpu_named(header["card"])).findings
    assert [each for each in findings if each.level == "problem"] == []
    assert not [each for each in findings if each.remedy.startswith("set ")]


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_run_of_a_plan_resolves(path: Path, quick: bool, tmp_path: Path) -> None:
    cells = load_plan(path, quick=quick).cells()
    assert len({cell.name for cell in cells}) == len(cells) > 0
    for cell in cells:
        config = make_config(cell.settings)
        given = (config.optimizer.lr, config.seed, config.name)
        assert given == (cell.lr, cell.seed, cell.method)


def test_the_tiny_plan_compares_with_plain_distillation() -> None:
    plan = load_plan(QWEN.with_name("compare-tiny.toml"))
    assert {"opd", "effopd"} <= {*plan.methods}
    assert plan.methods["opd"].worlds == tuple(plan.worlds)


def test_the_tiny_recipes_differ_in_method_and_length_alone() -> None:
    opd, effopd = (load_config(QWEN.with_name(f"tiny-{name}.toml")) for name in ("opd", "effopd"))
    assert (opd.method, effopd.method) == ("opd", "effopd")
    same = {"method": "opd", "train": opd.train}
    assert effopd.model_copy(update=same) == opd


# The numbers of arXiv 2605.11739, appendix D ------------------------------------------------------


def test_qwen_recipe_holds_the_numbers_of_the_paper() -> None:
    config = load_config(QWEN)
    assert config.seed == 42
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (1e-6, 0)
    assert config.optimizer.decay == "none"
    assert config.train.prompts_per_step == 1024
    assert config.train.steps == round(3 * 103_000 / 1024)
    assert config.train.micro_batch_tokens == 22_000
    assert (config.prompt.max_tokens, config.sampling.max_new_tokens) == (2048, 16_384)
    assert (config.sampling.temperature, config.sampling.top_p, config.sampling.top_k) == (1, 1, 0)
    assert (config.prompt.chat, config.prompt.enable_thinking) == (True, False)
    assert config.objective == SampledTokenOPD(importance_cap=5.0)
    assert config.train.epochs == 1
    assert (config.evaluation.every, config.checkpoint.every) == (2, 2)


def test_qwen_recipe_uses_our_search_and_the_papers_on_request() -> None:
    config = load_config(QWEN)
    assert config.validation == TeacherKLValidation(prompts=50)
    ours = replace(make_config({}).search, schedule=PowersOfTwo(), learning_rate="keep")
    assert config.search == ours
    paper = load_config(QWEN, ["preset=paper", 'validation={type="accuracy"}'])
    assert paper.search == replace(Search.paper(), learning_rate="keep")
    assert paper.validation == AccuracyValidation(prompts=50, resample=False)
    assert paper.objective == config.objective


def test_qwen_recipe_asks_for_a_boxed_answer() -> None:
    task = load_config(QWEN).task
    assert isinstance(task, DatasetTask)
    spec = task.train
    assert (spec.prompt_field, spec.answer_field, task.verifier) == ("question", "answer", "boxed")
    assert TEMPLATES[spec.template] == (
        "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
    )


def test_qwen_recipe_keeps_weights_that_can_learn() -> None:
    """An update of 1e-6 vanishes in a bfloat16 weight of usual size, not in its float32 master."""
    config = load_config(QWEN)
    assert config.student is not None
    assert (config.student.dtype, config.memory.master_weights) == ("bfloat16", True)
    weight = torch.tensor(0.02, dtype=torch.float32)
    assert weight - config.optimizer.lr != weight
    assert weight.bfloat16() - config.optimizer.lr == weight.bfloat16()
