"""Values by dotted names, and what is refused."""

import json
import math
from typing import Any

import pytest

from effopd.data.fields import Conversation, conversation_at, level_at, text_at, tools_at
from effopd.data.problem import Message
from effopd.errors import ConfigError

ROW = {"a": "x", "b": {"c": "y", "d": {"e": 7}}, "b.c": "column", "list": ["z"], "": "empty name"}


def test_paths_and_columns_with_a_dot() -> None:
    assert text_at(ROW, "a") == "x"
    assert text_at(ROW, "b.d.e") == "7"
    assert text_at(ROW, "b.c") == "column", "the column of this very name comes first"
    assert text_at({"b": ROW["b"]}, "b.c") == "y"


MISSING = [
    ("z", "no field 'z'; the row has 'a', 'b', 'b.c', 'list', ''"),
    ("b.z", "no field 'b.z'; 'b' has 'c', 'd'"),
    ("b.d.z", "no field 'b.d.z'; 'd' has 'e'"),
    ("a.z", "no field 'a.z'; 'a' is no object"),
    ("list.0", "no field 'list.0'; 'list' is no object"),
]


@pytest.mark.parametrize(("field", "message"), MISSING)
def test_missing_fields_say_what_is_there(field: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        text_at(ROW, field)
    assert str(error.value) == message


def test_a_row_without_fields() -> None:
    with pytest.raises(ConfigError, match="the row has no fields"):
        text_at({}, "a")


NO_TEXT = [None, True, [], {}, b"x", "", " \n", math.nan, math.inf, "half \ud83d", "\udfff"]


@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
def test_no_text(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^field 'f' "):
        text_at({"f": value}, "f")


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (4.5, "4.5"), (" x ", " x "), ("😀", "😀")])
def test_text(value: Any, text: str) -> None:
    assert text_at({"f": value}, "f") == text


LEVELS = [(3, 3.0), (4.5, 4.5), ("Level 5", 5.0), (" 6.5 ", 6.5), ("-1", -1.0)]


@pytest.mark.parametrize(("value", "level"), LEVELS)
def test_levels(value: Any, level: float) -> None:
    assert level_at({"f": value}, "f") == level


@pytest.mark.parametrize(
    "value", ["Level ?", "hard", "", None, True, math.nan, -math.inf, "1e9", [1]]
)
def test_no_level(value: Any) -> None:
    with pytest.raises(ConfigError, match="field 'f' must be a number"):
        level_at({"f": value}, "f")


def message(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def turns_of(*texts: str) -> tuple[Message, ...]:
    """What user and assistant say by turns."""
    return tuple(
        Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)
    )


def test_conversations() -> None:
    user, system = message("user", "q"), message("system", "s")
    assert conversation_at({"f": "q"}, "f") == Conversation("", (), "q")
    assert conversation_at({"f": [user]}, "f") == Conversation("", (), "q")
    assert conversation_at({"f": [system, user]}, "f") == Conversation("s", (), "q")


FIRST, ANSWER, SECOND = (
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "and 3?"},
)


def test_earlier_turns_stay_and_an_answer_at_the_end_does_not() -> None:
    turns = turns_of("1 + 1?", "2")
    several = conversation_at({"f": [FIRST, ANSWER, SECOND]}, "f")
    assert several == Conversation("", turns, "and 3?")
    assert several.asked == "1 + 1?\nand 3?"
    trained = conversation_at({"f": [message("system", "s"), FIRST, ANSWER, SECOND, ANSWER]}, "f")
    assert trained == Conversation("s", turns, "and 3?", answered=True)
    assert conversation_at({"f": [FIRST, ANSWER]}, "f") == Conversation("", (), "1 + 1?", True)


@pytest.mark.parametrize(
    "first",
    [
        {"from": "human", "value": "q"},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "user", "content": [{"type": "text", "text": "q", "image": None}]},
        {"role": "user", "content": "q", "name": None, "tool_calls": None, "from": None},
        {"role": None, "content": None, "from": "user", "value": "q"},
        {"role": "User", "value": "q"},
        {"from": "human", "content": "q"},
        {"role": "user", "content": [{"text": "q"}]},
    ],
    ids=repr,
)
def test_forms_of_messages(first: dict[str, Any]) -> None:
    assert conversation_at({"f": [first]}, "f") == Conversation("", (), "q")


def test_conversations_of_sharegpt() -> None:
    said = [("system", "s"), ("human", "q"), ("gpt", "a"), ("human", "r"), ("gpt", "b")]
    value = [{"from": who, "value": text} for who, text in said]
    assert conversation_at({"f": value}, "f") == Conversation("s", turns_of("q", "a"), "r", True)


def test_what_follows_the_last_question_is_its_answer() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}
    pair = [message("assistant", "a"), {"from": "gpt", "value": "b"}]
    for behind in ([call, message("tool", "x"), ANSWER], [message("gpt", "x")], pair):
        value = [message("user", "q"), *behind]
        assert conversation_at({"f": value}, "f") == Conversation("", (), "q", True)


def call(name: str, arguments: Any, **others: Any) -> dict[str, Any]:
    made = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [made | others]}


CALL, RESULT = call("add", '{"a": 1, "b": 1}'), {"role": "tool", "content": "2"}
ADD = {"name": "add", "arguments": {"a": 1, "b": 1}}


def test_results_of_tools_are_gone_on_from() -> None:
    called = Message(role="assistant", content="", tool_calls=({**ADD, "id": "c1"},))
    result = Message(role="tool", content="2")
    found = conversation_at({"f": [FIRST, CALL, RESULT]}, "f")
    assert found == Conversation("", (), "1 + 1?", False, (called, result))
    # calls and results of earlier turns stay, with what tells several results apart
    named = {"role": "tool", "content": "", "name": "add", "tool_call_id": "c1"}
    silent = Message(role="tool", content="", name="add", call_id="c1")
    value = [FIRST, CALL, named, RESULT, ANSWER, SECOND]
    two = Message(role="assistant", content="2")
    turns = (*turns_of("1 + 1?"), called, silent, result, two)
    assert conversation_at({"f": value}, "f") == Conversation("", turns, "and 3?")
    assert conversation_at({"f": value}, "f").asked == "1 + 1?\nand 3?"
    assert conversation_at({"f": [*value, CALL, RESULT, ANSWER]}, "f").answered


CALLS = [
    {"role": "assistant", "content": "", "tool_calls": [ADD]},
    {"role": "assistant", "content": None, "tool_calls": json.dumps([ADD])},
    {"role": "assistant", "content": "", "tool_calls": json.dumps(ADD)},
    call("add", {"a": 1, "b": 1, "c": None}, id=None),
    {"from": "function_call", "value": json.dumps(ADD)},
]


@pytest.mark.parametrize("called", CALLS, ids=repr)
def test_forms_of_calls(called: dict[str, Any]) -> None:
    found = conversation_at({"f": [FIRST, called, RESULT]}, "f").after[0]
    assert found == Message(role="assistant", content="", tool_calls=(ADD,))
    function = {"type": "function", "function": ADD}
    assert found.for_template() == {"role": "assistant", "content": "", "tool_calls": [function]}


def test_schemas_of_tools() -> None:
    schema = {"type": "function", "function": {"name": "add", "description": None}}
    read = ({"type": "function", "function": {"name": "add"}},)
    assert tools_at({"f": [schema]}, "f") == tools_at({"f": json.dumps([schema])}, "f") == read
    assert tools_at({"f": None}, "f") == tools_at({"f": []}, "f") == tools_at({"f": ""}, "f") == ()
    for wrong in ("add", '{"name": "add"}', ["add"], 3):
        with pytest.raises(ConfigError, match="field 'f'"):
            tools_at({"f": wrong}, "f")


def test_messages_stored_as_text_or_alone() -> None:
    told = Conversation("", (), "1 + 1?", True)
    assert conversation_at({"f": json.dumps([FIRST, ANSWER])}, "f") == told
    assert conversation_at({"f": FIRST}, "f") == told._replace(answered=False)
    for text in ("[1, 2]", "[]", '{"role": "admin"}', "{", '[{"role": "x", "content": "q"}]'):
        assert conversation_at({"f": text}, "f") == Conversation("", (), text)
    with pytest.raises(ConfigError, match=r"set prompt_field = 'f\.messages'"):
        conversation_at({"f": {"messages": [FIRST]}}, "f")


def test_the_usual_field_of_messages_is_named() -> None:
    with pytest.raises(ConfigError, match=r"has 'messages', 'id'; set prompt_field = 'messages'"):
        conversation_at({"messages": [FIRST], "id": 1}, "question")


def test_parts_are_joined_and_an_empty_system_message_is_none() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    value = [message("system", ""), message("user", parts)]
    assert conversation_at({"f": value}, "f") == Conversation("", (), "a b")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([message("user", [{"type": "image_url", "image_url": {}}])], "a part of type 'image_url'"),
        ([message("user", [{"type": "image"}, {"type": "text", "text": "q"}])], "type 'image'"),
        ([message("x", "a")], "a message of 'x'; read are those of system, developer, user"),
        ([message("tool", "a")], r"got the roles \['tool'\]"),
        ([FIRST, message("tool", "a")], r"got the roles \['user', 'tool'\]"),
        ([FIRST, ANSWER, message("tool", "a"), SECOND], "results of tools behind the assistant"),
        ([FIRST, CALL, SECOND], "a call of a tool without a result"),
        ([FIRST, {**CALL, "tool_calls": [{}]}, RESULT], r"no \{name, arguments\}"),
        ([FIRST, {**CALL, "tool_calls": "f(2)"}, RESULT], r"no \{name, arguments\}"),
        ([FIRST, call("f", "2"), RESULT], "with arguments as an object"),
        ([FIRST, {"from": "function_call", "value": "f(2)"}, RESULT], r"got 'f\(2\)'"),
        ([FIRST, CALL, message("tool", {"a": 1})], "must be text or a number"),
        ([ANSWER, FIRST], r"got the roles \['assistant', 'user'\]"),
        ([message("user", 1), message("assistant", None), message("user", "q")], "got None"),
    ],
    ids=repr,
)
def test_what_is_no_conversation_is_named(value: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        conversation_at({"f": value}, "f")


NO_CONVERSATION = [
    [],
    [message("system", "s")],
    [message("assistant", "a")],
    [message("user", "q"), message("user", "q")],
    [message("user", "q"), message("system", "s")],
    [message("user", None)],
    [message("user", "")],
    [message("system", " "), message("user", "q")],
    [message("user", "\ud83d")],
    ["user"],
    [{"content": "q"}],
    {"role": "user"},
    {"text": "q"},
    None,
]


@pytest.mark.parametrize("value", NO_CONVERSATION, ids=repr)
def test_no_conversation(value: Any) -> None:
    with pytest.raises(ConfigError, match="field 'f'"):
        conversation_at({"f": value}, "f")
