"""Rollouts by an inference server: many requests at a time, each with its own seed.

Completions depend on their own request alone as far as the server computes alike in every batch:
vLLM with VLLM_BATCH_INVARIANT=1, SGLang with --enable-deterministic-inference.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from effopd.errors import ConfigError, ServerError
from effopd.rollouts.engine import Completion, Request, Sampling
from effopd.rollouts.finishing import finished
from effopd.rollouts.weight_reload import WeightReload
from effopd.servers.api import Api, Writing, Written
from effopd.servers.client import Client


class ServerEngine:
    """Writes with whatever a server holds.

    Args:
        client: Asks the server.
        api: How.
        tokenizer: Decodes; the server's must be the same.
        vocabulary_size: Token ids are below it.
        ends: Tokens that end an answer (`end_token_ids`).
        reload: Brings the student's weights to the server; None where its weights are fixed.
    """

    def __init__(
        self,
        client: Client,
        api: Api,
        tokenizer: Any,
        *,
        vocabulary_size: int,
        ends: tuple[int, ...],
        reload: WeightReload | None = None,
    ) -> None:
        self._client, self._api, self._tokenizer = client, api, tokenizer
        self._vocabulary_size, self._ends, self._reload = vocabulary_size, ends, reload

    def sync_weights(self) -> None:
        """Brings the student's weights to the server, and checks that they arrived.

        Raises:
            ConfigError: The server's weights are fixed.
        """
        if self._reload is None:
            raise ConfigError(
                f"{self._client} serves fixed weights, but a student is trained: set "
                "rollouts.weights_directory to a directory that both see, or rollouts.engine to "
                "'hf' or 'vllm'"
            )
        self._reload.sync()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in order; see `Engine.generate`."""
        if self._reload is not None:
            self._reload.probe.check_finite()
        calls = [
            self._api.write_call(_writing(request, sampling, self._ends)) for request in requests
        ]
        reads = [self._api.read_written] * len(calls)
        written = self._client.ask_all(calls, reads, self._client.step())
        return list(map(partial(self._completion, sampling=sampling), written))

    def _completion(self, written: Written, *, sampling: Sampling) -> Completion:
        if max(written.token_ids, default=0) >= self._vocabulary_size:
            raise ServerError(
                f"{self._client} wrote token {max(written.token_ids)}, the student's vocabulary "
                f"has {self._vocabulary_size}: serve the model that is configured"
            )
        if not written.token_ids:
            raise ServerError(f"{self._client} wrote a completion without any token")
        return finished(
            written.token_ids,
            written.log_probs,
            stopped=written.stopped,
            sampling=sampling,
            tokenizer=self._tokenizer,
            ends=self._ends,
        )


def _writing(request: Request, sampling: Sampling, ends: tuple[int, ...]) -> Writing:
    return Writing(
        prompt_ids=request.prompt_ids,
        seed=request.seed,
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=sampling.stop,
        stop_token_ids=ends,
    )
