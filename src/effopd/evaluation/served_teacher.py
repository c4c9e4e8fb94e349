"""A teacher behind a server: log-probabilities of given tokens, and nothing else.

A server gives no hidden states and no logits, so objectives over the whole vocabulary need a local
teacher.
"""

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from effopd.errors import ConfigError, ServerError
from effopd.models.policy import Sample, learned_only
from effopd.servers.client import Client, Deadline
from effopd.servers.dialects import Identity, api_of, mean_difference, score, verify_server
from effopd.servers.settings import ServerSettings


class ServedTeacher:
    """Scores tokens through a server, which may go away and come back meanwhile.

    It is the same model throughout, or an error says that it is not: a fixed text is scored at the
    start, at the beginning and end of every step, and after every failure.

    The server's tokenizer must be the student's, whose token ids are below `vocabulary_size`.
    Prompt and answer have `longest` tokens together. The seed decides the jitter of waits.
    """

    def __init__(
        self,
        settings: ServerSettings,
        tokenizer: Any,
        *,
        vocabulary_size: int,
        longest: int,
        seed: int = 0,
    ) -> None:
        self.client, self.api = Client(settings, seed), api_of(settings)
        self.tokenizer, self.vocabulary_size = tokenizer, vocabulary_size
        self.identity: Identity = verify_server(
            self.client, self.api, tokenizer, vocabulary_size, longest
        )
        self._verifying = threading.Lock()
        self._verified_at = self.client.disturbances

    def __str__(self) -> str:
        return str(self.client)

    def log_probs(
        self, samples: Sequence[Sample], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        """Log-probability (nats) of every learned token, one tuple a sample, in order.

        Refuses a temperature other than 1: servers score prompts at no other.
        """
        if temperature != 1.0:
            raise ConfigError(
                f"objective.teacher_temperature must be 1 with teacher_server, got {temperature}: "
                "servers score prompts with the logits as they are"
            )
        deadline = self.client.deadline()
        self._verify(deadline)
        sequences = [(s.prompt_ids + s.completion_ids, len(s.prompt_ids)) for s in samples]
        values = self.client.ask_all(
            [self.api.score_request(ids) for ids, _ in sequences],
            [partial(self.api.read_scores, token_ids=i, start=start) for i, start in sequences],
            deadline,
            before_retry=partial(self._verify_after_failure, deadline),
        )
        self._verify(deadline)
        pairs = zip(values, samples, strict=True)
        return [learned_only(found, sample.learned) for found, sample in pairs]

    def expect(self, log_probs: Sequence[float]) -> None:
        """Refuses to be another teacher than that of an earlier session, whose probe gave these."""
        if len(log_probs) != len(self.identity.log_probs):
            raise ServerError(f"{self}: the run was trained with a teacher of another vocabulary")
        self._compare(log_probs, "when the run was started")

    def _verify_after_failure(self, deadline: Deadline) -> None:
        """Verifies once per disturbance, whoever notices it first."""
        with self._verifying:
            seen = self.client.disturbances
            if seen > self._verified_at:
                probe = self.identity.probe_ids
                read = partial(self.api.read_scores, token_ids=probe, start=1)
                self._compare(
                    self.client.ask_once(self.api.score_request(probe), read, deadline), "now"
                )
                self._verified_at = seen

    def _verify(self, deadline: Deadline) -> None:
        """The fixed text is scored as at the start."""
        self._compare(score(self.client, self.api, self.identity.probe_ids, 1, deadline), "now")

    def _compare(self, log_probs: Sequence[float], when: str) -> None:
        nats = mean_difference(self.identity.log_probs, log_probs)
        tolerance = self.client.settings.tolerance_nats
        if not nats <= tolerance:
            raise ServerError(
                f"{self} is not one model: it scores a fixed text by {nats:.3g} nats a token "
                f"differently {when} than at the start of this session, allowed are {tolerance:g} "
                "(teacher_server.tolerance_nats). Serve the first model again, then resume."
            )
