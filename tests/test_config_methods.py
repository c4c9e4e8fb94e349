"""Settings of the methods: what each stands for, and contradictions of what they need."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from effopd.config.reading import to_toml
from effopd.errors import ConfigError
from effopd.methods import ExOPD, FullVocabularyKL, PolicyGradient
from effopd.methods.registry import METHODS as KNOWN
from effopd.models.loading import ModelSettings
from effopd.search.settings import Search
from effopd.training.config import Config, load_config, make_config
from effopd.training.settings import Horizon, StopRule, TrainSettings
from effopd.training.teachers import SelfTeacher

JSONL: dict[str, Any] = {
    "task": {"type": "dataset", "train": {"path": "train.jsonl"}},
    "student": {"path": "base"},
    "teacher": {"path": "teacher"},
}


def round_trip(config: Config, directory: Path) -> Config:
    path = directory / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return load_config(path)


# Methods ------------------------------------------------------------------------------------------

METHODS = [*KNOWN]
SCALED = FullVocabularyKL(reward_scale=1.25)
EIGHT = TrainSettings(prompts_per_step=32, responses_per_prompt=8)
REWARDED: dict[str, PolicyGradient] = {
    "grpo": PolicyGradient.grpo(),
    "dapo": replace(PolicyGradient.dapo(), overlong_buffer=6),
    "ppo": PolicyGradient.ppo(),
    "dr_grpo": PolicyGradient.dr_grpo(),
}


SECTIONS: list[dict[str, Any]] = [
    {},
    {"train": {"steps": 3}, "optimizer": {"lr": 2e-5}, "search": {"guard": "none"}},
    {"sampling": {"max_new_tokens": 100}, "student": {"path": "s"}, "teachers": {}},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["default", "paper", "release"])
@pytest.mark.parametrize("sections", SECTIONS, ids=["alone", "search", "sampling"])
def test_a_python_object_and_the_same_toml_are_the_same_run(
    method: Any, preset: str, sections: dict[str, Any], tmp_path: Path
) -> None:
    config = Config.of(method, preset=preset, **sections)
    assert (config.method, config.preset) == (method, preset)
    assert config.name == (preset if (method == "effopd") & (preset != "default") else method)
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({"method": method, "preset": preset} | sections))
    assert load_config(path) == config == Config(method=method, preset=preset, **sections)
    again = round_trip(config, tmp_path)
    assert again == config
    assert to_toml(again) == to_toml(config)
    whole = {name: getattr(config, name) for name in Config.model_fields}
    assert Config(**whole) == config  # settings objects are taken whole


def test_a_settings_object_is_taken_whole_and_a_mapping_in_part() -> None:
    whole = Config.of("effopd", train=TrainSettings(steps=3))
    part = Config.of("effopd", train={"steps": 3})
    assert (whole.train.epochs, part.train.epochs) == (1, 4)
    assert Config.of("opd", student=ModelSettings(path="s")).student == ModelSettings(path="s")


def test_python_objects_are_checked_like_toml() -> None:
    with pytest.raises(ConfigError, match=r"^unknown setting optimizr; did you mean 'optimizer'"):
        Config.of("opd", optimizr={"lr": 1.0})
    with pytest.raises(ConfigError, match=r"^train.steps must be a valid integer, got '3'"):
        Config(train={"steps": "3"})


def test_exopd_goes_past_the_teacher() -> None:
    config = make_config({"method": "exopd"})
    assert (config.objective, config.train) == (SCALED, TrainSettings())
    assert make_config({"method": "exopd", "preset": "paper"}).objective == ExOPD()
    assert not make_config({"method": "exopd"}).searches


@pytest.mark.parametrize("method", REWARDED)
def test_methods_that_learn_from_rewards_are_the_published_settings(method: str) -> None:
    config = make_config({"method": method})
    assert (config.objective, config.train) == (REWARDED[method], EIGHT)
    assert not config.searches
    assert not config.needs_teacher
    mixed = make_config({"method": method, "objective": {"distillation": 0.5}})
    assert mixed.objective == replace(REWARDED[method], distillation=0.5)
    assert mixed.needs_teacher


@pytest.mark.parametrize(("longest", "buffer"), [(20_480, 4096), (16, 3), (4, 0)])
def test_the_buffer_of_dapo_is_a_fifth_of_the_length_cap(longest: int, buffer: int) -> None:
    sampling = {"max_new_tokens": longest}
    config = make_config({"method": "dapo", "sampling": sampling})
    assert isinstance(config.objective, PolicyGradient)
    assert config.objective.overlong_buffer == buffer
    assert config.sampling == replace(Config().sampling, max_new_tokens=longest)
    assert config.objective == replace(PolicyGradient.dapo(), overlong_buffer=buffer)
    own = {"method": "dapo", "sampling": sampling, "objective": {"overlong_buffer": 1}}
    assert make_config(own).objective == replace(config.objective, overlong_buffer=1)


def test_settings_of_the_loop_are_sections(tmp_path: Path) -> None:
    raw = {
        "train": {"horizon": {"tokens": 4, "growth": 0.5}, "stop": {"patience": 5, "target": 0.9}},
        "self_teacher": {"decay": 0.9},
    }
    config = make_config(raw, ["train.stop.patience=3"])
    assert config.train.horizon == Horizon(tokens=4, growth=0.5)
    assert config.train.stop == StopRule(patience=3, target=0.9)
    assert config.self_teacher == SelfTeacher(decay=0.9)
    assert make_config({}).self_teacher is None
    assert round_trip(config, tmp_path) == config


def test_teachers_have_names_of_their_own(tmp_path: Path) -> None:
    raw = JSONL | {"teachers": {"math": {"path": "m"}, "two words": {"path": "c"}}}
    config = make_config(raw, ["teachers.code.path=x"])
    assert config.teachers == {
        "math": ModelSettings(path="m"),
        "two words": ModelSettings(path="c"),
        "code": ModelSettings(path="x"),
    }
    assert round_trip(config, tmp_path) == config
    for named in ("teachers", "self_teacher"):
        own = {"teachers": {"math": {"path": "m"}}, "self_teacher": {}}[named]
        without = {key: value for key, value in JSONL.items() if key != "teacher"}
        assert make_config(without | {named: own}).teacher is None


def test_the_published_and_the_default_search_have_names() -> None:
    for preset, search in (
        ("default", Search.effopd()),
        ("paper", Search.paper()),
        ("release", Search.release()),
    ):
        assert make_config({"preset": preset}).search == search
    assert len({Search.effopd(), Search.paper(), Search.release(), Search()}) == 4
