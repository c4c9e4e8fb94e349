"""What every inference engine is asked and returns."""

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, Protocol

from effopd.data.problem import Message
from effopd.errors import ConfigError, NonFiniteError, ServerError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: Divides the logits; 0 is greedy.
        top_p: Nucleus mass in (0, 1].
        top_k: Most likely tokens kept; 0 keeps all.
        max_new_tokens: Length cap of a completion.
        stop: Strings that end a completion; kept in its text. Special tokens may be named too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError(f"stop must be a list of non-empty strings, got {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0, got {self.top_k}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to write; the seed decides all its random numbers, whatever the batch.

    It has at most `max_new_tokens`, None for those of the sampling, which are never exceeded.
    """

    prompt_ids: tuple[int, ...]
    seed: int
    max_new_tokens: int | None = None

    def sampling(self, sampling: Sampling) -> Sampling:
        """How this one is sampled."""
        cap = self.max_new_tokens
        return sampling if cap is None else replace(sampling, max_new_tokens=cap)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One written completion.

    Attributes:
        token_ids: Tokens written, the end-of-sequence token included, and those that an environment
            wrote between them.
        log_probs: Log-probability (nats) of each sampled token under the temperature-scaled policy,
            before top-p and top-k. NaN where an engine cannot say: vLLM and servers give those
            before temperature, which are the same at 0 and 1 alone.
        finish_reason: "stop" at end of sequence or a stop string, "length" at the cap.
        text: Decoded completion without special tokens; of several turns the last.
        learned: Which tokens the student sampled, so that they are learned and scored; None for
            all.
        said: What was said before the last turn: the student's turns with the replies to them.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    text: str
    learned: tuple[bool, ...] | None = None
    said: tuple[Message, ...] = ()

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the student sampled."""
        return len(self.token_ids) if self.learned is None else sum(self.learned)

    @property
    def masked(self) -> list[list[int]]:
        """Spans of tokens that are not learned, `[start, end)` each."""
        runs = groupby(range(len(self.token_ids)), lambda i: not self.learned or self.learned[i])
        spans = [(list(indices), is_learned) for is_learned, indices in runs]
        return [[span[0], span[-1] + 1] for span, is_learned in spans if not is_learned]

    def record(self, tokenizer: Any) -> dict[str, Any]:
        """Its tokens as texts, how it ended, and the spans that are not learned, if any."""
        tokens = [str(tokenizer.decode([token])) for token in self.token_ids]
        found: dict[str, Any] = {"finish_reason": self.finish_reason, "tokens": tokens}
        return found | ({"masked": spans} if (spans := self.masked) else {})

    def per_token(self, values: Sequence[float]) -> list[float | None]:
        """Values of the sampled tokens with None for the others."""
        if self.learned is None:
            return list(values)
        following = iter(values)
        return [next(following) if is_learned else None for is_learned in self.learned]


class Engine(Protocol):
    """Writes completions with the student's current weights."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in order; NonFiniteError where the student's logits are not.

        Leaves global random generators alone.
        """
        ...

    def sync_weights(self) -> None:
        """Makes the next `generate` use the student's weights as they are now."""
        ...


def finished(
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    *,
    stopped: bool,
    sampling: Sampling,
    tokenizer: Any,
    ends: Sequence[int],
) -> Completion:
    """The completion in tokens that an inference engine sampled, cut after its first end.

    An end is a token of `ends` or a stop string. `log_probs` are those before temperature, top-p
    and top-k, so at a temperature other than 0 and 1 those of the scaled policy are unknown: NaN.
    `stopped` is what the engine says. Raises NonFiniteError for a `log_probs` of NaN or infinity.
    """
    if not all(map(math.isfinite, log_probs)):
        raise NonFiniteError(
            "log-probabilities of written tokens are not finite: the student's weights may hold NaN"
        )

    def holds_stop(tokens: Sequence[int]) -> bool:
        text = tokenizer.decode(tokens)
        return any(string in text for string in sampling.stop)

    # Tokens up to the first end, that end included; 0 without one.
    found = [i + 1 for i, token in enumerate(token_ids) if token in ends][:1]
    if sampling.stop and holds_stop(token_ids):
        low, high = 0, len(token_ids)  # the text of low tokens holds none, that of high does
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds_stop(token_ids[:middle]) else (middle, high)
        found.append(high)
    length = min(found, default=0)
    kept = tuple(token_ids[: length or sampling.max_new_tokens])
    known = sampling.temperature in {0.0, 1.0}
    return Completion(
        token_ids=kept,
        log_probs=tuple(log_probs[: len(kept)]) if known else (math.nan,) * len(kept),
        finish_reason="stop" if stopped or length else "length",
        text=tokenizer.decode(without_end(kept, ends), skip_special_tokens=True),
    )


def check_written(
    engine: object, token_ids: Sequence[int], vocabulary_size: int, unused: Collection[int]
) -> None:
    """Refuses an answer that holds an id beyond the vocabulary, or one that no token has."""
    if not token_ids:
        raise ServerError(f"{engine} wrote a completion without any token")
    if max(token_ids) >= vocabulary_size:
        raise ServerError(
            f"{engine} wrote token {max(token_ids)}, the student's vocabulary has "
            f"{vocabulary_size}: serve the model that is configured"
        )
    if found := {*unused} & {*token_ids}:
        raise ServerError(
            f"{engine} wrote id {min(found)}, a row of the head that no token of the student's "
            "tokenizer has: serve the model and the tokenizer that are configured"
        )


def without_end(token_ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """The tokens but for an end token at the end, which decoders show where it is not special."""
    return token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed of every part, so that resuming needs none saved: `(seed, "train", step)`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
