"""What vLLM and SGLang are asked and answer, and whether a server is the one we think it is.

A `read_...` raises TransientServerError for a broken answer: another try may bring a good one.

Sources: docs.vllm.ai, "OpenAI-Compatible Server" (extra parameters of completions) and "Sleep Mode"
(`/collective_rpc`, `/reset_prefix_cache`; both need VLLM_SERVER_DEV_MODE=1); docs.sglang.io,
"SGLang Native APIs" and "Sampling Parameters".
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NoReturn

from effopd.errors import ParameterMismatchError, ServerError
from effopd.servers.client import (
    Client,
    Deadline,
    NonFiniteAnswerError,
    ServerRequest,
    TransientServerError,
)
from effopd.servers.settings import ServerSettings

TokenIds = tuple[int, ...]

_NEUTRAL = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_p": 0.0,
    "skip_special_tokens": False,
}
"""Sent with every request, so that defaults of the served model do not change what is sampled."""
_SGLANG_SEED_BITS = 31
PROBE_TOKENS = 32
_GENERATED = 8
_TEXT_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the server sampled, the token that ended the text included.

    Log-probabilities are natural, before temperature (vLLM) or after (SGLang); `stopped` is False
    at the length cap.
    """

    token_ids: TokenIds
    log_probs: tuple[float, ...]
    stopped: bool


class Api(ABC):
    """The requests of one kind of server that serves `model`."""

    def __init__(self, model: str) -> None:
        self._model = model

    def generate_request(
        self,
        prompt_ids: TokenIds,
        *,
        seed: int,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> ServerRequest:
        """Asks for a completion with the log-probabilities of its tokens.

        The seed has 63 bits; a temperature of 0 is greedy, a top_k of 0 keeps all. `stop` strings
        stay in the text; `stop_token_ids` end it besides the server's own end of sequence.
        """
        drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "stop": list(stop)}
        drawn |= {"stop_token_ids": list(stop_token_ids), **_NEUTRAL}
        return self._generate_request(prompt_ids, seed, max_tokens, drawn)

    @abstractmethod
    def _generate_request(
        self, prompt_ids: TokenIds, seed: int, max_tokens: int, drawn: dict[str, Any]
    ) -> ServerRequest:
        """`generate_request` from how tokens are drawn, as vLLM names it."""

    @abstractmethod
    def read_generation(self, answer: Any) -> Generation:
        """The completion."""

    @abstractmethod
    def score_request(self, token_ids: TokenIds) -> ServerRequest:
        """Asks for the log-probability of each given token after those before it."""

    @abstractmethod
    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """The log-probabilities of `token_ids[start:]`; start is at least 1."""

    @abstractmethod
    def reload_requests(self, directory: str) -> list[ServerRequest]:
        """Makes the server load the weights in a directory, and forget what it computed."""

    def tokenize_request(self, text: str) -> ServerRequest:
        """Asks for the tokens of a text; alike with vLLM and SGLang."""
        payload = {"model": self._model, "prompt": text, "add_special_tokens": False}
        return ServerRequest(path="/tokenize", payload=payload)

    def read_tokens(self, answer: Any) -> tuple[TokenIds, int]:
        """A text's tokens, no special ones added, and the server's longest sequence."""
        context = field(answer, "max_model_len")
        if type(context) is not int:
            raise TransientServerError("an answer whose max_model_len is no number")
        return _token_ids(field(answer, "tokens")), context


class VLLMApi(Api):
    """`/v1/completions` of vLLM 0.10.2 or later; special tokens may be named as stop strings."""

    def _generate_request(
        self, prompt_ids: TokenIds, seed: int, max_tokens: int, drawn: dict[str, Any]
    ) -> ServerRequest:
        ours = {"model": self._model, "prompt": list(prompt_ids), "seed": seed}
        ours |= {"max_tokens": max_tokens, "logprobs": 0, "return_token_ids": True}
        ours |= {"include_stop_str_in_output": True}
        return ServerRequest(path="/v1/completions", payload=ours | drawn)

    def read_generation(self, answer: Any) -> Generation:
        """See `Api`."""
        choice = field(answer, "choices", 0)
        ids = _token_ids(field(choice, "token_ids"))
        log_probs = field(choice, "logprobs", "token_logprobs")
        _check_count(log_probs, len(ids))
        return _generation(ids, log_probs, field(choice, "finish_reason"))

    def score_request(self, token_ids: TokenIds) -> ServerRequest:
        """See `Api`; one token is generated, since none cannot be asked for."""
        payload = {
            "model": self._model,
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 1,
            "return_token_ids": True,
        }
        return ServerRequest(path="/v1/completions", payload=payload)

    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """See `Api`; each place holds the likely tokens and, among them, the one asked for."""
        choice = field(answer, "choices", 0)
        if field(choice, "prompt_token_ids") != list(token_ids):
            raise TransientServerError("log-probabilities of other tokens than were asked for")
        places = field(choice, "prompt_logprobs")
        _check_count(places, len(token_ids))
        found = []
        for token, place in zip(token_ids[start:], places[start:], strict=True):
            if place is None:
                raise NonFiniteAnswerError(f"no log-probability of token {token}")
            if not isinstance(place, dict) or str(token) not in place:
                # another vocabulary, or tokens were shifted
                raise TransientServerError(f"log-probabilities without the one of token {token}")
            found.append(field(place[str(token)], "logprob"))
        return _finite(found)

    def reload_requests(self, directory: str) -> list[ServerRequest]:
        """See `Api`."""
        arguments = {"weights_path": directory, "is_checkpoint_format": True}
        reload = {"method": "reload_weights", "kwargs": arguments}
        return [
            ServerRequest(path="/collective_rpc", payload=reload),
            ServerRequest(path="/reset_prefix_cache", payload={}),
        ]


class SGLangApi(Api):
    """`/generate` of SGLang: its `/v1/completions` names tokens by text, too little to score them.

    Seeds count with --enable-deterministic-inference only, their lowest 31 bits.
    """

    def _generate_request(
        self, prompt_ids: TokenIds, seed: int, max_tokens: int, drawn: dict[str, Any]
    ) -> ServerRequest:
        ours = {"sampling_seed": seed & (2**_SGLANG_SEED_BITS - 1), "max_new_tokens": max_tokens}
        ours |= {"top_k": drawn["top_k"] or -1, "no_stop_trim": True}
        return self._request(prompt_ids, sampling_params=drawn | ours)

    def read_generation(self, answer: Any) -> Generation:
        """See `Api`."""
        meta = field(answer, "meta_info")
        ids, log_probs = _pairs(field(meta, "output_token_logprobs"))
        if (counted := meta.get("completion_tokens")) is not None:
            _check_count(log_probs, counted)
        return _generation(ids, log_probs, field(meta, "finish_reason", "type"))

    def score_request(self, token_ids: TokenIds) -> ServerRequest:
        """See `Api`."""
        parameters = {"max_new_tokens": 1, "temperature": 0.0}
        return self._request(token_ids, sampling_params=parameters, logprob_start_len=0)

    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """See `Api`."""
        ids, log_probs = _pairs(field(answer, "meta_info", "input_token_logprobs"))
        _check_count(log_probs, len(token_ids))
        if ids != token_ids:
            raise TransientServerError("log-probabilities of other tokens than were asked for")
        return _finite(log_probs[start:])

    def reload_requests(self, directory: str) -> list[ServerRequest]:
        """See `Api`; the server empties its cache by itself."""
        return [ServerRequest(path="/update_weights_from_disk", payload={"model_path": directory})]

    def _request(self, ids: TokenIds, **parameters: Any) -> ServerRequest:
        payload = {"input_ids": list(ids), "return_logprob": True, **parameters}
        return ServerRequest(path="/generate", payload=payload)


def api_of(settings: ServerSettings) -> Api:
    """The requests of the server's kind."""
    return {"vllm": VLLMApi, "sglang": SGLangApi}[settings.flavor](settings.model)


def field(value: Any, *path: str | int) -> Any:
    """What is at a path of keys and positions in an answer; transient where it is missing."""
    for part in path:
        is_there = (
            part in value
            if isinstance(part, str) and isinstance(value, dict)
            else isinstance(part, int) and isinstance(value, list) and part < len(value)
        )
        if not is_there:
            raise TransientServerError(f"an answer without {'.'.join(map(str, path))}")
        value = value[part]
    return value


def _token_ids(value: Any) -> TokenIds:
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise TransientServerError("an answer whose token ids are no list of numbers")
    return tuple(value)


def _pairs(entries: Any) -> tuple[TokenIds, list[Any]]:
    """Ids and log-probabilities of `[log-probability, id, text]` entries."""
    found = entries if isinstance(entries, list) else []
    ids = _token_ids([field(entry, 1) for entry in found])
    return ids, [entry[0] for entry in found]


def _generation(ids: TokenIds, log_probs: Sequence[Any], reason: Any) -> Generation:
    if reason not in ("stop", "length"):
        raise TransientServerError(f"a completion that ended by {reason!r:.40}")
    return Generation(token_ids=ids, log_probs=_finite(log_probs), stopped=reason == "stop")


def _finite(values: Sequence[Any]) -> tuple[float, ...]:
    """Log-probabilities, each a finite number."""
    for i, value in enumerate(values):
        if type(value) not in {int, float} or not math.isfinite(value):
            raise NonFiniteAnswerError(f"the log-probability of token {i} is {value!r:.40}")
    return tuple(map(float, values))


def _check_count(log_probs: Any, tokens: Any) -> None:
    """One log-probability a token, or the answer is broken."""
    if not isinstance(log_probs, list) or len(log_probs) != tokens:
        found = len(log_probs) if isinstance(log_probs, list) else "no"
        raise TransientServerError(f"{found} log-probabilities for {tokens!r:.40} tokens")


# Is it the server we think it is: its model, tokenizer, context and arithmetic -------------------


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
        raise ServerError(f"{client} is not served; served are {served}")
    # 2. Its tokenizer is the student's, and whole answers fit.
    # The text that is compared uses the whole vocabulary.
    size = min(vocabulary_size, len(tokenizer))
    chosen = sorted({i * (size - 1) // (_TEXT_TOKENS - 1) for i in range(_TEXT_TOKENS)})
    text = " ".join(tokenizer.decode([i]) for i in chosen)
    ours = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs, context = client.ask(api.tokenize_request(text), api.read_tokens, deadline)
    if tuple(ours) != theirs:
        _refuse_tokenizer(client, tokenizer, ours, theirs)
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
    asked = api.generate_request(probe, seed=0, max_tokens=_GENERATED, temperature=0.0)
    own = client.ask(asked, api.read_generation, deadline)
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
        "tokenizer."
    )
