"""The table of what a changed setting changes: complete, without entries too many."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from effopd.config.reading import to_toml
from effopd.methods import Objective
from effopd.training.config import Config, make_config
from effopd.training.continuing import EFFECTS, changes, effect_of


def leaves(annotation: Any, name: str) -> Iterator[str]:
    """Dotted names of all settings below one."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from leaves(parts[0], name)
    elif origin in {typing.Union, types.UnionType}:
        for part in parts:
            if part is not type(None):
                yield from leaves(part, name)
    elif origin is dict and dataclasses.is_dataclass(parts[1]):
        yield from leaves(parts[1], f"{name}.any")
    elif dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        for field in dataclasses.fields(annotation):
            yield from leaves(hints[field.name], f"{name}.{field.name}")
    elif annotation is Objective:
        for part in Objective.choices:
            yield from leaves(part, name)
    else:
        yield name


SETTINGS = sorted(
    {leaf for name, field in Config.model_fields.items() for leaf in leaves(field.annotation, name)}
)


def test_every_setting_has_an_effect() -> None:
    assert len(SETTINGS) > 200
    assert [name for name in SETTINGS if effect_of(name) is None] == []


def test_every_entry_is_a_setting_or_a_section() -> None:
    named = {
        name.replace(".any", ".*")[:length]
        for name in SETTINGS
        for length in [
            *(i for i, letter in enumerate(name.replace(".any", ".*")) if letter == "."),
            len(name),
        ]
    }
    assert sorted(EFFECTS.keys() - named) == []


@pytest.mark.parametrize(
    ("setting", "effect"),
    [
        ("memory.scoring_tokens", "rounding only"),
        ("teachers.maths.gradient_checkpointing", "no number"),
        ("teachers.maths.dtype", "the run"),
        ("search.guard.shortest", "the run"),
        ("train.micro_batch_tokens", "rounding only"),
        ("memory.unheard_of", None),
    ],
)
def test_the_longest_name_counts(setting: str, effect: str | None) -> None:
    assert effect_of(setting) == effect


def test_an_unknown_old_setting_is_refused() -> None:
    config = make_config({})
    old = to_toml(config) + "\n[elves]\ncount = 3\n"
    found = changes(old, config, steps_done=0)
    assert found.refused == ["elves.count: 3 -> None"]


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_run_may_move_to_a_gpu(device: str) -> None:
    ran = to_toml(make_config({"device": "cpu"}))
    found = changes(ran, make_config({"device": device}), steps_done=5)
    assert found.refused == []
    assert found.told == [f"device: cpu -> {device} (changes rounding only)"]


def test_a_monitor_may_be_turned_off_and_not_on() -> None:
    off, on = make_config({}), make_config({"monitor": {"every": 2}})
    assert changes(to_toml(on), off, steps_done=1).refused == []
    assert changes(to_toml(off), on, steps_done=1).refused == ["monitor.every: 0 -> 2"]


def test_runs_of_a_comparison_may_differ_in_how_they_are_computed_alone() -> None:
    old = to_toml(make_config({}))
    new = make_config(
        {
            "memory": {"scoring_tokens": 64, "teacher_offload": True},
            "train": {"steps": 99, "prompts_per_step": 9},
            "evaluation": {"problems": 3},
        }
    )
    assert changes(old, new, steps_done=0).of_comparisons == [
        "train.prompts_per_step: 128 -> 9",
        "evaluation.problems: 256 -> 3",
        "train.steps: 64 -> 99",
    ]
