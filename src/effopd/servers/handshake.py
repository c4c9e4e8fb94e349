"""Is this the server we think it is: its model, tokenizer, context and arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from effopd.errors import ParameterMismatchError, ServerError
from effopd.servers.api import Api, TokenIds, Writing, field
from effopd.servers.client import Call, Client, Step

PROBE_TOKENS = 32
_WRITTEN = 8
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


def shake_hands(
    client: Client, api: Api, tokenizer: Any, vocabulary_size: int, longest: int
) -> Identity:
    """Checks a server before anything depends on it.

    Args:
        client: Asks it.
        api: How.
        tokenizer: Of the student; the server's must give the same tokens.
        vocabulary_size: Token ids that the student may use are below it.
        longest: Tokens of the longest sequence that will be sent.

    Returns:
        What it is, for comparisons later on.

    Raises:
        ParameterMismatchError: Another tokenizer or vocabulary.
        ServerError: It does not serve the model, takes too short texts, or does not score a text
            twice, or its own text, alike.
    """
    step = client.step()
    _check_model(client, step)
    context = _check_tokenizer(client, api, tokenizer, vocabulary_size, step)
    if context < longest + 1:
        raise ServerError(
            f"{client} takes {context} tokens, prompt and answer may have {longest} and one more "
            "is written: start it with a longer context, or lower prompt.max_tokens or "
            "sampling.max_new_tokens"
        )
    probe = probe_ids(vocabulary_size)
    log_probs = score(client, api, probe, 1, step)
    identity = Identity(
        probe_ids=probe,
        log_probs=log_probs,
        context=context,
        repeat_nats=mean_difference(log_probs, score(client, api, probe, 1, step)),
        self_score_nats=_self_score(client, api, probe, step),
    )
    _check_arithmetic(client, identity)
    return identity


def probe_ids(vocabulary_size: int) -> TokenIds:
    """Tokens spread over the vocabulary, its first and last among them."""
    last = vocabulary_size - 1
    return tuple(i * last // (PROBE_TOKENS - 1) for i in range(PROBE_TOKENS))


def score(client: Client, api: Api, ids: TokenIds, start: int, step: Step) -> tuple[float, ...]:
    """The server's log-probabilities of `ids[start:]`."""
    return client.ask(api.score_call(ids), lambda a: api.read_scores(a, ids, start), step)


def mean_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def _check_model(client: Client, step: Step) -> None:
    answer = client.ask(Call(path="/v1/models"), lambda answer: field(answer, "data"), step)
    names = [str(model.get("id")) for model in answer if isinstance(model, dict)]
    if client.settings.model not in names:
        served = ascii(", ".join(names)[:300])
        raise ServerError(f"{client} is not served; served are {served}")


def _check_tokenizer(
    client: Client, api: Api, tokenizer: Any, vocabulary_size: int, step: Step
) -> int:
    """Compares both tokenizers on a text that uses the whole vocabulary; the server's context."""
    size = min(vocabulary_size, len(tokenizer))
    chosen = sorted({i * (size - 1) // (_TEXT_TOKENS - 1) for i in range(_TEXT_TOKENS)})
    text = " ".join(tokenizer.decode([i]) for i in chosen)
    ours = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs = client.ask(api.tokenize_call(text), api.read_tokens, step)
    if tuple(ours) != theirs.token_ids:
        pairs = enumerate(zip_longest(ours, theirs.token_ids))
        place, (own, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        token = None if own is None else tokenizer.convert_ids_to_tokens(own)
        raise ParameterMismatchError(
            f"{client} has another tokenizer than the student: {len(theirs.token_ids)} tokens "
            f"where the student's gives {len(ours)}, or other ones; the first that differs, at "
            f"{place}, is {token!r} ({own}) for the student and {other} for the server. A "
            "token-wise comparison would be meaningless; serve a model that shares the student's "
            "tokenizer."
        )
    return theirs.context


def _self_score(client: Client, api: Api, probe: TokenIds, step: Step) -> float:
    """How far the log-probabilities of a text that it writes are from those of the same prompt."""
    writing = Writing(prompt_ids=probe, seed=0, max_tokens=_WRITTEN, temperature=0.0)
    written = client.ask(api.write_call(writing), api.read_written, step)
    if not written.token_ids:
        raise ServerError(f"{client} wrote nothing where a token was asked for")
    again = score(client, api, probe + written.token_ids, len(probe), step)
    return mean_difference(written.log_probs, again)


def _check_arithmetic(client: Client, identity: Identity) -> None:
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
