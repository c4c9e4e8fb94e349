"""From problems to prompt tokens, and refusals."""

from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from tests.fakes import TOKENIZER, WORLD, ids
from tests.support.chat import CHATML, chat_tokenizer
from tokenizers.processors import TemplateProcessing

from effopd.data.problem import Message, Problem
from effopd.data.world import make_tokenizer
from effopd.errors import ConfigError
from effopd.rollouts.prompts import PromptTemplate, lend_template_, prompt_remarks

PROBLEM = Problem(id="p-1", prompt="3 + 4 =")
WITH_SYSTEM = Problem(id="p-2", prompt="3 + 4 =", system="; ;")
ROLES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}# {% endif %}{{ m['content'] }} "
    "{% endfor %}"
)
"""A chat template that marks system messages with `#`."""


def test_plain_and_chat_prompts_of_the_world_are_the_same_tokens() -> None:
    expected = ids("<bos> 3 + 4 =")
    assert PromptTemplate(chat=False).encode(TOKENIZER, PROBLEM) == expected
    assert PromptTemplate(chat=True).encode(TOKENIZER, PROBLEM) == expected


def test_thinking_and_the_generation_prompt_reach_the_template() -> None:
    tokenizer = make_tokenizer(WORLD)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] == 'user' and m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} #{% endif %}{% if enable_thinking %} ;{% endif %}"
    )
    found = [PromptTemplate(enable_thinking=on).encode(tokenizer, PROBLEM) for on in (False, True)]
    # The template adds no start token and the tokenizer must not add one of its own.
    assert found == [ids("3 + 4 = #"), ids("3 + 4 = # ;")]


def test_no_chat_template() -> None:
    tokenizer = make_tokenizer(WORLD)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"no chat template: set prompt\.chat = false"):
        PromptTemplate().encode(tokenizer, PROBLEM)
    assert PromptTemplate(chat=False).encode(tokenizer, PROBLEM) == ids("<bos> 3 + 4 =")


def test_length_limits() -> None:
    assert len(PromptTemplate(max_tokens=5).encode(TOKENIZER, PROBLEM)) == 5
    with pytest.raises(ConfigError) as error:
        PromptTemplate(max_tokens=4).encode(TOKENIZER, PROBLEM)
    assert str(error.value) == (
        "prompt p-1 has 5 tokens; allowed are 1 to 4 (prompt.max_tokens, prompt.too_long)"
    )


def test_empty_prompt() -> None:
    tokenizer = make_tokenizer(WORLD)
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(ConfigError, match="p-1 has 0 tokens"):
        PromptTemplate().encode(tokenizer, PROBLEM)


def test_a_limit_below_one() -> None:
    with pytest.raises(ConfigError, match="max_tokens must be at least 1, got 0"):
        PromptTemplate(max_tokens=0)


# System messages ----------------------------------------------------------------------------------


def test_system_messages_of_the_settings_and_of_the_data() -> None:
    tokenizer = make_tokenizer(WORLD)
    tokenizer.chat_template = ROLES
    assert PromptTemplate().encode(tokenizer, PROBLEM) == ids("3 + 4 =")
    assert PromptTemplate(system=";").encode(tokenizer, PROBLEM) == ids("# ; 3 + 4 =")
    assert PromptTemplate().encode(tokenizer, WITH_SYSTEM) == ids("# ; ; 3 + 4 =")


def test_two_system_messages_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        PromptTemplate(system=";").encode(TOKENIZER, WITH_SYSTEM)
    assert str(error.value) == (
        "prompt p-2 brings a system message of its own, so does prompt.system: leave out one of "
        "them (task.train.system = 'drop')"
    )


def test_bare_text_has_no_system_message() -> None:
    with pytest.raises(ConfigError, match="system needs chat = true"):
        PromptTemplate(chat=False, system=";")
    with pytest.raises(ConfigError, match=r"p-2 brings a system message .* bare text has no place"):
        PromptTemplate(chat=False).encode(TOKENIZER, WITH_SYSTEM)


def test_a_chat_template_without_system_messages() -> None:
    tokenizer = make_tokenizer(WORLD)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ConfigError) as error:
        PromptTemplate(system=";").encode(tokenizer, PROBLEM)
    assert str(error.value) == (
        "the chat template of the tokenizer refuses prompt p-1: System role not supported "
        "(without the prompt's system message: prompt.system = '')"
    )


# Conversations and arguments of templates ---------------------------------------------------------

EARLIER = (Message(role="user", content="q"), Message(role="assistant", content="a"))
SPOKEN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}"


def shown(template: str, prompt: PromptTemplate, problem: Problem = PROBLEM) -> str:
    tokenizer = chat_tokenizer(chat=template)
    return str(tokenizer.decode(prompt.encode(tokenizer, problem)))


def test_earlier_turns_come_before_the_question() -> None:
    said = [("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")]
    turns = tuple(Message(role=role, content=text) for role, text in said)
    problem = Problem(id="p", prompt="r", system="s", turns=turns)
    assert shown(SPOKEN, PromptTemplate(), problem) == "s:s|u:q|a:a|u:q2|a:a2|u:r|"
    with pytest.raises(
        ConfigError, match="conversation of several turns or with tools, which bare"
    ):
        PromptTemplate(chat=False).encode(TOKENIZER, replace(problem, system=""))


TOOLS = (
    "{% if tools %}[{% for tool in tools %}{{ tool.name }},{% endfor %}]{% endif %}"
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}({{ c.function.arguments.a }}){% endfor %}|{% endfor %}a:"
)
CALLED = Message(
    role="assistant", content="", tool_calls=({"name": "f", "arguments": {"a": 1}, "id": "c"},)
)
AFTER = Problem(
    id="p",
    prompt="r",
    turns=(*EARLIER[:1], CALLED, Message(role="tool", content="2"), EARLIER[1]),
    after=(CALLED, Message(role="tool", content="3", call_id="c")),
    tools=({"name": "f"}, {"name": "g"}),
)


def test_tools_their_calls_and_results_reach_the_template() -> None:
    spoken = "u:q|a:f(1)|t:2|a:a|u:r|a:f(1)|t:3|a:"
    assert shown(TOOLS, PromptTemplate(), AFTER) == f"[f,g,]{spoken}"
    assert shown(TOOLS, PromptTemplate(), replace(AFTER, tools=())) == spoken
    with pytest.raises(ConfigError, match="or with tools, which bare text has no place for"):
        PromptTemplate(chat=False).encode(TOKENIZER, Problem(id="p", prompt="r", tools=AFTER.tools))


LEFT_OUT = [
    ("tools", TOOLS.replace("if tools", "if false")),
    ("calls of tools", TOOLS.replace("c.function.name", "''")),
    ("results of tools", TOOLS.replace("m.content", "m.content if m.role != 'tool'")),
]


@pytest.mark.parametrize(("what", "template"), LEFT_OUT)
def test_a_template_that_leaves_tools_out_is_refused(what: str, template: str) -> None:
    with pytest.raises(ConfigError, match=f"does not write the {what} of prompt p: use a model"):
        shown(template, PromptTemplate(), AFTER)


def test_a_template_that_refuses_turns_names_the_prompt() -> None:
    template = "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    with pytest.raises(ConfigError, match="refuses prompt p: one at a time"):
        shown(template, PromptTemplate(), Problem(id="p", prompt="r", turns=EARLIER))
    with pytest.raises(ConfigError, match="the chat template of the tokenizer refuses prompt p-1"):
        shown("{{ messages[0].content + 1 }}", PromptTemplate())


EFFORT = "{{ thinking }}/{{ reasoning_effort }}/{{ enable_thinking }}"


def test_arguments_reach_the_template() -> None:
    given = PromptTemplate(template_kwargs={"thinking": True, "reasoning_effort": "low"})
    assert shown(EFFORT, given) == "True/low/False"
    assert given.unread(chat_tokenizer(chat=EFFORT)) == []


@pytest.mark.parametrize(
    "template",
    [
        "{# thinkng #}thinkng {{ messages[0].thinkng }}",
        "{% set thinkng = 1 %}{{ thinkng }}{% generation %}x{% endgeneration %}",
        {"default": "x", "tool_use": "{{ thinkng }}"},
    ],
)
def test_an_argument_that_is_never_read_is_refused(template: Any) -> None:
    tokenizer = chat_tokenizer(chat=template)
    tokenizer.name_or_path = "some/model"
    prompt = PromptTemplate(template_kwargs={"thinkng": True})
    with pytest.raises(ConfigError) as error:
        prompt.check_arguments(tokenizer)
    assert str(error.value) == (
        "prompt.template_kwargs has 'thinkng', which the chat template of some/model never reads: "
        "correct the name, or remove it"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% if not thinkng is defined %}{% set thinkng = false %}{% endif %}{{ thinkng }}",
        "{% set thinkng = thinkng | default(false) %}",
        "{% macro f() %}{{ thinkng }}{% endmacro %}{%- generation -%}{{ f() }}{% endgeneration %}",
        "{% for m in messages %}{% if thinkng %}{% break %}{% endif %}{% endfor %}",
    ],
)
def test_ways_to_read_an_argument(template: str) -> None:
    assert not PromptTemplate(template_kwargs={"thinkng": 1}).unread(chat_tokenizer(chat=template))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"add_generation_prompt": False}, "must not hold 'add_generation_prompt', which effopd"),
        ({"tools": []}, "must not hold 'tools'"),
        ({"tokenize": False, "messages": []}, "must not hold 'messages'"),
        ({"strftime_now": "x"}, "must not hold 'strftime_now'"),
        ({"enable_thinking": True}, r"a setting of its own: set prompt\.enable_thinking"),
    ],
)
def test_reserved_arguments_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptTemplate(template_kwargs=given)


def test_bare_text_has_no_arguments() -> None:
    with pytest.raises(ConfigError, match="template_kwargs needs chat = true"):
        PromptTemplate(chat=False, template_kwargs={"thinking": True})


def test_the_date_in_a_template_is_the_one_that_was_set() -> None:
    template = "{{ strftime_now('%d %b %Y %H:%M') }}"
    assert shown(template, PromptTemplate(date="2024-07-26")) == "26 Jul 2024 00:00"
    before = date.today()
    written = shown(template, PromptTemplate())
    inside = (
        "\n  {% macro f(x) %}{{ strftime_now(x) }}{% endmacro %}"
        "{% if strftime_now is defined %}{% for m in messages %}\n"
        "{{ f('%-d.%-m.%y 100%%') }}{{ m.content }}{% endfor %}{% endif %}"
    )
    assert shown(inside, PromptTemplate(date="2024-07-06")) == "\n6.7.24 100%3 + 4 ="
    assert written in {day.strftime("%d %b %Y 00:00") for day in (before, date.today())}
    with pytest.raises(ConfigError, match="date must be a day such as \"2026-01-31\", got 'today'"):
        PromptTemplate(date="today")


def test_a_teacher_without_a_template_is_lent_the_students() -> None:
    student, teacher = chat_tokenizer(), chat_tokenizer(chat=None)
    assert lend_template_(student, teacher)
    assert teacher.chat_template == student.chat_template
    own = chat_tokenizer(chat=SPOKEN)
    assert not lend_template_(student, own)
    assert own.chat_template == SPOKEN
    assert not lend_template_(chat_tokenizer(chat=None), chat_tokenizer(chat=None))


# What would go wrong ------------------------------------------------------------------------------


def remarks(tokenizer: Any, cap: int = 10, positions: int | None = None, **settings: Any) -> Any:
    problems = [PROBLEM, Problem(id="long", prompt="x" * 50)]
    found = prompt_remarks(
        PromptTemplate(**settings), tokenizer, problems, ends=(2,), cap=cap, positions=positions
    )
    return list(found)


def test_nothing_is_said_of_sound_prompts() -> None:
    assert remarks(chat_tokenizer(), positions=512) == []
    assert remarks(chat_tokenizer(), chat=False) == []


def test_a_prompt_that_ends_with_an_end_token_is_told() -> None:
    deaf = chat_tokenizer(chat=CHATML.partition("{% if add")[0])
    (found,) = remarks(deaf)
    assert found == (
        "prompts end with '<|im_end|>', at which answers end; the chat template pays no heed to "
        "add_generation_prompt: mend it"
    )
    adding = chat_tokenizer()
    adding._tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)]
    )
    (found,) = remarks(adding, chat=False)
    assert "the tokenizer adds it: set add_eos_token = false" in found
    assert remarks(adding) == []


def test_texts_longer_than_the_model_is_made_for_are_told() -> None:
    tokenizer = chat_tokenizer()
    longest = len(PromptTemplate().encode(tokenizer, Problem(id="long", prompt="x" * 50)))
    assert remarks(tokenizer, cap=10, positions=longest + 10) == []
    (found,) = remarks(tokenizer, cap=11, positions=longest + 10)
    assert found == (
        f"a prompt of {longest} tokens and an answer of 11 (sampling.max_new_tokens) take more "
        f"than the {longest + 10} positions that the model is made for: lower "
        "sampling.max_new_tokens or prompt.max_tokens"
    )


# Long prompts -------------------------------------------------------------------------------------


def test_problems_that_are_short_enough() -> None:
    longer = Problem(id="p-3", prompt="3 + 4 + 5 =")
    template = PromptTemplate(max_tokens=5)
    assert template.short_enough(TOKENIZER, [longer, PROBLEM, longer]) == [PROBLEM]
    assert template.short_enough(TOKENIZER, []) == []
    assert len(PromptTemplate(max_tokens=7).short_enough(TOKENIZER, [longer, PROBLEM])) == 2
