"""Answers of several turns: whose tokens they are, when they end, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.fakes import TOKENIZER, FakeEngine, bigram_table, ids, tiny_policy
from tests.support.chat import CHATML, chat_tokenizer

from effopd.data.problem import Message, Problem
from effopd.errors import ConfigError
from effopd.rollouts.engine import Completion, Request, Sampling, derive_seed
from effopd.rollouts.environment import (
    EnvironmentSettings,
    FunctionEnvironment,
    Interaction,
    as_environment,
)
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.prompts import PromptTemplate
from effopd.rollouts.rollout import Rollout, Writer, total_tokens

PROBLEMS = [Problem(id=f"p-{i}", prompt=f"{i} + 4 =") for i in range(6)]


class Counting:
    """Replies with the number of the turn, so many times, and keeps what it was asked."""

    def __init__(self, replies: int, text: str = "{turn} ;") -> None:
        self.replies, self.text = replies, text
        self.asked: list[tuple[Problem, str]] = []

    def reply(self, problem: Problem, answer: str) -> str | None:
        self.asked.append((problem, answer))
        turn = len(problem.after) // 2
        return self.text.format(turn=turn) if turn < self.replies else None


def writer(
    engine: Any, environment: Any, *, turns: int = 8, role: Any = "tool", cap: int = 400
) -> Writer:
    return Writer(
        engine=engine,
        tokenizer=TOKENIZER,
        template=PromptTemplate(),
        sampling=Sampling(max_new_tokens=cap),
        interaction=Interaction(environment=environment, max_turns=turns, role=role),
    )


def spans(rollout: Rollout) -> list[tuple[bool, tuple[int, ...]]]:
    """Consecutive tokens of one author: whether they are learned, and which."""
    completion = rollout.completion
    assert completion.learned is not None
    found: list[tuple[bool, tuple[int, ...]]] = []
    for token, learned in zip(completion.token_ids, completion.learned, strict=True):
        if found and found[-1][0] == learned:
            found[-1] = learned, (*found[-1][1], token)
        else:
            found.append((learned, (token,)))
    return found


def test_turns_and_replies_alternate_and_every_turn_goes_on_from_the_tokens_before() -> None:
    engine, environment = FakeEngine(bigram_table(1)), Counting(2)
    rollouts = writer(engine, environment).answer(PROBLEMS, range(6))
    assert {len(rollout.completion.said) for rollout in rollouts} == {4}
    by_prompt = {request.prompt_ids: request for request in engine.requests}
    for seed, rollout in enumerate(rollouts):
        completion = rollout.completion
        own = spans(rollout)
        assert [learned for learned, _ in own] == [True, False, True, False, True]
        assert [tokens for learned, tokens in own if not learned] == [ids("0 ;"), ids("1 ;")]
        # each turn was asked for with exactly what stood before it, its own seed, and what is left
        before = rollout.prompt_ids
        for turn, (learned, tokens) in enumerate(own):
            if learned:
                asked = by_prompt[before]
                number = turn // 2
                assert asked.seed == (derive_seed(seed, "turn", number) if number else seed)
                written = len(before) - len(rollout.prompt_ids)
                assert asked.max_new_tokens == 400 - written
                again = FakeEngine(bigram_table(1)).generate([asked], Sampling(max_new_tokens=400))
                assert again[0].token_ids == tokens
            before = (*before, *tokens)
        assert len(completion.log_probs) == completion.sampled_tokens == sum(completion.learned)
        assert completion.text == TOKENIZER.decode(own[-1][1], skip_special_tokens=True)
        texts = [TOKENIZER.decode(t, skip_special_tokens=True) for learned, t in own if learned]
        assert [m.content for m in completion.said] == [texts[0], "0 ;", texts[1], "1 ;"]
        assert [m.role for m in completion.said] == ["assistant", "tool"] * 2
        assert rollout.sample.learned == completion.learned
        assert rollout.answer.problem.after == completion.said
        assert rollout.answer.completion == completion.text
        assert rollout.problem.after == ()
    assert total_tokens(rollouts) == sum(len(rollout.completion.log_probs) for rollout in rollouts)


def test_the_environment_is_told_what_was_said() -> None:
    environment = Counting(1)
    (rollout,) = writer(FakeEngine(bigram_table(1)), environment).answer(PROBLEMS[:1], [0])
    first, second = environment.asked
    assert first == (PROBLEMS[0], rollout.completion.said[0].content)
    assert second == (replace(PROBLEMS[0], after=rollout.completion.said), rollout.completion.text)


def test_an_answer_depends_on_its_own_seed_alone() -> None:
    policy = tiny_policy()
    engine = HFEngine(policy.model, TOKENIZER, batch_size=4)
    environment = FunctionEnvironment(
        lambda problem, answer: None if len(answer) % 3 == 0 else f"{len(answer) % 7} ;"
    )
    together = writer(engine, environment, cap=20).answer(PROBLEMS, range(6))
    assert len({len(rollout.completion.said) for rollout in together}) > 1
    for i, rollout in enumerate(together):
        (alone,) = writer(engine, environment, cap=20).answer([PROBLEMS[i]], [i])
        assert alone.completion.token_ids == rollout.completion.token_ids
        assert alone.completion.learned == rollout.completion.learned
        assert alone.completion.log_probs == pytest.approx(rollout.completion.log_probs, abs=1e-5)


def test_log_probs_of_the_engine_are_those_of_the_learned_tokens() -> None:
    from effopd.evaluation.logprobs import completion_log_probs

    policy = tiny_policy()
    engine = HFEngine(policy.model, TOKENIZER)
    rollouts = writer(engine, Counting(3), cap=30).answer(PROBLEMS, range(6))
    scored = completion_log_probs(policy, [rollout.sample for rollout in rollouts])
    for found, rollout in zip(scored, rollouts, strict=True):
        assert found == pytest.approx(rollout.completion.log_probs, abs=1e-4)


@pytest.mark.parametrize("cap", range(1, 24))
def test_the_cap_counts_every_token(cap: int) -> None:
    """With it an answer is the start of the longer one, or of its last turn that fits."""
    engine = FakeEngine(bigram_table(1))
    long = writer(engine, Counting(3)).answer(PROBLEMS, range(6))
    short = writer(engine, Counting(3), cap=cap).answer(PROBLEMS, range(6))
    for whole, cut in zip(long, short, strict=True):
        count = len(cut.completion.token_ids)
        assert count <= cap
        assert cut.completion.token_ids == whole.completion.token_ids[:count]
        assert cut.completion.learned == whole.completion.learned[:count]  # type: ignore[index]
        assert cut.completion.learned[-1], "an answer ends with the student"  # type: ignore[index]
        is_whole = count == len(whole.completion.token_ids)
        assert cut.completion.finish_reason == ("stop" if is_whole else "length")


def test_turns_are_bounded_and_a_single_one_is_an_answer_as_ever() -> None:
    engine, environment = FakeEngine(bigram_table(1)), Counting(9)
    for turns in (1, 2, 3):
        found = writer(engine, environment, turns=turns).answer(PROBLEMS, range(6))
        assert {len(rollout.completion.said) for rollout in found} == {2 * (turns - 1)}
    single = writer(engine, environment, turns=1).answer(PROBLEMS, range(6))
    plain = replace(writer(engine, environment), interaction=None).answer(PROBLEMS, range(6))
    for one, other in zip(single, plain, strict=True):
        assert one.completion == replace(
            other.completion, learned=(True,) * len(other.completion.token_ids)
        )


# What stands between two turns --------------------------------------------------------------------

WRITTEN = "x + y<|im_end|>"


class Scripted:
    """Writes the given texts, one a turn, whatever it is asked."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.tokenizer, self.texts = tokenizer, list(texts)
        self.requests: list[Request] = []

    def sync_weights(self) -> None:
        """Nothing to do."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.requests += requests
        text = self.texts.pop(0)
        tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [
            Completion(
                token_ids=tokens,
                log_probs=(-1.0,) * len(tokens),
                finish_reason="stop",
                text=text.replace("<|im_end|>", ""),
            )
            for _ in requests
        ]


def said_in_chatml(role: str, first: str) -> str:
    """The whole text of a conversation of two turns."""
    tokenizer = chat_tokenizer(chat=CHATML)
    engine = Scripted(tokenizer, [first, "7<|im_end|>"])
    told = Writer(
        engine=engine,
        tokenizer=tokenizer,
        template=PromptTemplate(),
        sampling=Sampling(max_new_tokens=400),
        interaction=Interaction(environment=Counting(1, "it is 7"), role=role),  # type: ignore[arg-type]
    )
    (rollout,) = told.answer([Problem(id="p", prompt="3 + 4?")], [0])
    completion = rollout.completion
    written = [
        t for t, own in zip(completion.token_ids, completion.learned or (), strict=True) if own
    ]
    assert written == [
        token
        for text in (first, "7<|im_end|>")
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    return str(tokenizer.decode([*rollout.prompt_ids, *completion.token_ids]))


@pytest.mark.parametrize("role", ["tool", "user"])
@pytest.mark.parametrize("first", ["x + y<|im_end|>", "x + y"])
def test_the_frame_of_a_reply_is_the_template_s(role: str, first: str) -> None:
    """Also behind a turn that a stop string ended, which the template then ends."""
    tokenizer = chat_tokenizer(chat=CHATML)
    said = [("user", "3 + 4?"), ("assistant", "x + y"), (role, "it is 7")]
    messages = [{"role": who, "content": text} for who, text in said]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert said_in_chatml(role, first) == f"{expected}7<|im_end|>"


def test_what_the_student_wrote_is_never_tokenised_again() -> None:
    """Tokens that no tokenizer would make of their text stay as they are."""
    policy = tiny_policy()
    seen: list[Request] = []

    class Spying(HFEngine):
        def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
            seen.extend(requests)
            return super().generate(requests, sampling)

    told = writer(Spying(policy.model, TOKENIZER), Counting(4), cap=40)
    for rollout in told.answer(PROBLEMS, range(6)):
        whole = (*rollout.prompt_ids, *rollout.completion.token_ids)
        own = [r for r in seen if r.prompt_ids[: len(rollout.prompt_ids)] == rollout.prompt_ids]
        assert len(own) == len(rollout.completion.said) // 2 + 1
        assert all(whole[: len(r.prompt_ids)] == r.prompt_ids for r in own)


# Refusals -----------------------------------------------------------------------------------------

NO_TOOLS = (
    "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
)
REFUSED = [
    (NO_TOOLS, "does not write messages of 'tool': set environment.role = 'user'"),
    ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "earlier answers"),
    (
        "{{ raise_exception('no tools') if messages[-1].role == 'tool' }}",
        "environment.role = 'tool'",
    ),
]


@pytest.mark.parametrize(("template", "reason"), REFUSED)
def test_templates_that_have_no_place_for_replies(template: str, reason: str) -> None:
    interaction = Interaction(environment=Counting(1))
    with pytest.raises(ConfigError, match=reason):
        interaction.check(chat_tokenizer(chat=template), PromptTemplate(), PROBLEMS[0])
    interaction.check(chat_tokenizer(chat=CHATML), PromptTemplate(), PROBLEMS[0])


def test_bare_text_has_no_turns() -> None:
    with pytest.raises(ConfigError, match=r"environment needs prompt\.chat = true"):
        Interaction(environment=Counting(1)).check(
            TOKENIZER, PromptTemplate(chat=False), PROBLEMS[0]
        )


def test_what_is_no_environment() -> None:
    with pytest.raises(ConfigError, match="an environment must be an object with a method reply"):
        as_environment(3)
    with pytest.raises(ConfigError, match=r"must be an environment as package\.module:Class"):
        EnvironmentSettings(name="calculator")
    with pytest.raises(ConfigError, match="max_turns must be at least 1, got 0"):
        EnvironmentSettings(name="a:b", max_turns=0)
    with pytest.raises(ConfigError, match=r"environment\.name = 'json:nothing': json has no"):
        Interaction.of(EnvironmentSettings(name="json:nothing"))
    told = writer(FakeEngine(bigram_table(1)), FunctionEnvironment(lambda p, a: 7))  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="replied 7 in problem 'p-0': return text, or None"):
        told.answer(PROBLEMS, range(6))


def test_environments_by_name_class_and_function() -> None:
    assert isinstance(as_environment(lambda problem, answer: None), FunctionEnvironment)
    named = Interaction.of(EnvironmentSettings(name="json:dumps", max_turns=3, role="user"))
    assert named.environment == FunctionEnvironment(json.dumps)  # type: ignore[arg-type]
    assert (named.max_turns, named.role) == (3, "user")
    assert isinstance(as_environment(Silent), Silent)


class Silent:
    """Never replies."""

    def reply(self, problem: Problem, answer: str) -> str | None:
        return None


def test_messages_are_read_by_templates() -> None:
    made = Message(role="tool", content="7", name="add", call_id="c")
    expected = {"role": "tool", "content": "7", "name": "add", "tool_call_id": "c"}
    assert made.for_template() == expected
