"""From tokens that an inference engine wrote to a completion as every engine returns it."""

import math
from collections.abc import Sequence
from typing import Any

from effopd.errors import NonFiniteError
from effopd.rollouts.engine import Completion, Sampling


def finished(
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    *,
    stopped: bool,
    sampling: Sampling,
    tokenizer: Any,
    ends: Sequence[int],
) -> Completion:
    """The completion that ends where an end token or a stop string does.

    Args:
        token_ids: Tokens as written.
        log_probs: Log-probability of each before temperature, top-p and top-k, nats.
        stopped: Whether the engine says that the text ended by itself.
        sampling: What was asked for.
        tokenizer: Decodes.
        ends: Tokens that end an answer.

    Returns:
        The completion; its log-probabilities are NaN at a temperature other than 0 and 1, where
        those of the scaled policy do not follow from them.

    Raises:
        NonFiniteError: A log-probability is NaN or infinite.
    """
    if not all(map(math.isfinite, log_probs)):
        raise NonFiniteError(
            "log-probabilities of written tokens are not finite: the student's weights may hold NaN"
        )
    length = _end(token_ids, sampling, tokenizer, ends)
    kept = tuple(token_ids[: length or sampling.max_new_tokens])
    known = sampling.temperature in {0.0, 1.0}
    return Completion(
        token_ids=kept,
        log_probs=tuple(log_probs[: len(kept)]) if known else (math.nan,) * len(kept),
        finish_reason="stop" if stopped or length else "length",
        text=tokenizer.decode(without_end(kept, ends), skip_special_tokens=True),
    )


def without_end(token_ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """The tokens but for an end token at the end, which decoders show where it is not special."""
    return token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids


def _end(
    token_ids: Sequence[int], sampling: Sampling, tokenizer: Any, end_ids: Sequence[int]
) -> int:
    """Tokens up to the first end, that end included; 0 without one.

    A stop string is looked for in all of the text first, so that decoding token by token is needed
    for texts that hold one alone.
    """
    ends = [i + 1 for i, token in enumerate(token_ids) if token in end_ids][:1]
    if sampling.stop and _holds(sampling.stop, tokenizer.decode(token_ids)):
        low, high = 0, len(token_ids)  # the text of low tokens holds none, that of high does
        while high - low > 1:
            middle = (low + high) // 2
            found = _holds(sampling.stop, tokenizer.decode(token_ids[:middle]))
            low, high = (low, middle) if found else (middle, high)
        ends.append(high)
    return min(ends, default=0)


def _holds(stop: Sequence[str], text: str) -> bool:
    return any(string in text for string in stop)
