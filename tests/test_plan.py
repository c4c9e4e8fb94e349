"""Plans: what they say, and what they cannot say."""

import copy
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from effopd.comparison.plan import load_plan, parent_of, rate_name
from effopd.errors import ConfigError

PLAN: dict[str, Any] = {
    "name": "small",
    "seeds": [0, 1],
    "lrs": [1e-4, 1e-3],
    "common": {"train": {"steps": 8, "prompts_per_step": 4}, "validation": {"prompts": 5}},
    "worlds": {"one": {"train": {"steps": 9}}, "two": {"validation": {"type": "accuracy"}}},
    "methods": {
        "opd": {"settings": {"method": "opd"}},
        "effopd": {"settings": {"train": {"prompts_per_step": 6}}},
        "effopd-few": {"figure": "prompts", "lrs": [1e-4], "worlds": ["two"]},
    },
    "quick": {"seeds": [0], "lrs": [1e-4], "settings": {"train": {"steps": 2}}},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    """The plan with one dotted key set, or removed if the value is None."""
    plan = copy.deepcopy(PLAN)
    *sections, last = key.split(".")
    section = plan
    for name in sections:
        section = section.setdefault(name, {})
    if value is None:
        del section[last]
    else:
        section[last] = value
    return plan


def test_the_runs_of_a_plan_in_order() -> None:
    cells = load_plan(PLAN).cells()
    assert len(cells) == 2 * 2 * 2 + 2 * 2 * 2 + 2
    assert [cell.name for cell in cells][:3] == [
        "one/opd/lr-1e-04/seed-0",
        "one/opd/lr-1e-04/seed-1",
        "one/opd/lr-1e-03/seed-0",
    ]
    assert [cell.name for cell in cells][-2:] == [
        "two/effopd-few/lr-1e-04/seed-0",
        "two/effopd-few/lr-1e-04/seed-1",
    ]


def test_settings_are_merged_common_world_method_then_the_run() -> None:
    cells = {cell.name: cell.settings for cell in load_plan(PLAN).cells()}
    assert cells["one/effopd/lr-1e-03/seed-1"] == {
        "label": "effopd",
        "seed": 1,
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 9, "prompts_per_step": 6},
        "validation": {"prompts": 5},
    }
    assert cells["two/opd/lr-1e-04/seed-0"]["validation"] == {"prompts": 5, "type": "accuracy"}


def test_a_section_of_another_type_replaces_the_one_below() -> None:
    plan = changed("common.validation.type", "teacher_kl")
    settings = load_plan(plan).cells()[-1].settings
    assert settings["validation"] == {"type": "accuracy"}


def test_quick_narrows_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(PLAN), encoding="utf-8")
    cells = load_plan(path, quick=True).cells()
    assert [cell.name for cell in cells] == [
        f"{world}/{method}/lr-1e-04/seed-0"
        for world, method in (
            ("one", "opd"),
            ("one", "effopd"),
            ("two", "opd"),
            ("two", "effopd"),
            ("two", "effopd-few"),
        )
    ]
    assert {cell.settings["train"]["steps"] for cell in cells} == {2}
    assert load_plan(PLAN, quick=True).cells() == cells
    assert load_plan(path).text == path.read_text()
    path.write_text(tomli_w.dumps(changed("quick", None)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has no \[quick\] section"):
        load_plan(path, quick=True)
    with pytest.raises(ConfigError, match=r"the plan has no \[quick\] section"):
        load_plan(changed("quick", None), quick=True)


def test_a_variant_finds_its_parent() -> None:
    plan = load_plan(PLAN)
    assert [parent_of(plan, name) for name in plan.methods] == [None, None, "effopd"]
    named = load_plan(changed("methods.effopd-few.parent", "opd"))
    assert parent_of(named, "effopd-few") == "opd"


@pytest.mark.parametrize(
    ("lr", "name"),
    [(1e-4, "1e-04"), (0.0003, "3e-04"), (2.5e-5, "2.5e-05"), (0.1, "1e-01"), (3e-10, "3e-10")],
)
def test_names_of_learning_rates(lr: float, name: str) -> None:
    assert rate_name(lr) == name
    assert float(name) == lr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seads", [0], "unknown setting seads; did you mean 'seeds'?"),
        ("methods.opd.setings", {}, "unknown setting methods.opd.setings; did you mean 'settings'"),
        (
            "methods.opd.x",
            1,
            "unknown setting methods.opd.x; [methods.opd] has figure, lrs, parent, se",
        ),
        ("quick.seed", [0], "unknown setting quick.seed; did you mean 'seeds'?"),
        ("name", None, "name is missing"),
        ("worlds", {}, r"[worlds] is empty: add a section [worlds.NAME]"),
        ("worlds.one", 3, "worlds.one must be a section, got 3"),
        ("worlds.a/b", {}, "worlds: 'a/b' cannot be a name: use at most 60 letters"),
        ("methods.opd.settings", [], "methods.opd.settings must be a section, got []"),
        ("common", "x", "common must be a section, got 'x'"),
        ("name", "../up", "name: '../up' cannot be a name"),
        ("methods.opd.figure", "a b", "methods.opd.figure: 'a b' cannot be a name"),
        ("seeds", 3, "seeds must be a list, got 3"),
        ("seeds", [0.5], "seeds.0 must be a valid integer, got 0.5"),
        ("seeds", [True], "seeds.0 must be a valid integer, got True"),
        ("seeds", [], "seeds must be a list that is not empty, got []"),
        ("seeds", [1, 1], "seeds names 1 twice: keep one"),
        ("lrs", [0.0], "lrs must be numbers above 0 and at most 1, got [0.0]"),
        ("lrs", [1e-4, 0.0001], "lrs names 1e-04 twice: keep one"),
        ("methods.opd.lrs", [3e-4], "methods.opd.lrs: 0.0003 is not in the plan, which has 0.0001"),
        ("methods.opd.seeds", [], "methods.opd.seeds must be a list that is not empty, got []"),
        (
            "methods.opd.worlds",
            ["on"],
            "methods.opd.worlds: 'on' is not in the plan, which has one",
        ),
        (
            "quick.methods",
            ["epd"],
            "quick.methods: 'epd' is not in the plan, which has opd, effopd",
        ),
        ("quick.lrs", [1e-3], "[quick] leaves no lrs for methods.effopd-few: add one of its own"),
        ("methods.few", {"figure": "x"}, "methods.few belongs to the figure 'x' but is no variant"),
        ("methods.opd.parent", "effopd", "methods.opd.parent needs methods.opd.figure"),
        ("methods", {"a": {"figure": "x"}}, "every method belongs to a figure"),
        ("quick.methods", ["effopd-few"], "every method belongs to a figure"),
    ],
)
def test_wrong_plans_say_what_to_do(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_plan(changed(key, value))
    assert str(caught.value).startswith(message)


def test_a_world_takes_over_a_recipe_beside_the_plan(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[train]\nsteps = 3\nprompts_per_step = 7\n")
    (tmp_path / "small.toml").write_text('extends = "base.toml"\n[sampling]\ntop_p = 0.5\n')
    plan = tmp_path / "plan.toml"
    plan.write_text(tomli_w.dumps(changed("worlds.one.extends", "small.toml")))
    cell = load_plan(plan).cells()[0]
    # Above what the plan has in common, below what the world says itself.
    assert cell.settings["train"] == {"steps": 9, "prompts_per_step": 7}
    assert cell.settings["sampling"] == {"top_p": 0.5}
    assert "extends" not in cell.settings
    plan.write_text(tomli_w.dumps(changed("worlds.one.extends", "../small.toml")))
    with pytest.raises(ConfigError, match="extends must name a TOML file in the same directory"):
        load_plan(plan)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff", "is not UTF-8"), (b"a = ", "is not TOML"), (None, "No such file or directory")],
)
def test_unreadable_plans(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "plan.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / "plan.toml")
