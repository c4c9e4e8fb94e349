"""Settings from TOML and overrides, and back."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from effopd.config.extending import EXTENDS, base_path, check_extends_nothing
from effopd.config.mistakes import sentences, unknown_settings
from effopd.errors import ConfigError
from effopd.training.config import RunConfig
from effopd.training.methods import method_settings

Raw = dict[str, Any]


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a TOML recipe, which may extend another one in its directory.

    Args:
        path: The recipe.
        overrides: `section.key=value` with a TOML value, for example `optimizer.lr=3e-4`.

    Returns:
        The resolved settings.

    Raises:
        ConfigError: The file is missing or no TOML, or a setting is wrong.
    """
    raw = _read(Path(path))
    if (base := base_path(Path(path), raw)) is not None:
        below = _read(base)
        check_extends_nothing(base, below)
        raw = merged(below, {key: value for key, value in raw.items() if key != EXTENDS})
    return make_config(raw, overrides)


def make_config(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Validated settings from a nested mapping, presets expanded.

    Raises:
        ConfigError: An unknown key, a wrong value, or a contradiction; names the key.
    """
    whole = dict(raw)
    for override in overrides:
        whole = merged(whole, parse_override(override))
    whole = merged(_defaults(whole), whole)
    if isinstance(whole["search"], Mapping) and whole["search"].get("guard") == "none":
        whole["search"] = {**whole["search"], "guard": None}
    if mistakes := list(unknown_settings(whole, RunConfig)):
        raise ConfigError("\n".join(mistakes))
    try:  # as JSON, where strict does not mean that a list is no tuple and a table no dataclass
        return RunConfig.model_validate_json(json.dumps(whole, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error, whole))) from None


def to_toml(config: RunConfig) -> str:
    """All settings, defaults included, as TOML that `load_config` reads back."""
    dumped = config.model_dump()
    if dumped["search"]["guard"] is None:
        dumped["search"]["guard"] = "none"
    return tomli_w.dumps(without_none(dumped))


def differences(old_toml: str, new_toml: str) -> list[str]:
    """Settings that differ, one sentence each: `optimizer.lr: 0.0001 -> 0.0003`."""
    old, new = (settings_of(tomllib.loads(text)) for text in (old_toml, new_toml))
    keys = sorted(old.keys() | new.keys())
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)]


def settings_of(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting of a nested mapping by its dotted name."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        nested = isinstance(value, Mapping)
        found |= settings_of(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def _read(path: Path) -> Raw:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors write the mark
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _defaults(raw: Mapping[str, Any]) -> Raw:
    """All settings of a method and preset in raw form; unknown ones are reported later."""
    method, preset = str(raw.get("method", "effopd")), str(raw.get("preset", "default"))
    found = method_settings(method, preset, _longest(raw))
    return RunConfig(**found).model_dump(exclude={"method", "preset"})


def _longest(raw: Mapping[str, Any]) -> int:
    """The length cap that is asked for, else the default; a wrong one is reported later."""
    section = raw.get("sampling")
    cap = section.get("max_new_tokens") if isinstance(section, Mapping) else None
    if isinstance(cap, int) and cap > 0:
        return cap
    return RunConfig().sampling.max_new_tokens


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Raw:
    """`above` over `below`; a section that changes its `type` replaces the whole section."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            replaced = "type" in value and value["type"] != old.get("type")
            found[key] = value if replaced else merged(old, value)
        else:
            found[key] = value
    return found


def parse_override(text: str) -> Raw:
    """The nested mapping of `section.key=value`, whose value is TOML or else text.

    Raises:
        ConfigError: It is written otherwise.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r} must look like section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def without_none(value: Any) -> Any:
    """A nested mapping without what is None, which TOML cannot write."""
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    return [without_none(v) for v in value] if isinstance(value, list | tuple) else value
