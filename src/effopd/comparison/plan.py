"""A plan: which methods are trained in which worlds, at which learning rates, with which seeds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from effopd.config.reading import (
    INTERNAL,
    Raw,
    extended_by,
    merged,
    read,
    read_recipe,
    read_toml,
)
from effopd.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_LISTS = ("seeds", "lrs", "worlds")


# What the file says -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlannedMethod:
    """A method of a plan, its recipe settings, and where it runs; in all of the plan by default.

    One with a `figure` belongs to that instead of the main table, as a variant of `parent`.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    lrs: tuple[float, ...] | None = None
    worlds: tuple[str, ...] | None = None
    figure: str | None = None
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Quick:
    """The section `[quick]`: fewer of everything, and settings above all others."""

    settings: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    lrs: tuple[float, ...] | None = None
    worlds: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Methods, worlds (recipe settings of each) and the recipe settings that all runs share.

    `text` is the TOML it was read from, `last` are recipe settings merged over all others, before
    learning rate and seed.
    """

    name: str
    seeds: tuple[int, ...]
    lrs: tuple[float, ...]
    common: dict[str, Any] = field(default_factory=dict)
    worlds: dict[str, dict[str, Any]]
    methods: dict[str, PlannedMethod]
    quick: Quick | None = None
    text: str = field(default="", repr=False, metadata={INTERNAL: True})
    last: dict[str, Any] = field(default_factory=dict, metadata={INTERNAL: True})

    def __post_init__(self) -> None:
        for key, names in (("worlds", self.worlds), ("methods", self.methods)):
            if not names:
                raise ConfigError(f"[{key}] is empty: add a section [{key}.NAME]")
        figures = {f"methods.{n}.figure": m.figure for n, m in self.methods.items() if m.figure}
        named = [("name", self.name), *(("worlds", name) for name in self.worlds)]
        for key, name in (*named, *(("methods", name) for name in self.methods), *figures.items()):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{key}: {name!r} cannot be a name: use at most 60 letters, digits, dots, "
                    "dashes and underscores, a letter or digit first"
                )
        if not all(0 < lr <= 1 for lr in self.lrs):  # 1 is Prodigy's
            raise ConfigError(f"lrs must be numbers above 0 and at most 1, got {list(self.lrs)}")
        written = {"seeds": [str(s) for s in self.seeds], "lrs": [rate_name(r) for r in self.lrs]}
        for key, values in written.items():
            if not values:
                raise ConfigError(f"{key} must be a list that is not empty, got []")
            if twice := [v for v in dict.fromkeys(values) if values.count(v) > 1]:
                raise ConfigError(f"{key} names {', '.join(twice)} twice: keep one")

    def cells(self) -> "list[PlannedCell]":
        """Every run, world by world, method by method."""
        found = []
        for world, (name, method) in product(self.worlds, self.methods.items()):
            if world not in (method.worlds or ()):
                continue
            for lr, seed in product(method.lrs or (), method.seeds or ()):
                own = {"label": name, "seed": seed, "optimizer": {"lr": lr}}
                layers = self.common, self.worlds[world], method.settings, self.last, own
                raw: Raw = reduce(merged, layers, {})
                found.append(PlannedCell(world=world, method=name, lr=lr, seed=seed, settings=raw))
        return found


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One run of a plan, and its merged recipe settings."""

    world: str
    method: str
    lr: float
    seed: int
    settings: Raw = field(repr=False)

    @property
    def name(self) -> str:
        """Its directory below that of the comparison, such as `gap/opd/lr-1e-04/seed-0`."""
        return f"{self.world}/{self.method}/lr-{rate_name(self.lr)}/seed-{self.seed}"


def rate_name(lr: float) -> str:
    """A learning rate in the name of a directory: `1e-04`, `2.5e-05`."""
    return re.sub(r"\.?0+e", "e", f"{lr:.9e}")


# Reading ------------------------------------------------------------------------------------------


def load_plan(source: Path | str | Mapping[str, Any], *, quick: bool = False) -> Plan:
    """A plan from a TOML file or its content; its `[quick]` section is checked, and may apply.

    In a file, a world that `extends` a recipe of the same directory has its settings too.
    """
    raw, text = (source, "") if isinstance(source, Mapping) else read_toml(Path(source))
    plan = read(Plan, raw)
    if not isinstance(source, Mapping):
        worlds = {name: _extended(world, Path(source)) for name, world in plan.worlds.items()}
        plan = replace(plan, worlds=worlds)
    lists = {"seeds": plan.seeds, "lrs": plan.lrs, "worlds": list(plan.worlds)}
    methods = {
        name: _narrowed(method, lists, f"methods.{name}") for name, method in plan.methods.items()
    }
    plan = replace(plan, methods=methods, text=text)
    _check_parents(plan)
    if plan.quick is not None:
        quickened = _quick(plan, plan.quick)
        return quickened if quick else plan
    if quick:
        mapping = isinstance(source, Mapping)
        name, option = ("the plan", "quick") if mapping else (source, "--quick")
        raise ConfigError(f"{name} has no [quick] section: add one, or leave {option} out")
    return plan


def _extended(world: Raw, plan: Path) -> Raw:
    """Settings of a world over those of the recipe beside the plan that it extends."""
    if "extends" not in world:
        return world
    own = {key: value for key, value in world.items() if key != "extends"}
    return merged(read_recipe(extended_by(plan, world["extends"])), own)


def parent_of(plan: Plan, name: str) -> str | None:
    """The method that a variant is drawn beside: its `parent`, else the start of its name."""
    method = plan.methods[name]
    if method.figure is None or method.parent is not None:
        return method.parent
    main = [other for other in plan.methods if plan.methods[other].figure is None]
    begun = [other for other in main if name.startswith(f"{other}-")]
    return max(begun, key=len, default=None)


def _narrowed(section: Any, lists: Mapping[str, Sequence[Any]], where: str) -> Any:
    """The section with what it names of each list, in the order of the list; all where it does not.

    A list of its own must be a part of the plan's.
    """
    found = {}
    for key, known in lists.items():
        values = getattr(section, key)
        if values == ():
            raise ConfigError(f"{where}.{key} must be a list that is not empty, got []")
        for value in values or ():
            if value not in known:
                listed = ", ".join(map(str, known))
                raise ConfigError(
                    f"{where}.{key}: {value!r} is not in the plan, which has {listed}"
                )
        found[key] = tuple(known if values is None else (v for v in known if v in values))
    return replace(section, **found)


def _quick(plan: Plan, section: Quick) -> Plan:
    """The plan under its `[quick]` section."""
    used = {
        key: list(dict.fromkeys(v for m in plan.methods.values() for v in getattr(m, key)))
        for key in ("seeds", "lrs")
    }
    lists = {**used, "worlds": list(plan.worlds), "methods": list(plan.methods)}
    kept = _narrowed(section, lists, "quick")
    methods = {}
    for name in kept.methods:
        method = plan.methods[name]
        left: dict[str, Any] = {
            k: tuple(v for v in getattr(method, k) if v in getattr(kept, k)) for k in _LISTS
        }
        for key in (key for key in _LISTS if not left[key]):
            raise ConfigError(
                f"[quick] leaves no {key} for methods.{name}: add one of its own to quick.{key}, "
                "or list the methods that stay in quick.methods"
            )
        methods[name] = replace(method, **left)
    worlds = {name: plan.worlds[name] for name in kept.worlds}
    quick = replace(plan, worlds=worlds, methods=methods, last=section.settings)
    _check_parents(quick)
    return quick


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
