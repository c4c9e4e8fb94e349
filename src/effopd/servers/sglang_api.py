"""The requests of SGLang's server: `/generate` with token ids, `/tokenize`, and reloading.

Its `/v1/completions` names tokens by their text, which is not enough to score them, so its native
endpoint is used. Source: docs.sglang.io, "SGLang Native APIs" and "Sampling Parameters".
"""

from typing import Any

from effopd.servers.api import (
    TokenIds,
    Tokenized,
    Writing,
    Written,
    field,
    finite,
    same_count,
    token_ids,
    tokenized,
)
from effopd.servers.client import Call
from effopd.servers.failures import PassingError

_SEED_BITS = 31
"""Of a seed, its lowest bits are sent."""


class SGLangApi:
    """Requests to an SGLang server.

    Args:
        model: Name of the served model.
    """

    def __init__(self, model: str) -> None:
        self._model = model

    def write_call(self, writing: Writing) -> Call:
        """See `Api.write_call`; the seed counts with --enable-deterministic-inference only."""
        parameters = {
            "sampling_seed": writing.seed & (2**_SEED_BITS - 1),
            "max_new_tokens": writing.max_tokens,
            "temperature": writing.temperature,
            "top_p": writing.top_p,
            "top_k": writing.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "stop": list(writing.stop),
            "stop_token_ids": list(writing.stop_token_ids),
            "no_stop_trim": True,
            "skip_special_tokens": False,
        }
        return _generate(writing.prompt_ids, parameters)

    def read_written(self, answer: Any) -> Written:
        """See `Api.read_written`."""
        meta = field(answer, "meta_info")
        ids, log_probs = _pairs(field(meta, "output_token_logprobs"))
        reason = field(meta, "finish_reason", "type")
        if reason not in {"stop", "length"}:
            raise PassingError(f"a completion that ended by {reason!r:.40}")
        if (counted := meta.get("completion_tokens")) is not None:
            same_count(log_probs, counted)
        return Written(token_ids=ids, log_probs=finite(log_probs), stopped=reason == "stop")

    def score_call(self, token_ids: TokenIds) -> Call:
        """See `Api.score_call`."""
        call = _generate(token_ids, {"max_new_tokens": 1, "temperature": 0.0})
        assert call.payload is not None
        return Call(path=call.path, payload=call.payload | {"logprob_start_len": 0})

    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """See `Api.read_scores`."""
        ids, log_probs = _pairs(field(answer, "meta_info", "input_token_logprobs"))
        same_count(log_probs, len(token_ids))
        if ids != token_ids:
            raise PassingError("log-probabilities of other tokens than were asked for")
        return finite(log_probs[start:])

    def tokenize_call(self, text: str) -> Call:
        """See `Api.tokenize_call`."""
        payload = {"model": self._model, "prompt": text, "add_special_tokens": False}
        return Call(path="/tokenize", payload=payload)

    def read_tokens(self, answer: Any) -> Tokenized:
        """See `Api.read_tokens`."""
        return tokenized(answer)

    def reload_calls(self, directory: str) -> list[Call]:
        """See `Api.reload_calls`; the server empties its cache by itself."""
        return [Call(path="/update_weights_from_disk", payload={"model_path": directory})]


def _generate(ids: TokenIds, parameters: dict[str, Any]) -> Call:
    payload = {"input_ids": list(ids), "sampling_params": parameters, "return_logprob": True}
    return Call(path="/generate", payload=payload)


def _pairs(entries: Any) -> tuple[TokenIds, list[Any]]:
    """Ids and log-probabilities of `[log-probability, id, text]` entries."""
    found = entries if isinstance(entries, list) else []
    ids = token_ids([field(entry, 1) for entry in found])
    return ids, [entry[0] for entry in found]
