"""How a server is addressed, and whether it is the one we think it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NoReturn

from effopd.errors import ConfigError, ParameterMismatchError, ServerError, see
from effopd.servers.client import Client, Deadline, ServerRequest
from effopd.servers.dialects import Api, SGLangApi, TokenIds, VLLMApi, field
from effopd.servers.hidden_states import TEACHER, EffopdApi
from effopd.servers.settings import ServerSettings

PROBE_TOKENS = 32
_GENERATED = 8
_TEXT_TOKENS = 256


def api_of(settings: ServerSettings) -> Api:
    """The requests of the server's kind."""
    apis: dict[str, type[Api]] = {"vllm": VLLMApi, "sglang": SGLangApi, "effopd": EffopdApi}
    return apis[settings.flavor](settings.model)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """How a server scores a fixed text: another model gives other numbers.

    `log_probs` are of all tokens of the text but the first. The server takes `context` tokens. Its
    scores of the text differ by `repeat_nats` when it is scored twice, and of what it wrote itself
    by `self_score_nats` between writing and reading, both means.
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
        raise ServerError(f"{client} is not served; served are {served}{see('teacher-server')}")
    # 2. Its tokenizer is the student's, and whole answers fit.
    # The text that is compared uses the whole vocabulary.
    size = min(vocabulary_size, len(tokenizer))
    chosen = sorted({i * (size - 1) // (_TEXT_TOKENS - 1) for i in range(_TEXT_TOKENS)})
    text = " ".join(tokenizer.decode([i]) for i in chosen)
    ours = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs, context = client.ask(api.tokenize_request(text), api.read_tokens, deadline)
    if tuple(ours) != theirs:
        _refuse_tokenizer(client, tokenizer, ours, theirs)
    writes = not isinstance(api, EffopdApi)
    if context < longest + writes:
        raise ServerError(
            f"{client} takes {context} tokens, prompt and answer may have {longest}"
            f"{' and one more is written' * writes}: start it with a longer context, or lower "
            "prompt.max_tokens or sampling.max_new_tokens" + see("teacher-server")
        )
    if isinstance(api, EffopdApi):
        described = client.ask(ServerRequest(path=TEACHER), api.read_description, deadline)
        api.meet(described, vocabulary_size)
    # 3. It scores a text alike twice, and names its likely tokens where they are asked for.
    probe = probe_ids(vocabulary_size)
    log_probs = score(client, api, probe, 1, deadline)
    again = score(client, api, probe, 1, deadline)
    if client.settings.top_k:
        _check_likely(client, api, probe, log_probs, deadline)
    # 4. It scores what it generates as it does the same text in a prompt.
    self_score_nats = _self_score_nats(client, api, probe, deadline) if writes else 0.0
    identity = Identity(
        probe_ids=probe,
        log_probs=log_probs,
        context=context,
        repeat_nats=mean_difference(log_probs, again),
        self_score_nats=self_score_nats,
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


def _self_score_nats(client: Client, api: Api, probe: TokenIds, deadline: Deadline) -> float:
    """How differently the server scores what it wrote itself, as it writes and as it reads."""
    asked = api.generate_request(probe, seed=0, max_tokens=_GENERATED, temperature=0.0)
    own = client.ask(asked, api.read_generation, deadline)
    if not own.token_ids:
        raise ServerError(f"{client} wrote nothing where a token was asked for")
    again = score(client, api, probe + own.token_ids, len(probe), deadline)
    return mean_difference(own.log_probs, again)


def _check_likely(
    client: Client, api: Api, probe: TokenIds, log_probs: Sequence[float], deadline: Deadline
) -> None:
    """The server names `top_k` tokens a place, of a mass of at most 1, as it scores them."""
    k = client.settings.top_k
    if k > (size := probe[-1] + 1):
        raise ConfigError(f"top_k must be at most {size}, the tokens that there are, got {k}")
    try:
        rows = client.ask(
            api.score_request(probe, k), lambda a: api.read_top(a, probe, 1, k), deadline
        )
    except ServerError as error:
        if "HTTP 4" not in str(error):
            raise
        raise ServerError(
            f"{error}. It was asked for the {k} likeliest tokens of each place: start vLLM with "
            f"--max-logprobs {k}, or lower top_k to what it allows (20 by default)"
        ) from None
    pairs = []
    for token, value, ids, values in zip(probe[1:], log_probs, *rows, strict=True):
        mass = math.fsum(map(math.exp, values))
        if mass > 1 + 1e-3:
            raise ServerError(
                f"the {k} likeliest tokens of a place have a probability of {mass:.4g} together "
                f"by {client}: these are no log-probabilities; start vLLM with --logprobs-mode "
                "raw_logprobs, and without a temperature of its own"
            )
        pairs += [(value, values[ids.index(token)])] if token in ids else []
    nats = mean_difference(*zip(*pairs, strict=True)) if pairs else 0.0
    if nats > client.settings.tolerance_nats:
        raise ServerError(
            f"{client} scores tokens by {nats:.3g} nats differently among the likely ones than "
            f"when they are asked for; allowed are {client.settings.tolerance_nats:g} "
            "(tolerance_nats)"
        )


def _refuse_tokenizer(
    client: Client, tokenizer: Any, ours: Sequence[int], theirs: Sequence[int]
) -> NoReturn:
    """Names the first token that differs."""
    pairs = enumerate(zip_longest(ours, theirs))
    place, (own, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    token = None if own is None else tokenizer.convert_ids_to_tokens(own)
    raise ParameterMismatchError(
        f"{client} has another tokenizer than the student: {len(theirs)} tokens "
        f"where the student's gives {len(ours)}, or other ones; the first that differs, at "
        f"{place}, is {token!r} ({own}) for the student and {other} for the server. A "
        "token-wise comparison would be meaningless; serve a model that shares the student's "
        "tokenizer, or name the model's own (alignment.tokenizer)."
    )
