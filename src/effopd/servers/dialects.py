"""What vLLM and SGLang are asked, and what is read from their answers.

A `read_...` raises TransientServerError for a broken answer: another try may bring a good one.

Sources: docs.vllm.ai, "OpenAI-Compatible Server" (extra parameters of completions) and "Sleep Mode"
(`/collective_rpc`, `/reset_prefix_cache`; both need VLLM_SERVER_DEV_MODE=1); docs.sglang.io,
"SGLang Native APIs" and "Sampling Parameters".
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effopd.servers.client import NonFiniteAnswerError, ServerRequest, TransientServerError
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


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One completion to sample.

    Attributes:
        prompt_ids: At least one token.
        seed: A non-negative number of 63 bits.
        max_tokens: Length cap.
        temperature: Divides the logits; 0 is greedy.
        top_p: Nucleus mass in (0, 1].
        top_k: Most likely tokens kept; 0 keeps all.
        stop: Strings that end the completion; kept in its text.
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
class Generation:
    """What the server sampled.

    Attributes:
        token_ids: All tokens, the one that ended the text included.
        log_probs: Natural log-probability of each, before temperature (vLLM) or after (SGLang).
        stopped: Whether the text ended before the length cap.
    """

    token_ids: TokenIds
    log_probs: tuple[float, ...]
    stopped: bool


class Api(ABC):
    """The requests of one kind of server that serves `model`."""

    def __init__(self, model: str) -> None:
        self._model = model

    @abstractmethod
    def generate_request(self, asked: GenerateRequest) -> ServerRequest:
        """Asks for a completion with the log-probabilities of its tokens."""

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
    """`/v1/completions` of vLLM 0.10.2 or later, which returns token ids."""

    def generate_request(self, asked: GenerateRequest) -> ServerRequest:
        """See `Api`; special tokens may be named as stop strings."""
        payload = {
            "model": self._model,
            "prompt": list(asked.prompt_ids),
            "seed": asked.seed,
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "stop": list(asked.stop),
            "stop_token_ids": list(asked.stop_token_ids),
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "return_token_ids": True,
            **_NEUTRAL,
        }
        return ServerRequest(path="/v1/completions", payload=payload)

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

    def generate_request(self, asked: GenerateRequest) -> ServerRequest:
        """See `Api`."""
        parameters = {
            "sampling_seed": asked.seed & (2**_SGLANG_SEED_BITS - 1),
            "max_new_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k or -1,
            "stop": list(asked.stop),
            "stop_token_ids": list(asked.stop_token_ids),
            "no_stop_trim": True,
            **_NEUTRAL,
        }
        return self._request(asked.prompt_ids, sampling_params=parameters)

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
