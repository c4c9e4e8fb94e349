"""What is wrong with settings, one sentence a mistake, naming the key as it is written in TOML."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

RENAMED: Mapping[str, str] = {"stand_in": "smoke"}
"""Settings that had another name -> their name now."""


def unknown_settings(raw: Mapping[str, Any], cls: type, section: str = "") -> Iterator[str]:
    """One sentence per key that `cls` does not have, and per `type` that names no class."""
    hints = typing.get_type_hints(cls)
    names = sorted(cls.model_fields if issubclass(cls, BaseModel) else hints)
    for key, value in raw.items():
        if key not in names and (new := RENAMED.get(section + key)):
            yield f"unknown setting {section}{key}: it is called {new} now"
        elif key not in names:
            yield f"unknown setting {section}{key}; {_hint(key, names, section, raw.get('type'))}"
        elif isinstance(value, Mapping) and (members := _members(hints[key])):
            types = [getattr(member, "type", None) for member in members]
            given = value.get("type") if None not in types else None
            if typing.get_origin(hints[key]) is dict:  # sections with names of the user's own
                named = [(k, v) for k, v in value.items() if isinstance(v, Mapping)]
                for name, item in named:
                    yield from unknown_settings(item, members[0], f"{section}{key}.{name}.")
            elif given in types:
                yield from unknown_settings(value, members[types.index(given)], f"{section}{key}.")
            else:
                expected = ", ".join(map(repr, types))
                yield f"{section}{key}.type must be one of {expected}, got {given!r}"


def _hint(key: str, names: Sequence[str], section: str, kind: object) -> str:
    """The name that was meant, else all there are."""
    if close := difflib.get_close_matches(key, names, n=1):
        return f"did you mean {close[0]!r}?"
    where = f"[{section.removesuffix('.')}]" if section else "the top level"
    of_type = f" of type {kind!r}" if "type" in names else ""
    return f"{where}{of_type} has {', '.join(name for name in names if name != 'type')}"


def _members(hint: Any) -> list[Any]:
    """The settings classes in an annotation such as `A | B | None`."""
    return [each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each)]


def sentences(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """One sentence per mistake, without those of union members whose `type` is not the given."""
    items = error.errors()
    other_types = [i["loc"][:-1] for i in items if i["loc"] and i["loc"][-1] == "type"]
    return [
        _sentence(i, raw) for i in items if not any(i["loc"][: len(o)] == o for o in other_types)
    ]


def _sentence(item: Any, raw: Mapping[str, Any]) -> str:
    """One mistake, naming the key as it is written in TOML."""
    kind, given = item["type"], item["input"]
    key, message = _key(item, raw), item["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return f"{key} is missing"
    if kind == "dataclass_type":
        off = " or 'none'" if key == "search.guard" else ""
        return f"{key} must be a section{off}, got {given!r}"
    if kind != "value_error":
        return f"{key} {message.replace('Input should be', 'must be')}, got {given!r}"
    if not key or message.startswith((f"{key}.", f"{key} ")):
        return str(message)
    starts_with_setting = isinstance(given, Mapping) and message.split(" ")[0] in given
    return f"{key}.{message}" if starts_with_setting else f"{key}: {message}"


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
