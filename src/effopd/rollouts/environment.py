"""Answers of several turns: the student writes, an environment replies, the student goes on.

The tokens of an answer are what the student sampled, exactly as it sampled them, and between its
turns those of the replies, which are attended to and neither learned nor scored. What stands
between two turns is what the chat template writes there: it is rendered with a mark in the place of
the student's turn, and everything behind the mark is the reply with what is around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from effopd.data.problem import Message, Problem, imported, is_path
from effopd.errors import ConfigError
from effopd.models.tokenizers import special_ids
from effopd.rollouts.engine import Completion, Engine, Request, Sampling, derive_seed
from effopd.rollouts.prompts import PromptTemplate

_MARK = "TheAnswerStandsHere"


class Environment(Protocol):
    """What replies to the student: a tool, a user, a game.

    The same problem and answer have to get the same reply: a run is continued exactly where they
    do. What it raises ends the run.
    """

    def reply(self, problem: Problem, answer: str) -> str | None:
        """The reply to the student's turn `answer`, text without special tokens; None ends it.

        What was said before that turn and after the question is in `problem.after`: the student's
        earlier turns, each with its reply.
        """
        ...


Reply = Callable[[Problem, str], str | None]
"""`Environment.reply` as a function."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """An environment by name, and the bounds of an answer in it.

    All tokens of an answer, those of replies included, are at most `sampling.max_new_tokens`.

    Attributes:
        name: `package.module:Class`, a class without arguments, an object, or a function
            `(problem, answer) -> reply`.
        max_turns: Turns that the student has in an answer, at most.
        role: Who the replies are from, as chat templates name them.
    """

    name: str
    max_turns: int = 8
    role: Literal["tool", "user"] = "tool"

    def __post_init__(self) -> None:
        if not is_path(self.name):
            raise ConfigError(
                f"name must be an environment as package.module:Class, got {self.name!r}"
            )
        if self.max_turns < 1:
            raise ConfigError(f"max_turns must be at least 1, got {self.max_turns}")


@dataclass(frozen=True)
class FunctionEnvironment:
    """Asks a function."""

    function: Reply

    def reply(self, problem: Problem, answer: str) -> str | None:
        """What the function returns."""
        return self.function(problem, answer)


def as_environment(given: Any) -> Environment:
    """An environment as it is, its class, or a function `(problem, answer) -> reply or None`."""
    if isinstance(given, type) and callable(getattr(given, "reply", None)):
        given = given()
    if callable(getattr(given, "reply", None)):
        return given
    if not callable(given):
        raise ConfigError(
            "an environment must be an object with a method reply(problem, answer) -> text or "
            f"None, or such a function, got {given!r:.200}"
        )
    return FunctionEnvironment(given)


@dataclass(kw_only=True)
class _Talk:
    """An answer that is being written; `problem.after` grows with it."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    seed: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    said: tuple[Message, ...] = ()
    text: str = ""
    finish_reason: Literal["stop", "length"] = "length"

    def completion(self) -> Completion:
        """What was written, replies included."""
        return Completion(
            token_ids=tuple(self.token_ids),
            log_probs=tuple(self.log_probs),
            finish_reason=self.finish_reason,
            text=self.text,
            learned=tuple(self.learned),
            said=self.said,
        )


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """An environment and the bounds of an answer in it, see `EnvironmentSettings`."""

    environment: Environment
    max_turns: int = 8
    role: Literal["tool", "user"] = "tool"

    @classmethod
    def of(
        cls, settings: EnvironmentSettings | None, given: Environment | None = None
    ) -> "Interaction | None":
        """That of the settings, with the environment that is given in the place of the named."""
        if settings is None:
            return None
        hint = "name a class with a method reply(problem, answer) -> text or None"
        found = given or as_environment(imported(settings.name, "environment.name", hint))
        return cls(environment=found, max_turns=settings.max_turns, role=settings.role)

    def completions(
        self,
        engine: Engine,
        tokenizer: Any,
        template: PromptTemplate,
        sampling: Sampling,
        problems: Sequence[Problem],
        prompts: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """One answer a problem, in order; turns of all that go on are written together.

        The first turn has the answer's own seed, turn t that of `(seed, "turn", t)`, so that an
        answer depends on nothing else in the batch.
        """
        rows = zip(problems, prompts, seeds, strict=True)
        talks = [_Talk(problem=p, prompt_ids=ids, seed=seed) for p, ids, seed in rows]
        going_on = talks
        for turn in range(self.max_turns):
            requests = [
                Request(
                    prompt_ids=(*talk.prompt_ids, *talk.token_ids),
                    seed=derive_seed(talk.seed, "turn", turn) if turn else talk.seed,
                    max_new_tokens=sampling.max_new_tokens - len(talk.token_ids),
                )
                for talk in going_on
            ]
            for talk, written in zip(going_on, engine.generate(requests, sampling), strict=True):
                talk.token_ids += written.token_ids
                talk.log_probs += written.log_probs
                talk.learned += [True] * len(written.token_ids)
                talk.text, talk.finish_reason = written.text, written.finish_reason
            if turn + 1 == self.max_turns:
                break
            cap = sampling.max_new_tokens
            going_on = [t for t in going_on if self._replies(t, tokenizer, template, cap)]
            if not going_on:
                break
        return [talk.completion() for talk in talks]

    def _replies(self, talk: _Talk, tokenizer: Any, template: PromptTemplate, cap: int) -> bool:
        """Adds the reply to the last turn; whether the student goes on after it."""
        if talk.finish_reason == "length":  # a turn that was cut says nothing
            return False
        reply = self.environment.reply(talk.problem, talk.text)
        if reply is None:
            return False
        if not isinstance(reply, str):
            raise ConfigError(
                f"environment {type(self.environment).__name__} replied {reply!r:.80} in problem "
                f"{talk.problem.id!r}: return text, or None to end the answer"
            )
        ids = self.between(tokenizer, template, talk.problem, reply, talk.token_ids[-1])
        if len(talk.token_ids) + len(ids) >= cap:  # no token would be left for the next turn
            talk.finish_reason = "length"
            return False
        talk.token_ids += ids
        talk.learned += [False] * len(ids)
        own = Message(role="assistant", content=talk.text), Message(role=self.role, content=reply)
        talk.said += own
        talk.problem = replace(talk.problem, after=(*talk.problem.after, *own))
        return True

    def between(
        self, tokenizer: Any, template: PromptTemplate, problem: Problem, reply: str, last: int
    ) -> list[int]:
        """Tokens between a turn whose last token is `last` and the next: the reply in its frame."""
        mark = _MARK
        while mark in reply:
            mark += "0"
        said = Message(role="assistant", content=mark), Message(role=self.role, content=reply)
        text = template.rendered(tokenizer, replace(problem, after=(*problem.after, *said)))
        _, found, behind = text.rpartition(mark)
        if not found:
            raise ConfigError(
                f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} does not write "
                "earlier answers of the assistant, which an environment needs: use another template"
            )
        ids: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"]
        # The token that ends the turn is there already, where the student wrote it.
        return ids[1:] if ids[:1] == [last] and last in special_ids(tokenizer) else ids

    def check(self, tokenizer: Any, template: PromptTemplate, problem: Problem) -> None:
        """Refuses a chat template that leaves replies out, or that does not take them."""
        if not template.chat:
            raise ConfigError("environment needs prompt.chat = true: bare text has no turns")
        try:
            replies = [self.between(tokenizer, template, problem, text, -1) for text in ("1", "2")]
        except ConfigError as error:
            raise ConfigError(f"{error} (in a reply of environment.role = {self.role!r})") from None
        if replies[0] == replies[1]:
            raise ConfigError(
                f"the chat template does not write messages of {self.role!r}: set environment.role "
                f"= {'user' if self.role == 'tool' else 'tool'!r}"
            )
