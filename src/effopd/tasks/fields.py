"""Values of a row by the name of their field, which may be dotted: `reward_model.ground_truth`."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from effopd.errors import ConfigError

_LEVEL = re.compile(r"(?:Level )?(-?\d{1,9}(?:\.\d{1,9})?)")


class Conversation(NamedTuple):
    """What a prompt says: an optional system message, and the question."""

    system: str
    question: str


def value_at(row: Mapping[str, Any], field: str) -> Any:
    """The value of a field: of the column with this very name, else of the path it is.

    Raises:
        ConfigError: There is no such field.
    """
    if field in row:
        return row[field]
    value: Any = row
    there = "the row"
    for part in field.split("."):
        if not isinstance(value, Mapping):
            raise ConfigError(f"no field {field!r}; {there} is no object")
        if part not in value:
            names = ", ".join(map(repr, value))
            raise ConfigError(f"no field {field!r}; {there} has {names or 'no fields'}")
        value, there = value[part], repr(part)
    return value


def text_at(row: Mapping[str, Any], field: str) -> str:
    """A field that holds text or a finite number, as text that a tokenizer can read.

    Raises:
        ConfigError: It holds something else, nothing, or half a surrogate pair.
    """
    return _text(value_at(row, field), f"field {field!r}")


def integer_at(row: Mapping[str, Any], field: str) -> int:
    """A field that holds an integer.

    Raises:
        ConfigError: It holds something else.
    """
    value = value_at(row, field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"field {field!r} must be an integer, got {value!r:.60}")
    return value


def level_at(row: Mapping[str, Any], field: str) -> float:
    """A difficulty: a finite number, or the text of one, as in `Level 5`.

    Raises:
        ConfigError: It is neither.
    """
    value = value_at(row, field)
    if isinstance(value, str) and (found := _LEVEL.fullmatch(value.strip())):
        return float(found[1])
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        return float(value)
    raise ConfigError(f"field {field!r} must be a number, got {value!r:.60}")


def conversation_at(row: Mapping[str, Any], field: str) -> Conversation:
    """A prompt: a text, or a list of chat messages with one by the user at the end.

    Raises:
        ConfigError: It is neither, or the messages are others than one by the user after at most
            one by the system.
    """
    value = value_at(row, field)
    if not isinstance(value, list):
        return Conversation("", _text(value, f"field {field!r}"))
    roles = [each.get("role") if isinstance(each, Mapping) else None for each in value]
    if roles not in (["user"], ["system", "user"]):
        raise ConfigError(
            f"field {field!r} must be one message of the user, after at most one of the system, "
            f"got the roles {roles!r:.60}"
        )
    texts = [_text(each.get("content"), f"content in field {field!r}") for each in value]
    return Conversation("".join(texts[:-1]), texts[-1])


def _text(value: Any, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{what} must be text or a number, got {value!r:.60}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{what} must be a finite number, got {value}")
    text = str(value)
    if not text.strip():
        raise ConfigError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{what} holds half a surrogate pair, which is no text") from None
    return text
