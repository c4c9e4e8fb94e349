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
from effopd.training.config import Config, load_config, make_config
from effopd.training.settings import Horizon, StopRule, TrainSettings
from effopd.training.teachers import SelfTeacher

JSONL: dict[str, Any] = {
    "task": {"type": "dataset", "train": {"path": "train.jsonl"}},
    "student": {"path": "base"},
    "teacher": {"path": "teacher"},
}
TAUGHT_BY_NOBODY = {key: value for key, value in JSONL.items() if key != "teacher"}
ADAPTED = {"student": {"path": "s", "lora": {}}}
UNCHECKED = JSONL | {"task": JSONL["task"] | {"verifier": "none"}}


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


# Messages -----------------------------------------------------------------------------------------

MESSAGES: list[tuple[dict[str, Any], str]] = [
    # Methods
    (
        {"method": "grpoo"},
        f"method must be {', '.join(map(repr, METHODS[:-1]))} or {METHODS[-1]!r}, got 'grpoo'",
    ),
    (
        {"method": ["dapo"]},
        f"method must be {', '.join(map(repr, METHODS[:-1]))} or {METHODS[-1]!r}, got ['dapo']",
    ),
    (
        {"method": "dapo", "sampling": {"max_new_tokens": "x"}},
        "sampling.max_new_tokens must be a valid integer, got 'x'",
    ),
    ({"method": "dapo", "sampling": 5}, "sampling must be a section, got 5"),
    # Sections with names
    (
        {"teachers": {"math": {"pth": "x"}}},
        "unknown setting teachers.math.pth; did you mean 'path'?",
    ),
    ({"teachers": {"math": {}}}, "teachers.math.path is missing"),
    ({"teachers": {"math": 5}}, "teachers.math must be a section, got 5"),
    # The loop
    (
        {"train": {"horizon": {"tokens": -1}}},
        "train.horizon needs tokens >= 0 and growth >= 0, got -1 and 0.0",
    ),
    # Contradictions
    (
        {"self_teacher": {}, "teachers": {"math": {"path": "x"}}},
        "self_teacher is the only teacher: remove [teachers]",
    ),
    ({"task": JSONL["task"], "teacher": {"path": "t"}}, "task.type = 'dataset' needs student.path"),
    (
        TAUGHT_BY_NOBODY | {"method": "grpo", "objective": {"distillation": 0.1}},
        "task.type = 'dataset' needs teacher.path",
    ),
    (
        TAUGHT_BY_NOBODY | {"method": "ppo", "train": {"stop": {"target": 0.9}}},
        "task.type = 'dataset' needs teacher.path",
    ),
    (
        UNCHECKED | {"method": "ppo"},
        "objective.type = 'policy_gradient' learns from rewards: set task.verifier",
    ),
    (
        UNCHECKED | {"train": {"stop": {"patience": 3}}},
        "train.stop looks at accuracies: set task.verifier",
    ),
    (
        {"method": "grpo", "train": {"responses_per_prompt": 1}},
        "objective.advantage = 'group' compares answers to one prompt: set "
        "train.responses_per_prompt to at least 2, got 1",
    ),
    (
        {"method": "ppo", "train": {"horizon": {"tokens": 4}}},
        "train.horizon cuts answers before they can be rewarded: use it with distillation",
    ),
    (
        {"method": "dapo", "objective": {"overlong_buffer": 33}},
        "objective.overlong_buffer = 33 is more than sampling.max_new_tokens = 32",
    ),
    (
        {"method": "grpo", "objective": {"critic_warmup_steps": 2}},
        "objective.critic_warmup_steps = 2, but advantage = 'group' has no critic: set it to "
        "'gae', or the steps to 0",
    ),
    (
        {"method": "ppo", "objective": {"dynamic_sampling": True}},
        "objective.dynamic_sampling with advantage = 'gae'; only group advantages vanish where "
        "rewards are equal. Turn one of them off.",
    ),
    (
        {"train": {"horizon": {"growth": 2.0}}},
        "train.horizon.growth = 2.0 needs train.horizon.tokens, the length to grow from",
    ),
    (
        {"train": {"updates_per_step": 129}},
        "train.updates_per_step = 129 is more than a step's 128 answers",
    ),
    (
        {"train": {"stop": {"patience": 2}}, "evaluation": {"problems": 0}},
        "train.stop looks at evaluations: set evaluation.problems above 0",
    ),
    # Adapters and memory
    (
        ADAPTED | {"teacher": {"path": "t", "lora": {}}},
        "lora is for the student: merge the adapter of another model into it",
    ),
    (
        ADAPTED | {"self_teacher": {}},
        "self_teacher averages weights, student.lora trains factors: keep one",
    ),
    (
        ADAPTED | {"monitor": {"every": 1}},
        "monitor watches weights, student.lora trains factors: keep one",
    ),
    (
        ADAPTED | {"memory": {"master_weights": True}},
        "memory.master_weights is for weights: adapters are float32 anyway",
    ),
    (
        ADAPTED | {"search": {"direction": {"type": "alpha_pls"}}},
        "search.direction = 'alpha_pls' fits weights, student.lora trains factors: use "
        "'since_accepted', 'since_raw' or 'since_base'",
    ),
    ({"student": {"path": "s", "lora": {"r": 0}}}, "student.lora.r must be at least 1, got 0"),
    (
        {"student": {"path": "s", "lora": {"alfa": 4}}},
        "unknown setting student.lora.alfa; did you mean 'alpha'?",
    ),
    (
        {"memory": {"teacher_offload": True}, "self_teacher": {}},
        "memory.teacher_offload is for teachers that stay as they are",
    ),
    (
        {"memory": {"master_weights": True}},
        "memory.master_weights keeps float32 copies of a student in low precision, this one is in "
        "float32: set student.dtype = 'bfloat16', or memory.offload_optimizer too",
    ),
    (
        {"student": {"path": "s", "dtype": "float16"}},
        "student.dtype = 'float16' cannot be trained itself, its weights are NaN after one update: "
        "set memory.master_weights = true, which trains float32 copies, or student.dtype = "
        "'bfloat16'",
    ),
    (
        {
            "method": "ppo",
            "student": {"path": "s", "dtype": "float16"},
            "memory": {"master_weights": True},
        },
        "student.dtype = 'float16' cannot be trained itself, its weights are NaN after one update, "
        "and the critic, a copy of it, has no float32 copies: set student.dtype = 'bfloat16' or "
        "'float32'",
    ),
    (
        {"memory": {"offload_optimizer": True}},
        "memory.offload_optimizer keeps the masters on the CPU: set memory.master_weights",
    ),
    (
        {"train": {"stop": {"target": 0.9}}, "evaluation": {"teacher": False}},
        "train.stop.target is a share of the teacher's accuracy: set evaluation.teacher",
    ),
]


@pytest.mark.parametrize(("raw", "message"), MESSAGES, ids=[str(raw)[:60] for raw, _ in MESSAGES])
def test_message(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(raw)
    assert str(error.value) == message
