"""Values of a row by the name of their field, which may be dotted: `reward_model.ground_truth`."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from effopd.errors import ConfigError

_USUAL = ("messages", "conversations")
"""What fields with chat messages are mostly called."""
_TURNS = ("user", "assistant")
_ROLES = {
    name: role
    for role, names in {
        "system": "system developer",
        "user": "user human",
        "assistant": "assistant gpt chatgpt bot model",
        "tool": "tool function function_call function_response observation ipython",
    }.items()
    for name in names.split()
}
"""What data sets call those who speak, in small letters -> what chat templates call them."""
_LEVEL = re.compile(r"(?:Level )?(-?\d{1,9}(?:\.\d{1,9})?)")


class Conversation(NamedTuple):
    """What a prompt says: a system message or "", earlier questions with answers, the question.

    `answered` if an answer followed, as in data for supervised training; it is left out.
    """

    system: str
    turns: tuple[tuple[str, str], ...]
    question: str
    answered: bool = False

    @property
    def asked(self) -> str:
        """All that the user says."""
        return "\n".join([*(question for question, _ in self.turns), self.question])


def value_at(row: Mapping[str, Any], field: str) -> Any:
    """The value of a field: of the column with this very name, else of the path it is."""
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
    """A field that holds text or a finite number, as text that a tokenizer can read."""
    return _text(value_at(row, field), f"field {field!r}")


def level_at(row: Mapping[str, Any], field: str) -> float:
    """A difficulty: a finite number, or the text of one, as in `Level 5`."""
    value = value_at(row, field)
    if isinstance(value, str) and (found := _LEVEL.fullmatch(value.strip())):
        return float(found[1])
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        return float(value)
    raise ConfigError(f"field {field!r} must be a number, got {value!r:.60}")


def conversation_at(row: Mapping[str, Any], field: str) -> Conversation:
    """A prompt: a text, or chat messages, as a list, as the JSON text of one, or a single one.

    A message is `{role, content}`, where content is text or a list of parts of text, or
    `{from, value}` (ShareGPT). At most one system message comes first, then user and assistant take
    turns. An answer at the end, with its calls of tools, is left out: the student is to write its
    own. Images and calls of tools are refused.
    """
    usual = next((name for name in _USUAL if name in row), None)
    try:
        value = value_at(row, field)
    except ConfigError as error:
        remedy = f"; set prompt_field = {usual!r}" if usual else ""
        raise ConfigError(f"{error}{remedy}") from None
    where = f"field {field!r}"
    value = _stored_messages(value) or value
    if isinstance(value, Mapping):
        inside = next((name for name in _USUAL if name in value), None)
        if inside:
            raise ConfigError(f"{where} is an object: set prompt_field = '{field}.{inside}'")
        value = [value] if _said_by(value) else value
    if not isinstance(value, list):
        return Conversation("", (), _text(value, where))
    roles = []
    for each in value:
        if not isinstance(each, Mapping):
            raise ConfigError(f"{where} must hold messages with role and content, got {each!r:.60}")
        role = _ROLES.get(_said_by(each))
        if role is None:
            said = each.get("role") or each.get("from")
            raise ConfigError(
                f"{where} has a message of {said!r:.40}; read are those of {', '.join(_ROLES)}"
            )
        roles.append(role)
    first = int(roles[:1] == ["system"])
    last = len(roles)
    while last > first and roles[last - 1] in {"assistant", "tool"}:
        last -= 1
    if (last - first) % 2 == 0 or any(r != _TURNS[i % 2] for i, r in enumerate(roles[first:last])):
        raise ConfigError(
            f"{where} must be messages of the user and the assistant by turns, the user first and "
            f"after at most one message of the system, got the roles {roles!r:.80}"
        )
    contents = [_content(each, where) for each in value[:last]]
    system = contents[0] if first else ""
    *earlier, question = (_text(said, f"content in {where}") for said in contents[first:])
    return Conversation(
        "" if system in {"", None} else _text(system, f"content in {where}"),
        tuple(zip(earlier[::2], earlier[1::2], strict=True)),
        question,
        last < len(roles),
    )


def _stored_messages(value: Any) -> Any:
    """The messages that a text holds as JSON; None where it holds no messages."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    listed = found if isinstance(found, list) else [found]
    return listed if listed and all(_said_by(each) in _ROLES for each in listed) else None


def _said_by(message: Any) -> str:
    """Who says a message, in small letters; "" where it is no message."""
    said = (message.get("role") or message.get("from")) if isinstance(message, Mapping) else None
    return said.strip().lower() if isinstance(said, str) else ""


def _content(message: Mapping[str, Any], where: str) -> Any:
    """What a message says; parts are joined."""
    if message.get("tool_calls"):
        raise ConfigError(f"{where} has a message that calls a tool, which is not supported")
    content = message.get("content")
    content = message.get("value") if content is None else content
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else part
        text = part.get("text") if isinstance(part, Mapping) else part
        known = isinstance(part, str) or kind in {"text", "input_text"}
        if not known or not isinstance(text, str):
            raise ConfigError(f"{where} has a part of type {kind!r:.40}; prompts are text alone")
        texts.append(text)
    return "".join(texts)


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
