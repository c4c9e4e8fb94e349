"""What vLLM and SGLang are asked and answer.

A `read_...` raises TransientServerError for a broken answer: another try may bring a good one. Of
these, IncompleteAnswerError holds an answer of which single values, or all, are missing.

Sources: docs.vllm.ai, "OpenAI-Compatible Server" (extra parameters of completions) and "Sleep Mode"
(`/collective_rpc`, `/reset_prefix_cache`; both need VLLM_SERVER_DEV_MODE=1), `vllm/logprobs.py` for
the ranks; docs.sglang.io, "SGLang Native APIs" and "Sampling Parameters".
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effopd.servers.client import IncompleteAnswerError, ServerRequest, TransientServerError

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
class Generation:
    """What the server sampled, the token that ended the text included.

    Log-probabilities are natural, before temperature (vLLM) or after (SGLang); `stopped` is False
    at the length cap.
    """

    token_ids: TokenIds
    log_probs: tuple[float, ...]
    stopped: bool


TopRows = tuple[list[list[int]], list[list[float]]]
"""Token ids and log-probabilities [n, k]; where a place is missing, zeros and NaN."""


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
    def score_request(self, token_ids: TokenIds, top_k: int = 0) -> ServerRequest:
        """Asks for the log-probability of each given token after those before it.

        And for the `top_k` most likely tokens in its place.
        """

    @abstractmethod
    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """The log-probabilities of `token_ids[start:]`; start is at least 1."""

    @abstractmethod
    def read_top(self, answer: Any, token_ids: TokenIds, start: int, k: int) -> TopRows:
        """The k most likely tokens in each place of `token_ids[start:]`, most likely first."""

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
        check_count(log_probs, len(ids))
        return _generation(ids, log_probs, field(choice, "finish_reason"))

    def score_request(self, token_ids: TokenIds, top_k: int = 0) -> ServerRequest:
        """See `Api`; one token is generated, since none cannot be asked for."""
        payload = {
            "model": self._model,
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": max(1, top_k),
            "return_token_ids": True,
        }
        return ServerRequest(path="/v1/completions", payload=payload)

    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """See `Api`; each place holds the likely tokens and, among them, the one asked for."""
        places = self._places(answer, token_ids, start)
        found = [
            None if place is None else field(place[str(token)], "logprob")
            for token, place in zip(token_ids[start:], places, strict=True)
        ]
        return log_probs_of(found)

    def read_top(self, answer: Any, token_ids: TokenIds, start: int, k: int) -> TopRows:
        """See `Api`; a place holds ranks 1 to k, and the token asked for where its rank is more."""
        rows = []
        for place in self._places(answer, token_ids, start):
            ranked = []
            for token, entry in (place or {}).items():
                rank, value = field(entry, "rank"), field(entry, "logprob")
                if type(rank) is not int or not token.isdecimal():
                    raise TransientServerError("likely tokens without an id or a rank")
                ranked.append((rank, int(token), value))
            ranked.sort(key=lambda each: each[0])
            rows.append([(token, value) for _, token, value in ranked[:k]])
        return _top_rows(rows, k)

    def _places(self, answer: Any, token_ids: TokenIds, start: int) -> list[Any]:
        """Of each token of `token_ids[start:]`, the tokens named in its place; None if missing."""
        wanted = len(token_ids) - start
        if answer is None or field(answer, "choices") == []:
            return [None] * wanted
        choice = field(answer, "choices", 0)
        if field(choice, "prompt_token_ids") != list(token_ids):
            raise TransientServerError("log-probabilities of other tokens than were asked for")
        places = field(choice, "prompt_logprobs")
        if not places:
            return [None] * wanted
        check_count(places, len(token_ids))
        for token, place in zip(token_ids[start:], places[start:], strict=True):
            if place is not None and not (isinstance(place, dict) and str(token) in place):
                # another vocabulary, or tokens were shifted
                raise TransientServerError(f"log-probabilities without the one of token {token}")
        return list(places[start:])

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
            check_count(log_probs, counted)
        return _generation(ids, log_probs, field(meta, "finish_reason", "type"))

    def score_request(self, token_ids: TokenIds, top_k: int = 0) -> ServerRequest:
        """See `Api`."""
        parameters = {"max_new_tokens": 1, "temperature": 0.0}
        likely = {"top_logprobs_num": top_k} if top_k else {}
        return self._request(token_ids, sampling_params=parameters, logprob_start_len=0, **likely)

    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """See `Api`."""
        return log_probs_of(self._scored(answer, token_ids, start))

    def read_top(self, answer: Any, token_ids: TokenIds, start: int, k: int) -> TopRows:
        """See `Api`; a place holds `[log-probability, id, text]` of k tokens, or null."""
        scored = self._scored(answer, token_ids, start)
        places = None if answer is None else answer["meta_info"].get("input_top_logprobs")
        if not places:
            return _top_rows([[]] * len(scored), k)
        check_count(places, len(token_ids))
        found = [_pairs(place) for place in places[start:]]
        rows = [sorted(zip(*pairs, strict=True), key=_descending)[:k] for pairs in found]
        return _top_rows(rows, k)

    def _scored(self, answer: Any, token_ids: TokenIds, start: int) -> Sequence[Any]:
        """The values of `token_ids[start:]`; None for each where the answer holds none."""
        if answer is None or not (entries := field(answer, "meta_info", "input_token_logprobs")):
            return [None] * (len(token_ids) - start)
        ids, log_probs = _pairs(entries)
        check_count(log_probs, len(token_ids))
        if ids != token_ids:
            raise TransientServerError("log-probabilities of other tokens than were asked for")
        return log_probs[start:]

    def reload_requests(self, directory: str) -> list[ServerRequest]:
        """See `Api`; the server empties its cache by itself."""
        return [ServerRequest(path="/update_weights_from_disk", payload={"model_path": directory})]

    def _request(self, ids: TokenIds, **parameters: Any) -> ServerRequest:
        payload = {"input_ids": list(ids), "return_logprob": True, **parameters}
        return ServerRequest(path="/generate", payload=payload)


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
    return Generation(token_ids=ids, log_probs=log_probs_of(log_probs), stopped=reason == "stop")


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and math.isfinite(value)


def log_probs_of(values: Sequence[Any]) -> tuple[float, ...]:
    """Log-probabilities, each a finite number."""
    found = tuple(float(value) if _is_number(value) else math.nan for value in values)
    if any(map(math.isnan, found)):
        i = next(i for i, value in enumerate(found) if math.isnan(value))
        message = f"the log-probability of token {i} is {values[i]!r:.40}"
        if all(value is None for value in values):
            message = f"no log-probabilities for {len(values)} tokens"
        raise IncompleteAnswerError(message, partial=found)
    return found


def _descending(pair: tuple[int, Any]) -> float:
    return -pair[1] if _is_number(pair[1]) else -math.inf  # what is missing is not cut off


def _top_rows(rows: Sequence[Sequence[tuple[int, Any]]], k: int) -> TopRows:
    """Rows of k tokens; one with a value that is missing, or without any, is missing."""
    ids, log_probs, missing = [], [], None
    for i, row in enumerate(rows):
        if row and len(row) < k:
            raise TransientServerError(f"{len(row)} likely tokens where {k} were asked for")
        if row and all(_is_number(value) for _, value in row):
            ids.append([token for token, _ in row])
            log_probs.append([float(value) for _, value in row])
        else:
            missing = i if missing is None else missing
            ids.append([0] * k)
            log_probs.append([math.nan] * k)
    if missing is not None:
        message = f"the likely tokens in the place of token {missing} are missing"
        raise IncompleteAnswerError(message, partial=(ids, log_probs))
    return ids, log_probs


def check_count(log_probs: Any, tokens: Any) -> None:
    """One log-probability a token, or the answer is broken."""
    if not isinstance(log_probs, list) or len(log_probs) != tokens:
        found = len(log_probs) if isinstance(log_probs, list) else "no"
        raise TransientServerError(f"{found} log-probabilities for {tokens!r:.40} tokens")
