"""Values of a row by the name of their field, which may be dotted: `reward_model.ground_truth`."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from effopd.errors import ConfigError

_USUAL = ("messages", "conversations")
"""What fields with chat messages are mostly called."""
_TURNS = ("user", "assistant")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""What data sets call those who speak -> what chat templates call them."""
_LEVEL = re.compile(r"(?:Level )?(-?\d{1,9}(?:\.\d{1,9})?)")


class Conversation(NamedTuple):
    """What a prompt says.

    Attributes:
        system: System message; "" for none.
        turns: Earlier questions, each with its answer.
        question: What is to be answered.
        answered: Whether an answer followed, as in data for supervised training; it is left out.
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
    """A prompt: a text, or a list of chat messages.

    A message is `{role, content}`, where content is text or a list of parts of text, or
    `{from, value}` (ShareGPT). At most one system message comes first, then user and assistant take
    turns. An answer at the end is left out: the student is to write its own.

    Raises:
        ConfigError: It is neither, a message comes out of turn, or one is no text (an image, a
            call of a tool).
    """
    usual = next((name for name in _USUAL if name in row), None)
    try:
        value = value_at(row, field)
    except ConfigError as error:
        remedy = f"; set prompt_field = {usual!r}" if usual else ""
        raise ConfigError(f"{error}{remedy}") from None
    if not isinstance(value, list):
        return Conversation("", (), _text(value, f"field {field!r}"))
    messages = [_message(each, f"field {field!r}") for each in value]
    spoken = messages[1:] if messages and messages[0][0] == "system" else messages
    system = messages[0][1] if spoken is not messages else ""
    if answered := bool(spoken) and spoken[-1][0] == "assistant":
        spoken = spoken[:-1]
    if len(spoken) % 2 == 0 or any(r != _TURNS[i % 2] for i, (r, _) in enumerate(spoken)):
        raise ConfigError(
            f"field {field!r} must be messages of the user and the assistant by turns, the user "
            "first and after at most one message of the system, got the roles "
            f"{[role for role, _ in messages]!r:.80}"
        )
    *earlier, question = (_text(said, f"content in field {field!r}") for _, said in spoken)
    return Conversation(
        "" if system in {"", None} else _text(system, f"content in field {field!r}"),
        tuple(zip(earlier[::2], earlier[1::2], strict=True)),
        question,
        answered,
    )


def _message(message: Any, where: str) -> tuple[str, Any]:
    """Role and content of a chat message, in OpenAI's form or ShareGPT's; parts are joined."""
    if not isinstance(message, Mapping):
        raise ConfigError(f"{where} must hold messages with role and content, got {message!r:.60}")
    keys = ("role", "content") if message.get("role") is not None else ("from", "value")
    said, content = (message.get(key) for key in keys)
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise ConfigError(
            f"{where} has a message of {said!r:.40}; read are those of {', '.join(_ROLES)}"
        )
    if message.get("tool_calls"):
        raise ConfigError(f"{where} has a message that calls a tool, which is not supported")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    return role, content


def _part(part: Any, where: str) -> str:
    """The text of one part of a message's content."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else part
    if kind not in {"text", "input_text"} or not isinstance(part.get("text"), str):
        raise ConfigError(f"{where} has a part of type {kind!r:.40}; prompts are text alone")
    return str(part["text"])


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
