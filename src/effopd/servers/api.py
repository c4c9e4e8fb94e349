"""What is asked of a server and read from it, whichever server it is.

A `read_...` raises PassingError for an answer that is broken: another try may bring a good one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from effopd.servers.client import Call
from effopd.servers.failures import NotFiniteAnswerError, PassingError

TokenIds = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """One completion to write.

    Attributes:
        prompt_ids: At least one token.
        seed: A non-negative number of 63 bits.
        max_tokens: Length cap.
        temperature: Divides the logits; 0 is greedy.
        top_p: Nucleus mass in (0, 1].
        top_k: Most likely tokens kept; 0 keeps all.
        stop: Strings that end the completion.
        stop_token_ids: Tokens that end it, besides the end-of-sequence token of the server.
    """

    prompt_ids: TokenIds
    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: TokenIds = ()


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the server wrote.

    Attributes:
        token_ids: All tokens, the one that ended the text included.
        log_probs: Natural log-probability of each, before temperature (vLLM) or after (SGLang).
        stopped: Whether the text ended before the length cap.
    """

    token_ids: TokenIds
    log_probs: tuple[float, ...]
    stopped: bool


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """A text as the server's tokenizer sees it.

    Attributes:
        token_ids: Its tokens, no special ones added.
        context: Longest sequence that the server takes, in tokens.
    """

    token_ids: TokenIds
    context: int


class Api(Protocol):
    """The requests of one kind of server."""

    def write_call(self, writing: Writing) -> Call:
        """Asks for a completion with the log-probabilities of its tokens."""
        ...

    def read_written(self, answer: Any) -> Written:
        """The completion."""
        ...

    def score_call(self, token_ids: TokenIds) -> Call:
        """Asks for the log-probability of each given token after those before it."""
        ...

    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """The log-probabilities of `token_ids[start:]`; start is at least 1."""
        ...

    def tokenize_call(self, text: str) -> Call:
        """Asks for the tokens of a text."""
        ...

    def read_tokens(self, answer: Any) -> Tokenized:
        """The tokens."""
        ...

    def reload_calls(self, directory: str) -> list[Call]:
        """Makes the server load the weights in a directory, and forget what it computed."""
        ...


def field(value: Any, *path: str | int) -> Any:
    """What is at a path of keys and positions in an answer.

    Raises:
        PassingError: It is not there.
    """
    found = value
    for part in path:
        is_there = (
            part in found
            if isinstance(part, str) and isinstance(found, dict)
            else isinstance(part, int) and isinstance(found, list) and part < len(found)
        )
        if not is_there:
            where = ".".join(map(str, path))
            raise PassingError(f"an answer without {where}")
        found = found[part]
    return found


def token_ids(value: Any) -> TokenIds:
    """A list of token ids.

    Raises:
        PassingError: It is none.
    """
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise PassingError("an answer whose token ids are no list of numbers")
    return tuple(value)


def finite(values: Sequence[Any]) -> tuple[float, ...]:
    """Log-probabilities, each a finite number.

    Raises:
        NotFiniteAnswerError: One is NaN, infinite or missing.
    """
    for i, value in enumerate(values):
        if type(value) not in {int, float} or not math.isfinite(value):
            raise NotFiniteAnswerError(f"the log-probability of token {i} is {value!r:.40}")
    return tuple(map(float, values))


def same_count(log_probs: Any, tokens: Any) -> None:
    """Checks that there is one log-probability a token.

    Raises:
        PassingError: There are more or fewer.
    """
    if not isinstance(log_probs, list) or len(log_probs) != tokens:
        found = len(log_probs) if isinstance(log_probs, list) else "no"
        raise PassingError(f"{found} log-probabilities for {tokens!r:.40} tokens")


def tokenized(answer: Any) -> Tokenized:
    """What `/tokenize` answers, with vLLM and SGLang alike.

    Raises:
        PassingError: It is not that.
    """
    context = field(answer, "max_model_len")
    if type(context) is not int:
        raise PassingError("an answer whose max_model_len is no number")
    return Tokenized(token_ids=token_ids(field(answer, "tokens")), context=context)
