"""What `+effopd.*` on the command line becomes."""

from typing import Any

import pytest

from effopd import AtLeast, AtSteps, EveryN, GeometricScales, LengthGuard, PairedMargin, Search
from effopd.errors import ConfigError
from effopd.integrations.verl.settings import (
    PluginSettings,
    RewardValidation,
    ServedKLValidation,
    read_settings,
)


def test_nothing_given_is_the_default() -> None:
    assert read_settings(None) == read_settings({}) == PluginSettings()
    assert isinstance(PluginSettings().validation, ServedKLValidation)


def test_presets_are_the_published_searches() -> None:
    for name, search in (("paper", Search.paper()), ("release", Search.release())):
        found = read_settings({"preset": name})
        assert found == PluginSettings(preset=name, search=search, validation=RewardValidation())  # type: ignore[arg-type]


def test_keys_override_the_preset_and_leave_the_rest() -> None:
    found = read_settings(
        {
            "preset": "paper",
            "seed": 7,
            "search": {"parameters": "all", "scales": {"scales": [2, 4.5]}},
            "validation": {"prompts": 8},
        }
    )
    assert found.seed == 7
    assert found.validation == RewardValidation(prompts=8)
    assert found.search.scales.scales == (2.0, 4.5)  # type: ignore[union-attr]
    assert found.search.accept == AtLeast()
    assert found.search.guard is None


def test_a_section_of_another_type_starts_from_its_own_defaults() -> None:
    found = read_settings(
        {
            "preset": "paper",
            "search": {
                "scales": {"type": "geometric", "cap": 16},
                "schedule": {"type": "at_steps", "steps": [1, 5]},
                "guard": {"longest": 3},
            },
            "validation": {"type": "teacher_kl", "reduce": "sequence"},
        }
    )
    assert found.search.scales == GeometricScales(cap=16.0)
    assert found.search.schedule == AtSteps(steps=(1, 5))
    assert found.search.guard == LengthGuard(longest=3.0)
    assert found.validation == ServedKLValidation(reduce="sequence")


def test_none_turns_the_guard_off() -> None:
    assert read_settings({"search": {"guard": None}}).search.guard is None
    assert read_settings({"search": {"guard": "none"}}).search.guard is None
    assert read_settings({"search": {"schedule": {"type": "every_n"}}}).search.schedule == EveryN()
    assert read_settings({}).search.accept == PairedMargin(z=1.65)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"serach": {}}, r"effopd: unknown setting serach; did you mean 'search'"),
    ({"search": {"scale": 3}}, r"effopd: unknown setting search\.scale; "),
    ({"preset": "papers"}, r"effopd: preset must be 'default', 'paper' or 'release', got 'papers'"),
    ({"seed": "x"}, r"effopd: seed must be a valid integer, got 'x'"),
    ({"search": {"guard": 3}}, r"effopd: search\.guard must be a section or 'none', got 3"),
    ({"search": {"scales": {"cap": 0.5}}}, r"effopd: search\.scales\.ratio and cap must be finite"),
    ({"validation": {"prompts": 0}}, r"effopd: validation\.prompts must be at least 1, got 0"),
    ({"search": 3}, r"effopd: search must be a section, got 3"),
]


@pytest.mark.parametrize(("raw", "message"), MISTAKES, ids=[str(raw) for raw, _ in MISTAKES])
def test_mistakes_name_the_key(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(raw)
