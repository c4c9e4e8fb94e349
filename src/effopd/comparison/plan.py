"""A plan: which methods are trained in which worlds, at which learning rates, with which seeds.

Reading a plan needs neither PyTorch nor pydantic, so that a finished comparison is drawn at once.
The settings of its runs are checked where they become a `RunConfig`.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from effopd.errors import ConfigError

Raw = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_LISTS = ("seeds", "lrs", "worlds")
_PLAN_KEYS = ("name", "seeds", "lrs", "common", "worlds", "methods", "quick")
_METHOD_KEYS = ("settings", "figure", "parent", *_LISTS)
_QUICK_KEYS = ("settings", "methods", *_LISTS)


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One run of a plan.

    Attributes:
        world: Name of its world.
        method: Name of its method.
        lr: Learning rate.
        seed: Seed.
        settings: Recipe settings, merged.
    """

    world: str
    method: str
    lr: float
    seed: int
    settings: Raw = field(repr=False)

    @property
    def name(self) -> str:
        """Its directory below that of the comparison, such as `gap/opd/lr-1e-04/seed-0`."""
        return f"{self.world}/{self.method}/lr-{rate_name(self.lr)}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class PlannedMethod:
    """A method of a plan and where it runs.

    Attributes:
        settings: Recipe settings of the method.
        seeds: Seeds it runs with.
        lrs: Learning rates it runs at.
        worlds: Worlds it runs in.
        figure: Figure it belongs to instead of the main table.
        parent: Method that it is a variant of, drawn beside it.
    """

    settings: Raw
    seeds: Sequence[int]
    lrs: Sequence[float]
    worlds: Sequence[str]
    figure: str | None = None
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Methods, worlds and what all runs share.

    Attributes:
        name: Title of the comparison.
        text: The TOML it was read from.
        common: Recipe settings of every run.
        worlds: Recipe settings of each world.
        methods: The methods.
        last: Recipe settings merged over all others, before learning rate and seed.
    """

    name: str
    text: str = field(repr=False)
    common: Raw
    worlds: Mapping[str, Raw]
    methods: Mapping[str, PlannedMethod]
    last: Raw

    def cells(self) -> list[PlannedCell]:
        """Every run, world by world, method by method."""
        return [
            PlannedCell(
                world=world,
                method=name,
                lr=lr,
                seed=seed,
                settings=self._settings(world, name, lr, seed),
            )
            for world in self.worlds
            for name, method in self.methods.items()
            if world in method.worlds
            for lr, seed in product(method.lrs, method.seeds)
        ]

    def _settings(self, world: str, name: str, lr: float, seed: int) -> Raw:
        own = {"label": name, "seed": seed, "optimizer": {"lr": lr}}
        merged: Raw = {}
        for layer in (self.common, self.worlds[world], self.methods[name].settings, self.last, own):
            merged = _merge(merged, layer)
        return merged


def load_plan(path: Path | str, *, quick: bool = False) -> Plan:
    """Reads a plan from TOML.

    Args:
        path: The file.
        quick: Whether to apply its `[quick]` section.

    Returns:
        The plan; the settings of its runs are not checked yet.

    Raises:
        ConfigError: The file is missing or no TOML, or says something wrong; names the key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    plan = make_plan(raw, text)
    if not quick:
        return plan
    if "quick" not in raw:
        raise ConfigError(f"{path} has no [quick] section: add one, or leave --quick out")
    return _quick(plan, raw["quick"])


def make_plan(raw: Mapping[str, Any], text: str = "") -> Plan:
    """A plan from a nested mapping, its `[quick]` section checked but not applied.

    Raises:
        ConfigError: An unknown key, a wrong value, or a contradiction; names the key.
    """
    _check_keys(raw, _PLAN_KEYS, "")
    for key in ("name", "seeds", "lrs", "worlds", "methods"):
        if key not in raw:
            raise ConfigError(f"{key} is missing: a plan has name, seeds, lrs, worlds and methods")
    worlds, methods = _sections(raw, "worlds"), _sections(raw, "methods")
    lists = {"seeds": raw["seeds"], "lrs": raw["lrs"], "worlds": list(worlds)}
    for key in ("seeds", "lrs"):
        _check_list(key, raw[key], int if key == "seeds" else float)
    plan = Plan(
        name=_name("name", raw["name"]),
        text=text,
        common=_settings("common", raw.get("common", {})),
        worlds=worlds,
        methods={name: _method(name, section, lists) for name, section in methods.items()},
        last={},
    )
    _check_parents(plan)
    if "quick" in raw:
        _quick(plan, raw["quick"])
    return plan


def rate_name(lr: float) -> str:
    """A learning rate in the name of a directory: `1e-04`, `2.5e-05`."""
    return re.sub(r"\.?0+e", "e", f"{lr:.9e}")


def _quick(plan: Plan, raw: object) -> Plan:
    """The plan under its `[quick]` section: fewer of everything, and settings above all others."""
    section = _settings("quick", raw)
    _check_keys(section, _QUICK_KEYS, "quick.")
    known = {
        "seeds": _all_of(plan, "seeds"),
        "lrs": _all_of(plan, "lrs"),
        "worlds": list(plan.worlds),
        "methods": list(plan.methods),
    }
    kept = {key: _narrowed(f"quick.{key}", section.get(key), of) for key, of in known.items()}
    methods = {}
    for name in (name for name in plan.methods if name in kept["methods"]):
        method = plan.methods[name]
        left = {key: [v for v in getattr(method, key) if v in kept[key]] for key in _LISTS}
        for key in (key for key in _LISTS if not left[key]):
            raise ConfigError(
                f"[quick] leaves no {key} for methods.{name}: add one of its own to quick.{key}, "
                "or list the methods that stay in quick.methods"
            )
        methods[name] = PlannedMethod(
            settings=method.settings, figure=method.figure, parent=method.parent, **left
        )
    worlds = {name: plan.worlds[name] for name in plan.worlds if name in kept["worlds"]}
    quick = Plan(
        name=plan.name,
        text=plan.text,
        common=plan.common,
        worlds=worlds,
        methods=methods,
        last=_settings("quick.settings", section.get("settings", {})),
    )
    _check_parents(quick)
    return quick


def _method(name: str, section: Raw, lists: Mapping[str, list[Any]]) -> PlannedMethod:
    where = f"methods.{name}"
    _check_keys(section, _METHOD_KEYS, f"{where}.")
    narrowed = {key: _narrowed(f"{where}.{key}", section.get(key), lists[key]) for key in _LISTS}
    figure = section.get("figure")
    return PlannedMethod(
        settings=_settings(f"{where}.settings", section.get("settings", {})),
        figure=None if figure is None else _name(f"{where}.figure", figure),
        parent=section.get("parent"),
        **narrowed,
    )


def parent_of(plan: Plan, name: str) -> str | None:
    """The method that a variant is drawn beside: its `parent`, else the start of its name."""
    method = plan.methods[name]
    if method.figure is None or method.parent is not None:
        return method.parent
    main = [other for other in plan.methods if plan.methods[other].figure is None]
    begun = [other for other in main if name.startswith(f"{other}-")]
    return max(begun, key=len, default=None)


def _check_parents(plan: Plan) -> None:
    main = [name for name, method in plan.methods.items() if method.figure is None]
    if not main:
        raise ConfigError("every method belongs to a figure: the main table needs at least one")
    for name, method in plan.methods.items():
        parent = parent_of(plan, name)
        if method.figure is None and parent is not None:
            raise ConfigError(f"methods.{name}.parent needs methods.{name}.figure: name the figure")
        if method.figure is not None and parent not in main:
            raise ConfigError(
                f"methods.{name} belongs to the figure {method.figure!r} but is no variant of a "
                f"method in the main table: set methods.{name}.parent to one of {', '.join(main)}"
            )


def _all_of(plan: Plan, key: str) -> list[Any]:
    return list(dict.fromkeys(v for method in plan.methods.values() for v in getattr(method, key)))


def _sections(raw: Mapping[str, Any], key: str) -> dict[str, Raw]:
    sections = _settings(key, raw[key])
    if not sections:
        raise ConfigError(f"[{key}] is empty: add a section [{key}.NAME]")
    return {_name(key, name): _settings(f"{key}.{name}", s) for name, s in sections.items()}


def _settings(key: str, value: object) -> Raw:
    if not isinstance(value, dict):
        raise ConfigError(f"{key} must be a section, got {value!r}")
    return value


def _name(key: str, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(
            f"{key}: {value!r} cannot be a name: use at most 60 letters, digits, dots, dashes and "
            "underscores, a letter or digit first"
        )
    return value


def _check_keys(raw: Mapping[str, Any], known: Sequence[str], section: str) -> None:
    mistakes = []
    for key in (key for key in raw if key not in known):
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        mistakes.append(f"unknown key {section}{key} in a plan; {hint}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _check_list(key: str, values: object, kind: type) -> None:
    """A list without repetition, of whole numbers (seeds) or positive ones (learning rates)."""
    given: Sequence[Any] = values if isinstance(values, list) else []
    numbers = [v for v in given if isinstance(v, int | float) and not isinstance(v, bool)]
    right = [v for v in numbers if (isinstance(v, int) if kind is int else 0 < v < 1)]
    if not given or right != given:
        what = "whole numbers" if kind is int else "numbers between 0 and 1"
        raise ConfigError(f"{key} must be a list of {what}, got {values!r}")
    names = [str(v) if kind is int else rate_name(v) for v in right]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"{key} names {', '.join(twice)} twice: keep one")


def _narrowed(key: str, values: object, known: Sequence[Any]) -> list[Any]:
    """`values`, which must be among `known`; all of them if None."""
    if values is None:
        return list(known)
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{key} must be a list that is not empty, got {values!r}")
    for value in (value for value in values if value not in known):
        listed = ", ".join(map(str, known))
        raise ConfigError(f"{key}: {value!r} is not in the plan, which has {listed}")
    return [value for value in known if value in values]


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Raw:
    """`above` over `below`; a section that changes its `type` replaces the whole section."""
    return dict(_merged_items(below, above))


def _merged_items(below: Mapping[str, Any], above: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in dict.fromkeys([*below, *above]):
        old, new = below.get(key), above.get(key, below.get(key))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            replaced = "type" in new and new["type"] != old.get("type", new["type"])
            yield key, new if replaced else _merge(old, new)
        else:
            yield key, new
