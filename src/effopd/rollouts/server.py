"""Rollouts by an inference server: many requests at a time, each with its own seed.

Completions depend on their own request alone as far as the server computes alike in every batch:
vLLM with VLLM_BATCH_INVARIANT=1, SGLang with --enable-deterministic-inference.
"""

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effopd.errors import ConfigError, NonFiniteError, ServerError
from effopd.models.architecture import without_bars
from effopd.models.tokenizers import unused_ids
from effopd.rollouts.engine import Completion, Request, Sampling, check_written, finished
from effopd.servers.client import Client
from effopd.servers.dialects import Api
from effopd.servers.handshake import mean_difference, probe_ids, score


class ServerEngine:
    """Samples with whatever a server holds, whose tokenizer must be this one.

    Answers end at `ends` (`end_token_ids`). `reload` brings the student's weights to the server;
    None where its weights are fixed.
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
        self._unused = unused_ids(tokenizer, vocabulary_size)

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
            self._api.generate_request(
                request.prompt_ids,
                seed=request.seed,
                max_tokens=request.sampling(sampling).max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                stop=sampling.stop,
                stop_token_ids=self._ends,
            )
            for request in requests
        ]
        reads = [self._api.read_generation] * len(asked)
        found = self._client.ask_all(asked, reads, self._client.deadline())
        for ids in (generation.token_ids for generation in found):
            check_written(self._client, ids, self._vocabulary_size, self._unused)
        finish = partial(finished, sampling=sampling, tokenizer=self._tokenizer, ends=self._ends)
        return [finish(each.token_ids, each.log_probs, stopped=each.stopped) for each in found]


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
        self.probe = StudentProbe(model, vocabulary_size)
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
        with without_bars():
            self._model.save_pretrained(target)
        for request in self._api.reload_requests(str(target)):
            self._client.control(request, self._client.settings.step_s)
        theirs = score(self._client, self._api, self.probe.token_ids, 1, self._client.deadline())
        self.probe.check_arrived(
            theirs,
            self._client.settings.tolerance_nats,
            setting="tolerance_nats",
            where=f"{self._client} does not have the student's weights after a reload from "
            f"{target}",
            remedy="Start it with the student's model, in a precision close to the student's.",
        )
        shutil.rmtree(self._directory / f"weights-{self._syncs - 1}", ignore_errors=True)


class StudentProbe:
    """The student's own log-probabilities of a fixed text, and whether they were finite."""

    def __init__(self, model: Any, vocabulary_size: int) -> None:
        self._model, self._vocabulary_size = model, vocabulary_size
        self.token_ids = probe_ids(vocabulary_size)
        self.log_probs: tuple[float, ...] = ()
        self.is_finite = True

    @torch.no_grad()
    def look(self) -> bool:
        """Scores all tokens but the first with the weights as they are; whether all is finite."""
        device = self._model.get_input_embeddings().weight.device
        ids_1T = torch.tensor([self.token_ids], device=device)
        training = self._model.training
        self._model.eval()
        try:
            logits_TV = self._model(input_ids=ids_1T).logits[0, :-1, : self._vocabulary_size]
        finally:
            self._model.train(training)
        log_probs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
        self.log_probs = tuple(log_probs_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist())
        self.is_finite = all(map(math.isfinite, self.log_probs))
        return self.is_finite

    def check_finite(self) -> None:
        """Refuses to sample with weights that were not brought over: they gave NaN."""
        if not self.is_finite:
            raise NonFiniteError("the student's logits are not finite: its weights may hold NaN")

    def check_arrived(
        self, theirs: Sequence[float], tolerance: float, *, setting: str, where: str, remedy: str
    ) -> None:
        """Refuses an engine that scores the text otherwise after a sync."""
        nats = mean_difference(self.log_probs, theirs)
        if not nats <= tolerance:
            raise ServerError(
                f"{where}: log-probabilities differ by {nats:.3g} nats a token on average, allowed "
                f"are {tolerance:g} ({setting}). {remedy}"
            )
