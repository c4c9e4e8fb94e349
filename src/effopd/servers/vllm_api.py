"""The requests of vLLM's server: `/v1/completions` with token ids, `/tokenize`, and reloading.

Sources: docs.vllm.ai, "OpenAI-Compatible Server" (extra parameters of completions) and "Sleep Mode"
(`/collective_rpc`, `/reset_prefix_cache`; both need VLLM_SERVER_DEV_MODE=1).
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
from effopd.servers.failures import NotFiniteAnswerError, PassingError

_NEUTRAL = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_p": 0.0,
}
"""Sent with every request, so that defaults of the served model do not change what is sampled."""


class VLLMApi:
    """Requests to a vLLM server of version 0.10.2 or later, which returns token ids.

    Args:
        model: Name of the served model.
    """

    def __init__(self, model: str) -> None:
        self._model = model

    def write_call(self, writing: Writing) -> Call:
        """See `Api.write_call`; stop strings stay in the text, special tokens may be named."""
        payload = {
            "model": self._model,
            "prompt": list(writing.prompt_ids),
            "seed": writing.seed,
            "max_tokens": writing.max_tokens,
            "temperature": writing.temperature,
            "top_p": writing.top_p,
            "top_k": writing.top_k,
            "stop": list(writing.stop),
            "stop_token_ids": list(writing.stop_token_ids),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
            **_NEUTRAL,
        }
        return Call(path="/v1/completions", payload=payload)

    def read_written(self, answer: Any) -> Written:
        """See `Api.read_written`."""
        choice = field(answer, "choices", 0)
        ids = token_ids(field(choice, "token_ids"))
        log_probs = field(choice, "logprobs", "token_logprobs")
        same_count(log_probs, len(ids))
        reason = field(choice, "finish_reason")
        if reason not in {"stop", "length"}:
            raise PassingError(f"a completion that ended by {reason!r:.40}")
        return Written(token_ids=ids, log_probs=finite(log_probs), stopped=reason == "stop")

    def score_call(self, token_ids: TokenIds) -> Call:
        """See `Api.score_call`; one token is written, since none cannot be asked for."""
        payload = {
            "model": self._model,
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 1,
            "return_token_ids": True,
        }
        return Call(path="/v1/completions", payload=payload)

    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """See `Api.read_scores`."""
        choice = field(answer, "choices", 0)
        if field(choice, "prompt_token_ids") != list(token_ids):
            raise PassingError("log-probabilities of other tokens than were asked for")
        entries = field(choice, "prompt_logprobs")
        same_count(entries, len(token_ids))
        return finite([_log_prob(entries[i], token_ids[i]) for i in range(start, len(token_ids))])

    def tokenize_call(self, text: str) -> Call:
        """See `Api.tokenize_call`."""
        payload = {"model": self._model, "prompt": text, "add_special_tokens": False}
        return Call(path="/tokenize", payload=payload)

    def read_tokens(self, answer: Any) -> Tokenized:
        """See `Api.read_tokens`."""
        return tokenized(answer)

    def reload_calls(self, directory: str) -> list[Call]:
        """See `Api.reload_calls`."""
        arguments = {"weights_path": directory, "is_checkpoint_format": True}
        return [
            Call(path="/collective_rpc", payload={"method": "reload_weights", "kwargs": arguments}),
            Call(path="/reset_prefix_cache", payload={}),
        ]


def _log_prob(entry: Any, token: int) -> Any:
    """The log-probability of a token among the likely ones at its place.

    Raises:
        NotFiniteAnswerError: The place is empty.
        PassingError: The token is not among them: another vocabulary, or tokens were shifted.
    """
    if entry is None:
        raise NotFiniteAnswerError(f"no log-probability of token {token}")
    if not isinstance(entry, dict) or str(token) not in entry:
        raise PassingError(f"log-probabilities without the one of token {token}")
    return field(entry[str(token)], "logprob")
