"""Settings objects from nested mappings, TOML files and overrides, and back to TOML.

Knows no settings class: every class of frozen dataclasses or pydantic models is read alike.
"""

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import NoneType
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, TypeAdapter, ValidationError

from effopd.errors import ConfigError

Raw = dict[str, Any]
T = TypeVar("T")

NONE = "none"
"""How TOML spells an optional section that is turned off."""
INTERNAL = "internal"
"""Metadata of a field that is no setting."""
GONE = {
    "task.type = 'jsonl'": "use 'dataset', with train.path and test.path for train_path and "
    "test_path, and what says how rows are written in [task.train] and [task.test]",
    "task.train_path": "it is called task.train.path",
    "task.test_path": "it is called task.test.path",
    "stand_in": "it is called smoke",
    "teacher_server.allow_link_local": "any address may be named; leave it out",
    "monitor.rows": "the monitor samples weights by itself; leave it out",
    "monitor.matrices": "the monitor samples weights by itself; leave it out",
    "monitor.iterations": "leave it out",
    "search.retest": "use search.accept.type = 'paired_margin', or more validation.prompts",
    "search.momentum": "the optimizer's state is kept, as in the released code; leave it out",
    "search.scales.refine": "use a smaller search.scales.ratio",
    "search.scales.type = 'tracking'": "use 'geometric'",
    "search.scales.type = 'quadratic'": "use 'geometric'",
    "search.schedule.type = 'adaptive'": "use 'every_n' or 'powers_of_two'",
    "search.schedule.type = 'foresight'": "use 'every_n' or 'powers_of_two'",
    "search.direction.type = 'averaged'": "use 'since_accepted'",
    "search.direction.type = 'relex'": "use 'since_accepted'",
    "validation.type = 'cached_kl'": "it is called 'importance_kl' now",
    "validation.prefix": "answers are whole; source = 'batch' samples none",
    "validation.weights": "importance weights are always used; on long answers use 'teacher_kl'",
    "validation.levels": "all training problems are drawn from; leave it out",
}
"""Settings of earlier versions, and what to use in their place."""


def read(cls: type[T], raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> T:
    """A settings object from a nested mapping.

    Args:
        cls: A frozen dataclass or pydantic model; sections are dataclasses, those of a union are
            told apart by their field `type`.
        raw: Plain values or settings objects, by field name.
        overrides: `section.key=value` with a TOML value, for example `optimizer.lr=3e-4`.

    Returns:
        The settings.

    Raises:
        ConfigError: An unknown key, a wrong value, or a contradiction; one line each, naming the
            key.
    """
    whole = checked(overridden(raw, overrides), cls)
    with explained(whole):
        return TypeAdapter(cls).validate_json(as_json(whole), strict=True)


def as_json(raw: Mapping[str, Any]) -> str:
    """JSON, in which strict does not mean that a list is no tuple and a table no dataclass."""
    return json.dumps(raw, default=str)


# Mappings -----------------------------------------------------------------------------------------


def overridden(raw: Mapping[str, Any], overrides: Sequence[str]) -> Raw:
    """A mapping of plain values with `section.key=value` over it."""
    whole: Raw = raw_of(raw)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {text!r} must look like section.key=value")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        whole = merged(whole, parsed)
    return whole


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Raw:
    """`above` over `below`; a section that changes its `type` replaces the whole section."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            replaced = "type" in value and value["type"] != old.get("type", value["type"])
            found[key] = value if replaced else merged(old, value)
        else:
            found[key] = value
    return found


def raw_of(value: Any) -> Any:
    """Plain values of settings objects, and of mappings and lists that hold some."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: raw_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, BaseModel):
        return {name: raw_of(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {key: raw_of(each) for key, each in value.items()}
    return [raw_of(each) for each in value] if isinstance(value, list | tuple) else value


def settings_of(raw: Mapping[str, Any], prefix: str = "") -> Raw:
    """Every setting of a nested mapping by its dotted name."""
    found: Raw = {}
    for key, value in raw.items():
        nested = isinstance(value, Mapping)
        found |= settings_of(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


# TOML ---------------------------------------------------------------------------------------------


def read_recipe(path: Path) -> Raw:
    """The content of a TOML file, over that of the one in its directory that it `extends`."""
    raw = read_toml(path)[0]
    name = raw.pop("extends", None)
    if name is None:
        return raw
    base = read_toml(extended_by(path, name))[0]
    if "extends" in base:  # what a run does should be read from two files at most
        raise ConfigError(
            f"{path.parent / name} is extended and cannot itself extend {base['extends']!r:.80}: "
            "copy its settings into your recipe, extends included, or give yours on the command "
            "line"
        )
    return merged(base, raw)


def extended_by(path: Path, name: Any) -> Path:
    """The file in the directory of `path` that `extends = name` means."""
    if not isinstance(name, str) or PurePath(name).name != name or not name.endswith(".toml"):
        raise ConfigError(
            f"{path}: extends must name a TOML file in the same directory, got {name!r:.80}"
        )
    return path.parent / name


def read_toml(path: Path) -> tuple[Raw, str]:
    """The content of a TOML file, and its text."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors write the mark
        return tomllib.loads(text), text
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def to_toml(settings: Any) -> str:
    """All settings of an object, defaults included, as TOML that reads back equal."""
    return tomli_w.dumps(_spelled(settings))


def _spelled(value: Any) -> Any:
    """Plain values without None, which TOML cannot write; "none" where another one is default."""
    if isinstance(value, BaseModel):
        defaults = {name: field.default for name, field in type(value).model_fields.items()}
    elif dataclasses.is_dataclass(value):
        defaults = {field.name: field.default for field in dataclasses.fields(value)}
    elif isinstance(value, Mapping):
        return {key: _spelled(each) for key, each in value.items() if each is not None}
    else:
        return [_spelled(each) for each in value] if isinstance(value, list | tuple) else value
    found = {name: getattr(value, name) for name in defaults}
    off = {name: NONE for name, each in found.items() if each is None and defaults[name]}
    return {name: _spelled(each) for name, each in (found | off).items() if each is not None}


def checked(raw: Mapping[str, Any], cls: type) -> Raw:
    """The mapping with None for "none", once all its keys and types of sections are known."""
    mistakes: list[str] = []
    whole = _checked_section(raw, cls, "", mistakes)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return whole


def _checked_section(raw: Mapping[str, Any], cls: Any, section: str, mistakes: list[str]) -> Raw:
    hints = typing.get_type_hints(cls)
    if issubclass(cls, BaseModel):
        names = sorted(cls.model_fields)
    else:
        names = sorted(f.name for f in dataclasses.fields(cls) if not f.metadata.get(INTERNAL))
    found = dict(raw)
    for key, value in raw.items():
        name = section + key
        if key not in names and name in GONE:
            mistakes.append(f"{name} is no setting any more: {GONE[name]}")
            continue
        if key not in names:
            mistakes.append(f"unknown setting {name}; {_hint(key, names, section, raw)}")
            continue
        arms = typing.get_args(hints[key]) or getattr(hints[key], "choices", (hints[key],))
        members: list[Any] = [arm for arm in arms if dataclasses.is_dataclass(arm)]
        optional, container = NoneType in arms, typing.get_origin(hints[key])
        if not members or (optional and value is None) or container is tuple:
            continue
        if optional and value == NONE:
            found[key] = None
        elif not isinstance(value, Mapping):
            spelled = f" or {NONE!r}" if optional else ""
            mistakes.append(f"{name} must be a section{spelled}, got {value!r}")
        elif container is dict:  # sections with names of the user's own
            found[key] = dict(value)
            for own, item in value.items():
                if not isinstance(item, Mapping):
                    mistakes.append(f"{name}.{own} must be a section, got {item!r}")
                    continue
                found[key][own] = _checked_section(item, members[0], f"{name}.{own}.", mistakes)
        else:
            types = [getattr(member, "type", None) for member in members]
            kind = value.get("type") if len(types) > 1 and None not in types else types[0]
            if kind in types:
                member = members[types.index(kind)]
                found[key] = _checked_section(value, member, f"{name}.", mistakes)
            elif (gone := f"{name}.type = {kind!r}") in GONE:
                mistakes.append(f"{gone} is no choice any more: {GONE[gone]}")
            else:
                listed = ", ".join(map(repr, types))
                mistakes.append(f"{name}.type must be one of {listed}, got {kind!r}")
    return found


def _hint(key: str, names: Sequence[str], section: str, raw: Mapping[str, Any]) -> str:
    """The name that was meant, else all there are."""
    if close := difflib.get_close_matches(key, names, n=1):
        return f"did you mean {close[0]!r}?"
    where = f"[{section.removesuffix('.')}]" if section else "the top level"
    of_type = f" of type {raw.get('type')!r}" if "type" in names else ""
    return f"{where}{of_type} has {', '.join(name for name in names if name != 'type')}"


@contextmanager
def explained(raw: Mapping[str, Any]) -> Iterator[None]:
    """Raises what pydantic finds wrong with a mapping as one sentence a mistake."""
    try:
        yield
    except ValidationError as error:
        items = error.errors()
        # of a union, pydantic also tries the members whose `type` was not given
        others = [i["loc"][:-1] for i in items if i["loc"] and i["loc"][-1] == "type"]
        told = [i for i in items if not any(i["loc"][: len(o)] == o for o in others)]
        raise ConfigError("\n".join(_sentence(item, raw) for item in told)) from None


def _sentence(item: Any, raw: Mapping[str, Any]) -> str:
    """One mistake, naming the key as it is written in TOML."""
    kind, given = item["type"], item["input"]
    key, message = _key(item, raw), item["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return f"{key} is missing"
    if kind != "value_error":
        for said, meant in _WORDS.items():
            message = message.replace(said, meant)
        return f"{key} {message}, got {given!r}"
    if not key or message.startswith((f"{key}.", f"{key} ")):
        return str(message)
    starts_with_setting = isinstance(given, Mapping) and message.split(" ")[0] in given
    return f"{key}.{message}" if starts_with_setting else f"{key}: {message}"


_WORDS = {"Input should be": "must be", "an object": "a section", "a valid array": "a list"}
"""What pydantic says -> what TOML calls it."""


def _key(item: Any, raw: Any) -> str:
    """Dotted key of a mistake, without the union members that pydantic names on the way."""
    *sections, last = item["loc"] or ("",)
    parts = []
    for part in sections:
        if isinstance(raw, Mapping) and part in raw:
            parts.append(part)
            raw = raw[part]
    if item["type"] == "missing" or not isinstance(raw, Mapping) or last in raw:
        parts.append(last)
    return ".".join(map(str, parts))
