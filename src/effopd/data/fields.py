"""Values of a row by the name of their field, which may be dotted: `reward_model.ground_truth`."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from effopd.data.problem import Message
from effopd.errors import ConfigError

_USUAL = ("messages", "conversations")
"""What fields with chat messages are mostly called."""
_ROLES = {
    name: role
    for role, names in {
        "system": "system developer",
        "user": "user human",
        "assistant": "assistant gpt chatgpt bot model function_call",
        "tool": "tool function function_response observation ipython",
    }.items()
    for name in names.split()
}
"""What data sets call those who speak, in small letters -> what chat templates call them."""
_BEFORE = {
    "system": [],
    "user": [[], ["assistant"]],
    "assistant": [["user"], ["tool"]],
    "tool": [["assistant"], ["tool"]],
}
"""Who may have spoken before whom; the first has nobody before."""
_LEVEL = re.compile(r"(?:Level )?(-?\d{1,9}(?:\.\d{1,9})?)")


class Conversation(NamedTuple):
    """What a prompt says: a system message or "", earlier messages, the last question of the user.

    Messages `after` it end with a tool's result. `answered` if an answer followed the question, as
    in data for supervised training; it is left out.
    """

    system: str
    turns: tuple[Message, ...]
    question: str
    answered: bool = False
    after: tuple[Message, ...] = ()

    @property
    def asked(self) -> str:
        """All that the user says."""
        earlier = [message.content for message in self.turns if message.role == "user"]
        return "\n".join([*earlier, self.question])


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
    turns; results of tools may follow the assistant. Where the assistant has the last word, what
    follows the last question is left out, with its calls of tools: the student is to write its own.
    Where a tool has it, the student goes on from there. Images are refused.
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
    # The last question; behind an answer to it nothing is read.
    first = int(roles[:1] == ["system"])
    question = max((i for i, role in enumerate(roles) if role == "user"), default=-1)
    answered = roles[-1:] == ["assistant"]
    end = question + 1 if answered else len(roles)
    turns = roles[first:end]
    wrong = next((i for i, role in enumerate(turns) if turns[i - 1 : i] not in _BEFORE[role]), None)
    if question < 0 or wrong is not None:
        raise ConfigError(
            f"{where} must be messages of the user and the assistant by turns, the user first and "
            "after at most one message of the system, with results of tools behind the assistant, "
            f"got the roles {roles!r:.80}"
        )
    system = _content(value[0], where) if first else ""
    messages = [_message(*pair, where) for pair in zip(turns, value[first:end], strict=True)]
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        if message.tool_calls and (following is None or following.role != "tool"):
            raise ConfigError(
                f"{where} has a call of a tool without a result: a message of the tool must follow"
            )
    place = question - first
    return Conversation(
        "" if system in {"", None} else _text(system, f"content in {where}"),
        tuple(messages[:place]),
        messages[place].content,
        answered,
        tuple(messages[place + 1 :]),
    )


def tools_at(row: Mapping[str, Any], field: str) -> tuple[Mapping[str, Any], ...]:
    """JSON schemas of tools: a list of objects, or the JSON text of one; () where it is null."""
    value = value_at(row, field)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"field {field!r} is not JSON: {error}") from None
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise ConfigError(f"field {field!r} must be a list of schemas of tools, got {value!r:.60}")
    return tuple(map(_filled, value))


def _message(role: str, message: Mapping[str, Any], where: str) -> Message:
    """A message of the user, the assistant or a tool."""
    content, what = _content(message, where), f"content in {where}"
    if role == "tool":
        named = {"name": message.get("name"), "call_id": message.get("tool_call_id")}
        names = {key: _text(value, f"{key} in {where}") for key, value in named.items() if value}
        return Message(role="tool", content="" if content == "" else _text(content, what), **names)
    if role == "user":
        return Message(role="user", content=_text(content, what))
    calls = message.get("tool_calls") or ()
    if _said_by(message) == "function_call":  # ShareGPT: the call is the text
        calls, content = content, ""
    if isinstance(calls, str):
        try:
            calls = json.loads(calls)
        except (ValueError, RecursionError):
            calls = [calls]  # refused below
        calls = [calls] if isinstance(calls, Mapping) else calls
    found = tuple(_call(each, where) for each in calls)
    is_silent = bool(found) and content in {"", None}
    return Message(
        role="assistant", content="" if is_silent else _text(content, what), tool_calls=found
    )


def _call(call: Any, where: str) -> dict[str, Any]:
    """One call, `{name, arguments}`, maybe in `function`, arguments maybe as JSON text."""
    found = call if isinstance(call, Mapping) else {}
    function = found.get("function") if isinstance(found.get("function"), Mapping) else found
    name, arguments = function.get("name"), function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, Mapping):
        raise ConfigError(
            f"{where} has a call of a tool that is no {{name, arguments}} with arguments as an "
            f"object, got {call!r:.80}"
        )
    own = {"id": str(found["id"])} if found.get("id") else {}
    return {"name": name, "arguments": _filled(arguments), **own}


def _filled(value: Any) -> Any:
    """Without fields that are null: columns of one type give every object the fields of all."""
    if isinstance(value, Mapping):
        return {key: _filled(each) for key, each in value.items() if each is not None}
    return [_filled(each) for each in value] if isinstance(value, list) else value


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
