"""Rollouts by an inference server: many requests at a time, each with its own seed.

Completions depend on their own request alone as far as the server computes alike in every batch:
vLLM with VLLM_BATCH_INVARIANT=1, SGLang with --enable-deterministic-inference.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effopd.errors import ConfigError, ServerError
from effopd.rollouts.engine import Completion, Request, Sampling, finished
from effopd.rollouts.student_probe import StudentProbe
from effopd.servers.client import Client
from effopd.servers.dialects import Api, GenerateRequest, Generation
from effopd.servers.handshake import mean_difference, probe_ids, score


class ServerEngine:
    """Samples with whatever a server holds.

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
        reload: "WeightReload | None" = None,
    ) -> None:
        self._client, self._api, self._tokenizer = client, api, tokenizer
        self._vocabulary_size, self._ends, self._reload = vocabulary_size, ends, reload

    def sync_weights(self) -> None:
        """Brings the student's weights to the server, and checks that they arrived."""
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
        asked = [
            GenerateRequest(
                prompt_ids=request.prompt_ids,
                seed=request.seed,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                stop=sampling.stop,
                stop_token_ids=self._ends,
            )
            for request in requests
        ]
        generations = self._client.ask_all(
            [self._api.generate_request(one) for one in asked],
            [self._api.read_generation] * len(asked),
            self._client.deadline(),
        )
        return [self._completion(one, sampling) for one in generations]

    def _completion(self, generation: Generation, sampling: Sampling) -> Completion:
        if not generation.token_ids:
            raise ServerError(f"{self._client} wrote a completion without any token")
        if max(generation.token_ids) >= self._vocabulary_size:
            raise ServerError(
                f"{self._client} wrote token {max(generation.token_ids)}, the student's vocabulary "
                f"has {self._vocabulary_size}: serve the model that is configured"
            )
        return finished(
            generation.token_ids,
            generation.log_probs,
            stopped=generation.stopped,
            sampling=sampling,
            tokenizer=self._tokenizer,
            ends=self._ends,
        )


class WeightReload:
    """Saves the student, has the server load it, and compares both on a fixed text.

    Each sync writes a directory of its own, since a server may keep files it has read: a reload
    of the same path was seen to bring back the old weights (vLLM issue 32718). The server reads
    `directory` at the same path; `vocabulary_size` head rows count.
    """

    def __init__(
        self, model: Any, client: Client, api: Api, directory: Path, *, vocabulary_size: int
    ) -> None:
        self._model, self._client, self._api = model, client, api
        self._directory = directory.expanduser().resolve()
        self.probe = StudentProbe(model, probe_ids(vocabulary_size), vocabulary_size)
        self._syncs = 0

    def sync(self) -> None:
        """Makes the server write with the student's weights as they are now.

        Weights that give NaN stay here; `probe.check_finite` reports them.
        """
        if not self.probe.look():
            return
        self._syncs += 1
        target = self._directory / f"weights-{self._syncs}"
        shutil.rmtree(target, ignore_errors=True)
        self._model.save_pretrained(target)
        for request in self._api.reload_requests(str(target)):
            self._client.control(request, self._client.settings.step_s)
        theirs = score(self._client, self._api, self.probe.token_ids, 1, self._client.deadline())
        nats = mean_difference(self.probe.log_probs, theirs)
        if not nats <= self._client.settings.tolerance_nats:
            raise ServerError(
                f"{self._client} does not have the student's weights after a reload from {target}: "
                f"log-probabilities differ by {nats:.3g} nats a token on average, allowed are "
                f"{self._client.settings.tolerance_nats:g} (tolerance_nats). Start it with the "
                "student's model, in a precision close to the student's."
            )
        shutil.rmtree(self._directory / f"weights-{self._syncs - 1}", ignore_errors=True)
