"""The settings of the plug-in: what `+effopd.KEY=VALUE` on verl's command line says.

Sections are the frozen dataclasses of the search itself; a preset fills them, keys override.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from effopd.errors import ConfigError
from effopd.search.settings import Search
from effopd.search.validation import PairedMargin

Preset = Literal["default", "paper", "release"]


def _check_prompts(prompts: int) -> None:
    if prompts < 1:
        raise ConfigError(f"prompts must be at least 1, got {prompts}")


@dataclass(frozen=True, kw_only=True)
class RewardValidation:
    """Mean reward of sampled answers, as verl's reward function gives it: the paper's score.

    Attributes:
        prompts: Number of training prompts, one answer each.
        resample: Draw new prompts for every search instead of one fixed set.
    """

    type: Literal["reward"] = "reward"
    prompts: int = 50
    resample: bool = False

    def __post_init__(self) -> None:
        _check_prompts(self.prompts)


@dataclass(frozen=True, kw_only=True)
class ServedKLValidation:
    """Minus the reverse KL to the teacher, estimated on the student's own answers.

    A teacher behind servers gives log-probabilities of given tokens, not of the vocabulary. The
    mean of `log student - log teacher` over tokens that the student sampled is unbiased for the
    divergence, and dense: every token counts, where a reward is one number an answer.

    Attributes:
        prompts: Number of training prompts, one answer each.
        resample: Draw new prompts for every search instead of one fixed set.
        reduce: "token": mean over the tokens of each answer, then over answers. "sequence": sum
            over the tokens of each answer (equation 7 of arXiv 2605.11739), then mean over answers.
    """

    type: Literal["teacher_kl"] = "teacher_kl"
    prompts: int = 50
    resample: bool = False
    reduce: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        _check_prompts(self.prompts)


Validation = RewardValidation | ServedKLValidation


@dataclass(frozen=True, kw_only=True)
class PluginSettings:
    """Everything under `effopd` in verl's configuration.

    Attributes:
        preset: Where `search` and `validation` start from: "paper" and "release" as published,
            "default" with a dense score and geometric scales.
        seed: Decides validation prompts and the seeds they are answered with.
        search: The search.
        validation: How candidates are scored.
    """

    preset: Preset = "default"
    seed: int = 0
    search: Search = Search(accept=PairedMargin(z=1.65))
    validation: Validation = ServedKLValidation()


def read_settings(raw: Mapping[str, Any] | None) -> PluginSettings:
    """Settings from the section `effopd` of a configuration.

    Args:
        raw: Nested mapping of plain values; None for an absent section.

    Returns:
        The settings.

    Raises:
        ConfigError: An unknown key, a wrong value or a contradiction; names the key.
    """
    given = dict(raw or {})
    return _overlaid(_preset(given.get("preset", "default")), given, "effopd")


def _preset(name: Any) -> PluginSettings:
    """The settings that a preset starts from; an unknown name is reported with the other keys."""
    if name == "paper":
        return PluginSettings(search=Search.paper(), validation=RewardValidation())
    if name == "release":
        return PluginSettings(search=Search.release(), validation=RewardValidation())
    return PluginSettings()


def _overlaid(settings: Any, raw: Mapping[str, Any], key: str) -> Any:
    """A copy of a settings object with the values of a mapping in the place of its own."""
    now = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return _built(type(settings), raw, now, key)


def _built(cls: Any, raw: Mapping[str, Any], now: Mapping[str, Any], key: str) -> Any:
    """An object of a settings class: values of a mapping, checked, over known ones."""
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in raw:
        if name not in names:
            raise ConfigError(f"unknown setting {key}.{name}; {key} has {', '.join(names)}")
    values = {
        name: _checked(hints[name], value, now.get(name), f"{key}.{name}")
        for name, value in raw.items()
    }
    try:
        return cls(**{**now, **values})
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    except TypeError as error:  # a value without a default was not given
        raise ConfigError(f"{key} is incomplete: {error}") from None


def _checked(hint: Any, value: Any, now: Any, key: str) -> Any:
    """A value as its annotation wants it."""
    members = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    if isinstance(value, Mapping):
        return _section(members, value, now, key)
    for member in members:
        found = _plain(member, value)
        if found is not _MISMATCH:
            return found
    raise ConfigError(f"{key} must be {_expected(members)}, got {value!r}")


def _section(members: tuple[Any, ...], raw: Mapping[str, Any], now: Any, key: str) -> Any:
    """A section; one that changes its `type` starts from that class's defaults."""
    classes = [member for member in members if dataclasses.is_dataclass(member)]
    kind = raw.get("type", getattr(now, "type", None))
    if now is not None and kind == getattr(now, "type", None):
        return _overlaid(now, raw, key)
    for cls in classes:
        if getattr(cls, "type", None) == kind:
            return _built(cls, raw, {}, key)
    known = [getattr(cls, "type", None) for cls in classes]
    raise ConfigError(f"{key}.type must be one of {known}, got {kind!r}")


_MISMATCH = object()


def _plain(hint: Any, value: Any) -> Any:
    """A value of a scalar or tuple annotation, or `_MISMATCH`."""
    if hint is NoneType:
        return None if value is None or value == "none" else _MISMATCH
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else _MISMATCH
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        items = tuple(_plain(get_args(hint)[0], item) for item in value)
        return _MISMATCH if _MISMATCH in items else items
    if hint is float and type(value) in {int, float}:
        return float(value)
    return value if hint in {int, bool, str} and type(value) is hint else _MISMATCH


def _expected(members: tuple[Any, ...]) -> str:
    """What a value may be, in words."""
    words = []
    for member in members:
        if get_origin(member) is Literal:
            words += [repr(value) for value in get_args(member)]
        elif dataclasses.is_dataclass(member):
            words.append("a section")
        else:
            words.append("none" if member is NoneType else getattr(member, "__name__", str(member)))
    return " or ".join(dict.fromkeys(words))
