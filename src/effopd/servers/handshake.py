"""Is this the server we think it is: its model, tokenizer, context and arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from effopd.errors import ParameterMismatchError, ServerError
from effopd.servers.client import Client, Deadline, ServerRequest
from effopd.servers.dialects import Api, GenerateRequest, TokenIds, field

PROBE_TOKENS = 32
_GENERATED = 8
_TEXT_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Identity:
    """How a server scores a fixed text: another model gives other numbers.

    Attributes:
        probe_ids: The text.
        log_probs: Of all its tokens but the first.
        context: Longest sequence that the server takes, in tokens.
        repeat_nats: Mean difference when it scored the text twice.
        self_score_nats: Mean difference between scores of a text as it wrote it and as a prompt.
    """

    probe_ids: TokenIds
    log_probs: tuple[float, ...]
    context: int
    repeat_nats: float
    self_score_nats: float


def verify_server(
    client: Client, api: Api, tokenizer: Any, vocabulary_size: int, longest: int
) -> Identity:
    """Checks a server before anything depends on it, and describes it for later comparisons."""
    deadline = client.deadline()
    # 1. It serves the model.
    listed = client.ask(ServerRequest(path="/v1/models"), lambda a: field(a, "data"), deadline)
    names = [str(model.get("id")) for model in listed if isinstance(model, dict)]
    if client.settings.model not in names:
        served = ascii(", ".join(names)[:300])
        raise ServerError(f"{client} is not served; served are {served}")
    # 2. Its tokenizer is the student's, and whole answers fit.
    context = _check_tokenizer(client, api, tokenizer, vocabulary_size, deadline)
    if context < longest + 1:
        raise ServerError(
            f"{client} takes {context} tokens, prompt and answer may have {longest} and one more "
            "is written: start it with a longer context, or lower prompt.max_tokens or "
            "sampling.max_new_tokens"
        )
    # 3. It scores a text alike twice.
    probe = probe_ids(vocabulary_size)
    log_probs = score(client, api, probe, 1, deadline)
    again = score(client, api, probe, 1, deadline)
    # 4. It scores what it generates as it does the same text in a prompt.
    asked = GenerateRequest(prompt_ids=probe, seed=0, max_tokens=_GENERATED, temperature=0.0)
    own = client.ask(api.generate_request(asked), api.read_generation, deadline)
    if not own.token_ids:
        raise ServerError(f"{client} wrote nothing where a token was asked for")
    own_again = score(client, api, probe + own.token_ids, len(probe), deadline)
    identity = Identity(
        probe_ids=probe,
        log_probs=log_probs,
        context=context,
        repeat_nats=mean_difference(log_probs, again),
        self_score_nats=mean_difference(own.log_probs, own_again),
    )
    tolerance = client.settings.tolerance_nats
    for what, nats in (
        ("the same text twice", identity.repeat_nats),
        ("its own text, written and read,", identity.self_score_nats),
    ):
        if nats > tolerance:
            raise ServerError(
                f"{client} scores {what} differently, by {nats:.3g} nats a token on average; "
                f"allowed are {tolerance:g} (tolerance_nats). Its log-probabilities cannot be "
                "trained on."
            )
    return identity


def probe_ids(vocabulary_size: int) -> TokenIds:
    """Tokens spread over the vocabulary, its first and last among them."""
    last = vocabulary_size - 1
    return tuple(i * last // (PROBE_TOKENS - 1) for i in range(PROBE_TOKENS))


def score(
    client: Client, api: Api, ids: TokenIds, start: int, deadline: Deadline
) -> tuple[float, ...]:
    """The server's log-probabilities of `ids[start:]`."""
    return client.ask(api.score_request(ids), lambda a: api.read_scores(a, ids, start), deadline)


def mean_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def _check_tokenizer(
    client: Client, api: Api, tokenizer: Any, vocabulary_size: int, deadline: Deadline
) -> int:
    """Compares both tokenizers on a text that uses the whole vocabulary; the server's context."""
    size = min(vocabulary_size, len(tokenizer))
    chosen = sorted({i * (size - 1) // (_TEXT_TOKENS - 1) for i in range(_TEXT_TOKENS)})
    text = " ".join(tokenizer.decode([i]) for i in chosen)
    ours = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs, context = client.ask(api.tokenize_request(text), api.read_tokens, deadline)
    if tuple(ours) != theirs:
        pairs = enumerate(zip_longest(ours, theirs))
        place, (own, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        token = None if own is None else tokenizer.convert_ids_to_tokens(own)
        raise ParameterMismatchError(
            f"{client} has another tokenizer than the student: {len(theirs)} tokens "
            f"where the student's gives {len(ours)}, or other ones; the first that differs, at "
            f"{place}, is {token!r} ({own}) for the student and {other} for the server. A "
            "token-wise comparison would be meaningless; serve a model that shares the student's "
            "tokenizer."
        )
    return context
