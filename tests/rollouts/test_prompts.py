"""From problems to prompt tokens, and refusals."""

import pytest
from tests.fakes import TOKENIZER, WORLD, ids

from effopd.demo.world import make_tokenizer
from effopd.errors import ConfigError
from effopd.rollouts.prompts import PromptTemplate
from effopd.tasks.problem import Problem

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
        "the chat template of the tokenizer refuses prompt p-1: System role not supported"
    )


# Long prompts -------------------------------------------------------------------------------------


def test_problems_that_are_short_enough() -> None:
    longer = Problem(id="p-3", prompt="3 + 4 + 5 =")
    template = PromptTemplate(max_tokens=5)
    assert template.short_enough(TOKENIZER, [longer, PROBLEM, longer]) == [PROBLEM]
    assert template.short_enough(TOKENIZER, []) == []
    assert len(PromptTemplate(max_tokens=7).short_enough(TOKENIZER, [longer, PROBLEM])) == 2
