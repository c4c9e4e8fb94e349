"""The contract between the loop and whatever generates text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from effopd.errors import ConfigError


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
    """One completion to write.

    Attributes:
        prompt_ids: At least one token.
        seed: Decides every random number of this completion, whatever else is in the batch.
    """

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One written completion.

    Attributes:
        token_ids: Tokens written, the end-of-sequence token included.
        log_probs: Log-probability (nats) of each token under the temperature-scaled policy, before
            top-p and top-k. NaN where an engine cannot say: vLLM and servers give those before
            temperature, which are the same at 0 and 1 alone.
        finish_reason: "stop" at end of sequence or a stop string, "length" at the cap.
        text: Decoded completion without special tokens.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    text: str


class Engine(Protocol):
    """Writes completions with the student's current weights."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in order. Leaves global random generators alone.

        Raises:
            NonFiniteError: The student's logits are not finite.
        """
        ...

    def sync_weights(self) -> None:
        """Makes the next `generate` use the student's weights as they are now."""
        ...
