"""An objective from one file outside the package: read from a recipe, and trained with."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.reference import learner_twin as twin
from tests.support.tiny import WORLD, metrics_of, write_models

import effopd
from effopd.config.reading import raw_of, to_toml
from effopd.data.problem import Problem
from effopd.errors import ConfigError
from effopd.methods import Objective, register
from effopd.methods.registry import METHODS, import_installed
from effopd.rewards.functions import as_verifier
from effopd.training.build import Given, build_parts
from effopd.training.config import load_config
from effopd.training.engines import started_from

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[Any]:
    """The file, imported; its registration is taken back for other tests."""
    choices, methods = [*Objective.choices], {**METHODS}
    yield import_module("tests.methods.reward_weighted")
    Objective.choices[:] = choices
    METHODS.clear()
    METHODS.update(methods)


def reward(problem: Problem, answer: str) -> float:
    """Differs between answers of an untrained student."""
    return len(answer.replace("+", "")) % 4 / 3


def config_of(models: Path, **objective: Any) -> effopd.Config:
    world = ("type", "hidden", "layers", "operations", "train_problems", "test_problems")
    return effopd.Config.of(
        "reward_weighted",
        student={"path": str(models / "student")},
        teacher={"path": str(models / "teacher")},
        task={name: getattr(WORLD, name) for name in world},
        sampling={"max_new_tokens": 4},
        objective=objective,
        train={"steps": 2, "prompts_per_step": 8, "micro_batch_tokens": 32},
        optimizer={"lr": 1e-2},
        evaluation={"problems": 0},
        checkpoint={"every": 1},
        device="cpu",
    )


def test_two_steps_have_the_loss_of_the_closed_form(tmp_path: Path, toy: Any) -> None:
    config = config_of(write_models(tmp_path), baseline=0.25)
    assert config.objective == toy.RewardWeighted(baseline=0.25)
    run = effopd.train(config, tmp_path / "run", reward=reward)
    assert (run.finished, run.info["method"]) == (True, "reward_weighted")
    given = Given(verifier=as_verifier(reward))
    for step, row in enumerate(metrics_of(tmp_path / "run"), start=1):
        at = tmp_path / "run" / "checkpoints" / f"step-{step - 1:05d}"
        before = config if step == 1 else started_from(config, at)
        parts = build_parts(before, print, given)
        batch = parts.collector().collect(step)
        total, tokens, model = 0.0, 0, parts.student.model.double()
        for answer, own in zip(batch.rollouts, batch.rewards, strict=True):
            with torch.no_grad():
                log_probs = twin.log_probs(model, answer.sample)
            total -= (own - 0.25) * float(sum(log_probs))
            tokens += len(answer.sample.completion_ids)
        assert len(set(batch.rewards)) > 1
        assert row["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert step == 2


def test_a_recipe_names_it_like_any_other(tmp_path: Path, toy: Any) -> None:
    config = config_of(tmp_path, baseline=0.5)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "config.toml") == config == effopd.Config(**raw_of(config))
    assert not config.searches
    assert not config.needs_teacher
    other = effopd.Config.of("opd", objective={"type": "reward_weighted"}).objective
    assert other == toy.RewardWeighted()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": 2.0}, r"objective.baseline must be in \[0, 1\], got 2.0"),
        ({"baseline": "x"}, "objective.baseline must be a valid number, got 'x'"),
        ({"base": 0.1}, "unknown setting objective.base; did you mean 'baseline'?"),
        ({"type": "reward"}, "objective.type must be one of .*, 'reward_weighted', got 'reward'"),
    ],
)
def test_its_settings_are_checked_like_any_other(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, **settings)


def test_what_it_needs_is_asked_for() -> None:
    task = {"type": "dataset", "train": {"path": "x"}, "verifier": "none"}
    with pytest.raises(ConfigError, match="'reward_weighted' learns from rewards: set task"):
        effopd.Config.of("reward_weighted", task=task, student={"path": "s"})


def test_it_may_be_registered_anew_as_in_a_notebook(toy: Any) -> None:
    before = [*Objective.choices]
    assert register(toy.RewardWeighted) is toy.RewardWeighted
    assert before == Objective.choices


@pytest.mark.parametrize("name", ["elsewhere", "broken"])
def test_an_installed_package_registers_its_objective(
    name: str, tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(toy.__file__).read_text("utf-8").replace("reward_weighted", "weighted_elsewhere")
    first = "import nowhere_at_all\n" if name == "broken" else ""
    (tmp_path / f"{name}.py").write_text(first + source)
    about = tmp_path / "some_objectives-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-objectives\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[effopd.objectives]\nweighted = {name}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if name == "broken":
        wanted = "objective 'weighted' of some-objectives cannot be imported: .*nowhere_at_all"
        with pytest.raises(ConfigError, match=wanted):
            import_installed()
    else:
        import_installed()
        import_installed()  # registered once, imported once
        found = effopd.Config.of("opd", objective={"type": "weighted_elsewhere"}).objective
        assert (type(found).__module__, found.type) == ("elsewhere", "weighted_elsewhere")


def test_the_documentation_shows_this_file(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "methods.md").read_text("utf-8")
    section = page.split("## Add an objective in one file", 1)[1]
    shown = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert shown[0].strip() == Path(toy.__file__).read_text("utf-8").strip()
    monkeypatch.setitem(sys.modules, "reward_weighted", toy)
    given: list[Any] = []
    monkeypatch.setattr("effopd.training.run.train", lambda *all_of: given.extend(all_of))
    exec(compile(shown[1], "docs/methods.md", "exec"), {})
    assert given[0].objective == toy.RewardWeighted(baseline=0.5)
    assert given[1] == "runs/reward-weighted"
