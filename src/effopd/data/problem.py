"""What the student is asked, and who checks the answers."""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from effopd.data.code_tests import CodeTests
from effopd.errors import ConfigError

VerifierName = str
"""Who checks answers, as settings name it: one of `VERIFIERS`, or `package.module:function`."""
VERIFIERS = ("boxed", "math", "code", "none")
"""The verifiers with a name; "none" leaves answers unchecked."""


def check_verifier(name: str) -> None:
    """Refuses what names no verifier."""
    if name not in VERIFIERS and not is_path(name):
        raise ConfigError(
            f"verifier must be one of {', '.join(VERIFIERS)}, or a function of your own as "
            f"package.module:function, got {name!r}"
        )


def is_path(name: str) -> bool:
    """Whether a name is a `package.module:object`."""
    parts = name.split(":")
    return len(parts) == 2 and all(
        each.isidentifier() for part in parts for each in part.split(".")
    )


def imported(path: str, setting: str, hint: str) -> Any:
    """The object that `package.module:object` in a setting names; the hint says what to name."""
    module_name, _, name = path.partition(":")
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a module does when it is imported
        why = f"importing {module_name} failed with {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            package = module_name.partition(".")[0]
            why = f"{error}. Install the package, or put the directory of {package!r} on PYTHONPATH"
        elif isinstance(error, AttributeError):
            why = f"{module_name} has no {name!r}: {hint}"
        raise ConfigError(f"{setting} = {path!r}: {why}") from error
    return found


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    r"""How a data set writes its reference answers in mathematics.

    Attributes:
        log_base: What `\log` without a base means: "e", the natural logarithm, or "10".
        relative_error: Relative error that an answer may have where the reference is rounded, that
            is, written with a decimal point or a power of ten; 0 for none beyond the seventh digit.
    """

    log_base: Literal["e", "10"] = "e"
    relative_error: float = 0.0

    def __post_init__(self) -> None:
        if self.log_base not in {"e", "10"}:
            raise ConfigError(f"log_base must be 'e' or '10', got {self.log_base!r}")
        if not 0 <= self.relative_error < 0.5:
            raise ConfigError(f"relative_error must be in [0, 0.5), got {self.relative_error}")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation, as chat templates take it.

    Attributes:
        role: Who says it: the user, the assistant, which is the student, or a tool.
        content: Its text; "" where the assistant calls tools and says nothing.
        tool_calls: Calls of the assistant: `{"name": ..., "arguments": {...}}`, with an `id` where
            results name theirs.
        name: The tool whose result this is; "" where it does not say.
        call_id: The `id` of the call whose result this is; "" where it does not say.
    """

    role: Literal["user", "assistant", "tool"]
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    call_id: str = ""

    @property
    def said(self) -> str:
        """Its text with the calls in it."""
        calls = [json.dumps(call, ensure_ascii=False, sort_keys=True) for call in self.tool_calls]
        return "\n".join([self.content, *calls])

    def for_template(self) -> dict[str, Any]:
        """The mapping that chat templates read."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            found["tool_calls"] = [_call_for_template(call) for call in self.tool_calls]
        return found | {
            key: value
            for key, value in (("name", self.name), ("tool_call_id", self.call_id))
            if value
        }


def _call_for_template(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call in the form of transformers, `{type, function: {name, arguments}}`, with its id."""
    function = {key: value for key, value in call.items() if key != "id"}
    named = {"id": call["id"]} if "id" in call else {}
    return {"type": "function", "function": function, **named}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One prompt with its reference answer.

    Attributes:
        id: Unique within its task; recorded with every rollout.
        prompt: Text shown to the student, before any chat template; of a conversation, the last
            question of the user.
        answer: Reference answer the verifier compares with; "" when the task has no verifier.
        teacher: Name of the teacher that scores its answers; "" where there is only one.
        level: Difficulty on the task's own scale, higher is harder; 0 where there is none.
        system: System message before the prompt; "" for none.
        source: Where the problem is from, as its data set says; "" where it says nothing.
        tests: Tests of the program that is asked for; None where answers are texts.
        rules: How its reference is written.
        turns: Earlier messages of a conversation, from the user's first to the last before
            `prompt`.
        after: Messages behind the prompt, where the student is to go on from there: calls of tools,
            each with its result; the last is a tool's, or the user's.
        tools: JSON schemas of the tools that the chat template tells the student of.
    """

    id: str
    prompt: str
    answer: str = ""
    teacher: str = ""
    level: int = 0
    system: str = ""
    source: str = ""
    tests: CodeTests | None = None
    rules: AnswerRules = AnswerRules()
    turns: tuple[Message, ...] = ()
    after: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that the student answers, without the system message."""
        return (*self.turns, Message(role="user", content=self.prompt), *self.after)

    @property
    def said(self) -> list[str]:
        """All that is said before the answer, the system message first, tools last."""
        tools = [json.dumps(tool, ensure_ascii=False, sort_keys=True) for tool in self.tools]
        return [self.system, *(message.said for message in self.messages), *tools]

    @property
    def characters(self) -> int:
        """Of all that is said before the answer."""
        return sum(map(len, self.said))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The text of an answer that is to be checked, and whether it was cut at the length cap."""

    problem: Problem
    completion: str
    is_truncated: bool = False


class Verifier(Protocol):
    """Checks many answers at once, so that slow checks run side by side."""

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """One reward in [0, 1] per answer, in order; it never raises for a bad answer."""
        ...


@runtime_checkable
class CountingVerifier(Verifier, Protocol):
    """A verifier that says how its checks ended, and that may hold processes."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Verdict -> answers that got it so far."""
        ...

    def close(self) -> None:
        """Ends its processes."""
        ...


class JudgingVerifier(CountingVerifier, Protocol):
    """A verifier that gives each answer a verdict: "correct" or "passed" earns it."""

    def verdicts(self, answers: Sequence[Answer]) -> Sequence[str]:
        """How each check ended, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows of one source of problems that were read, kept, and dropped by their first reason.

    Frequent reasons come first. `answered` rows end with an answer, which is left out; `example` is
    the first row that could not be read, and what would keep it.
    """

    name: str
    read: int
    kept: int
    dropped: Mapping[str, int]
    answered: int = 0
    example: str = field(default="", compare=False)

    def __str__(self) -> str:
        """One line, for a terminal."""
        reasons = "".join(f"; {number}: {reason}" for reason, number in self.dropped.items())
        if self.answered:
            reasons += f"; answers left out at the end of {self.answered} conversations"
        return f"{self.name}: {self.kept} of {self.read} rows kept{reasons}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Disjoint problems to train on and to test on.

    Attributes:
        train: Training problems; validation sets of searches are drawn from these.
        test: Held-out problems for the reported accuracy.
        counts: What was read and left out, one per source that counts.
    """

    train: Sequence[Problem]
    test: Sequence[Problem]
    counts: tuple[Counts, ...] = ()
