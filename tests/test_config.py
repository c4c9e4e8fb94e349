"""Settings: what a recipe says is what the run gets, and every mistake has a message."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.config.reading import to_toml
from effopd.data.dataset import DatasetSpec, DatasetTask
from effopd.data.world import TinyWorld
from effopd.errors import ConfigError
from effopd.evaluation.validators import AccuracyValidation
from effopd.methods import ExOPD, FullVocabularyKL, SampledTokenOPD
from effopd.models.loading import ModelSettings
from effopd.search.extrapolator import Search
from effopd.search.scales import GeometricScales, LadderScales
from effopd.search.schedule import AtSteps
from effopd.search.validation import AtLeast, LengthGuard
from effopd.training.config import Config, load_config, make_config
from effopd.workspace import Workspace

JSONL = {
    "task": {"type": "dataset", "train": {"path": "train.jsonl"}},
    "student": {"path": "base"},
    "teacher": {"path": "teacher"},
}


def refusal(raw: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        make_config(raw, overrides)
    return str(error.value)


def round_trip(config: Config, directory: Path) -> Config:
    path = directory / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return load_config(path)


# Defaults and presets -----------------------------------------------------------------------------


def test_nothing_given_is_the_default_preset() -> None:
    assert make_config({}) == Config() == make_config({"preset": "default"})


PUBLISHED = {"paper": Search.paper(), "release": Search.release()}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_are_the_published_settings(preset: str) -> None:
    config = make_config({"preset": preset})
    assert config.search == PUBLISHED[preset]
    assert config.search.guard is None
    assert config.validation == AccuracyValidation(prompts=50, resample=False)
    assert config.objective == SampledTokenOPD()
    assert config.train.epochs == 1
    changed = ("preset", "search", "validation", "objective", "train")
    searched = Config.of("effopd")
    assert config.method == "effopd"
    same = {name: getattr(searched, name) for name in changed}
    assert config.model_copy(update=same) == searched


def test_settings_win_over_their_preset() -> None:
    raw = {
        "preset": "paper",
        "search": {"scales": {"scales": [2, 4]}, "guard": {"longest": 3.0}},
        "validation": {"prompts": 7},
    }
    config = make_config(raw)
    assert config.search.scales == LadderScales(scales=(2.0, 4.0))
    assert config.search.guard == LengthGuard(longest=3.0)
    assert config.search.accept == AtLeast()
    assert config.validation == AccuracyValidation(prompts=7)


def test_a_guard_can_be_turned_off() -> None:
    assert Config().search.guard is not None
    assert make_config({"search": {"guard": "none"}}).search.guard is None


def test_another_type_replaces_the_section() -> None:
    config = make_config(
        {
            "search": {"scales": {"type": "ladder"}, "accept": {"type": "at_least"}},
            "objective": {"type": "exopd"},
            "validation": {"type": "accuracy"},
        }
    )
    assert config.search.scales == LadderScales()
    assert config.search.accept == AtLeast()
    assert config.objective == ExOPD()
    assert config.validation == AccuracyValidation()


def test_without_a_type_the_section_keeps_that_of_the_default() -> None:
    config = make_config({"task": {"modulus": 5}, "search": {"scales": {"ratio": 3.0}}})
    assert config.task == TinyWorld(modulus=5)
    assert config.search.scales == GeometricScales(ratio=3.0, floor=0.125)
    objective = Config().objective
    assert isinstance(objective, FullVocabularyKL)
    assert make_config({"objective": {"divergence": "forward"}}).objective == FullVocabularyKL(
        divergence="forward"
    )


def test_models_and_problems_of_ones_own() -> None:
    config = make_config(JSONL)
    assert config.task == DatasetTask(train=DatasetSpec(path="train.jsonl"))
    assert config.student == ModelSettings(path="base")
    assert config.teacher == ModelSettings(path="teacher")


def test_input_is_left_as_it_is() -> None:
    raw = {"search": {"guard": "none", "scales": {"type": "ladder"}}}
    make_config(raw, ["search.max_truncation=0.5", "seed=4"])
    assert raw == {"search": {"guard": "none", "scales": {"type": "ladder"}}}


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "slope"), ({"method": "effopd"}, "effopd"), ({"method": "opd"}, "opd"),
     ({"preset": "paper"}, "paper"), ({"preset": "paper", "method": "opd"}, "opd"),
     ({"label": "mine"}, "mine")],
    ids=str,
)  # fmt: skip
def test_names_in_reports(settings: dict[str, Any], name: str) -> None:
    assert make_config(settings).name == name


def test_the_slope_method_goes_over_sampled_tokens_once() -> None:
    assert Config.of("slope").train.epochs == 2
    assert Config.of("slope", objective={"type": "sampled_token"}).train.epochs == 1
    mine = Config.of("slope", objective={"type": "sampled_token"}, train={"epochs": 3})
    assert mine.train.epochs == 3


def test_the_slope_method_learns_from_no_rewards() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.slope follows a divergence"):
        Config.of("grpo", optimizer={"slope": {}})


# Overrides ----------------------------------------------------------------------------------------

OVERRIDES = [
    ("optimizer.lr=3e-4", lambda c: c.optimizer.lr == 3e-4),
    ("optimizer.lr=1", lambda c: c.optimizer.lr == 1.0),
    (" optimizer.lr = 2e-4", lambda c: c.optimizer.lr == 2e-4),
    ("optimizer.betas=[0.8, 0.9]", lambda c: c.optimizer.betas == (0.8, 0.9)),
    ("device=cuda:1", lambda c: c.device == "cuda:1"),
    ('label="7"', lambda c: c.label == "7"),
    ("label=a=b", lambda c: c.label == "a=b"),
    ("label=1979-05-27", lambda c: c.label == "1979-05-27"),
    ("smoke=true", lambda c: c.smoke is True),
    ("search.guard=none", lambda c: c.search.guard is None),
    (
        "search.schedule={type='at_steps', steps=[2,5]}",
        lambda c: c.search.schedule == AtSteps(steps=(2, 5)),
    ),
    ("sampling.stop=['a', 'b']", lambda c: c.sampling.stop == ("a", "b")),
    ("evaluation.first=[]", lambda c: c.evaluation.first == ()),
    ("preset=release", lambda c: c.search == Search.release()),
]


@pytest.mark.parametrize(("override", "holds"), OVERRIDES, ids=[text for text, _ in OVERRIDES])
def test_overrides(override: str, holds: Any) -> None:
    assert not holds(Config())
    assert holds(make_config({}, [override]))
    assert make_config({"label": "x"}, ["label="]).label == ""


def test_overrides_win_over_the_recipe_and_later_ones_over_earlier_ones() -> None:
    raw = {"seed": 1, "optimizer": {"lr": 1e-3, "warmup_steps": 5}}
    config = make_config(raw, ["optimizer.lr=2e-3", "seed=2", "seed=3"])
    assert (config.seed, config.optimizer.lr, config.optimizer.warmup_steps) == (3, 2e-3, 5)


def test_a_type_and_its_settings_can_be_overridden_one_by_one() -> None:
    overrides = ["search.scales.type=ladder", "search.scales.scales=[2.0, 9.0]"]
    assert make_config({}, overrides).search.scales == LadderScales(scales=(2.0, 9.0))


# Writing and reading back -------------------------------------------------------------------------

CONFIGS: list[dict[str, Any]] = [
    {},
    {"preset": "paper"},
    {"preset": "release", "search": {"guard": {}}},
    {
        "preset": "paper",
        "search": {"guard": "none", "schedule": {"type": "at_steps", "steps": [1]}},
    },
    {"search": {"guard": "none", "direction": {"type": "since_raw"}}},
    JSONL,
    JSONL | {"task": JSONL["task"] | {"verifier": "none"}},
    JSONL | {"reference": {"path": "r", "revision": "abc"}, "objective": {"type": "exopd"}},
    {"label": 'quo"te\n\\ \u2028 é', "sampling": {"stop": ["\n\n", '"""']}},
    {"optimizer": {"lr": 1e-6, "eps": 5e-324}, "teacher_device": "cuda:1"},
]


@pytest.mark.parametrize("raw", CONFIGS, ids=lambda raw: str(raw)[:60])
def test_resolved_settings_read_back_equal(raw: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(raw)
    again = round_trip(config, tmp_path)
    assert again == config
    assert to_toml(again) == to_toml(config)


@given(
    lr=st.floats(min_value=5e-324, max_value=1e308),
    seed=st.integers(-(2**63), 2**63 - 1),
    label=st.text(st.characters(exclude_categories=["Cs"])),
    ladder=st.lists(st.floats(1.001, 1e6), min_size=1, max_size=6, unique=True).map(sorted),
)
def test_any_values_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, lr: float, seed: int, label: str, ladder: list[float]
) -> None:
    raw = {"label": label, "seed": seed, "optimizer": {"lr": lr}}
    scales = {"search": {"scales": {"type": "ladder", "scales": ladder}}}
    config = make_config(raw | scales)
    assert (config.label, config.seed, config.optimizer.lr) == (label, seed, lr)
    assert round_trip(config, tmp_path_factory.mktemp("config")) == config


def test_other_settings_of_the_same_work_are_named_one_by_one(tmp_path: Path) -> None:
    old = make_config({"optimizer": {"lr": 1e-4}, "search": {"guard": "none"}})
    new = make_config({"optimizer": {"lr": 3e-4}, "seed": 5})
    with Workspace(tmp_path, "run") as workspace:
        workspace.settle("config.toml", tomllib.loads(to_toml(old)))
        workspace.settle("config.toml", tomllib.loads(to_toml(old)))
        with pytest.raises(ConfigError) as error:
            workspace.settle("config.toml", tomllib.loads(to_toml(new)))
    for change in (
        "optimizer.lr: 0.0001 -> 0.0003",
        "search.guard: none -> None",
        "search.guard.longest: None -> 2.0",
        "search.guard.shortest: None -> 0.5",
        "search.guard.truncated_rise: None -> 0.1",
        "seed: 0 -> 5",
    ):
        assert change in str(error.value)


# Messages -----------------------------------------------------------------------------------------

BLOCKS = (Path(__file__).parent / "refusals.txt").read_text("utf-8").split("\n\n")[1:]
"""Lines of a recipe, then the message behind "! "; or a heading."""
MESSAGES = [
    (
        "\n".join(line for line in block.splitlines() if not line.startswith("! ")),
        "\n".join(line[2:] for line in block.splitlines() if line.startswith("! ")),
    )
    for block in BLOCKS
    if not block.startswith("# ")
]


@pytest.mark.parametrize(("recipe", "message"), MESSAGES, ids=[line[:60] for line, _ in MESSAGES])
def test_message(recipe: str, message: str) -> None:
    """Exactly that, and no class of ours in it: pydantic's names of union members stay inside."""
    assert refusal(tomllib.loads(recipe)) == message
    for name in ("GeometricScales", "LadderScales", "EveryN", "TinyWorld", "LengthGuard"):
        assert name not in message


def test_the_table_of_messages_is_read_whole() -> None:
    assert len(MESSAGES) > 70
    assert all(recipe and message for recipe, message in MESSAGES)


def test_every_mistake_is_reported() -> None:
    raw = {"optimizer": {"lr": "x", "eps": "y"}, "train": {"steps": "z"}, "threads": 0}
    assert refusal(raw).splitlines() == [
        "threads must be greater than or equal to 1, got 0",
        "train.steps must be a valid integer, got 'z'",
        "optimizer.lr must be a valid number, got 'x'",
        "optimizer.eps must be a valid number, got 'y'",
    ]
    unknown = refusal({"a": 1, "search": {"b": 2, "guard": {"c": 3}}}).splitlines()
    assert [line.split(";")[0] for line in unknown] == [
        "unknown setting search.guard.c",
        "unknown setting search.b",
        "unknown setting a",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr", "override 'optimizer.lr' must look like section.key=value"),
        ("=3", "override '=3' must look like section.key=value"),
        ("optimizer.lr=fast", "optimizer.lr must be a valid number, got 'fast'"),
        ("optimizer.lr.x=3", "optimizer.lr must be a valid number, got {'x': 3}"),
        ("optimiser.lr=3", "unknown setting optimiser; did you mean 'optimizer'?"),
        ("optimizer..lr=3", "unknown setting optimizer.; [optimizer] of type 'adamw' has "
         "betas, clip_norm, decay, eps, lr, options, slope, warmup_steps, weight_decay"),
    ],
)  # fmt: skip
def test_message_of_an_override(override: str, message: str) -> None:
    assert refusal({}, override).startswith(message)


def refused_file(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return str(error.value).replace(str(path), "FILE")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    assert refused_file(path) == "cannot read FILE: No such file or directory"
    assert refused_file(tmp_path) == "cannot read FILE: Is a directory"
    path.write_text("lr = ")
    assert refused_file(path).startswith("FILE is not TOML: ")
    path.write_text("[train]\nsteps = 1\nsteps = 2\n")
    assert refused_file(path).startswith("FILE is not TOML: Cannot overwrite a value")
    for content in (b"label = '\xff'", "label = 'a'".encode("utf-16")):
        path.write_bytes(content)
        assert refused_file(path).startswith("FILE is not UTF-8: ")
        assert refused_file(path).endswith("; save it as UTF-8")


def test_a_byte_order_mark_before_a_recipe_is_read_over(tmp_path: Path) -> None:
    path, base = tmp_path / "run.toml", tmp_path / "base.toml"
    base.write_text("seed = 7", encoding="utf-8-sig")
    path.write_text("extends = 'base.toml'\nlabel = 'a'", encoding="utf-8-sig")
    assert (load_config(path).seed, load_config(path).label) == (7, "a")


def test_arguments_of_the_chat_template() -> None:
    raw = {"prompt": {"template_kwargs": {"reasoning_effort": "low"}}}
    config = make_config(raw, ["prompt.template_kwargs={thinking=false}"])
    assert config.prompt.template_kwargs == {"reasoning_effort": "low", "thinking": False}
    assert make_config(tomllib.loads(to_toml(config))) == config
    dated = make_config({}, ["prompt.date=2024-07-26"])
    assert dated.prompt.date == "2024-07-26"
    assert make_config(tomllib.loads(to_toml(dated))) == dated
    with pytest.raises(ConfigError) as error:
        make_config({}, ["prompt.template_kwargs={tools=[]}"])
    assert str(error.value) == ("prompt.template_kwargs must not hold 'tools', which effopd sets")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3  # type: ignore[misc]
