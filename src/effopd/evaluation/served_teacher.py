"""A teacher behind a server: log-probabilities, likely tokens, or hidden states of given tokens."""

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ServerError
from effopd.models.policy import Sample, learned_only
from effopd.servers.client import Client, Deadline, IncompleteAnswerError, ServerRequest
from effopd.servers.handshake import Identity, api_of, mean_difference, score, verify_server
from effopd.servers.hidden_states import EffopdApi
from effopd.servers.settings import ServerSettings

T = TypeVar("T")


def likely_bytes(k: int) -> int:
    """Of one token of `LikelyTokens`: k ids in int64 and values in float32, one in float64."""
    return 12 * k + 8


class LikelyTokens(NamedTuple):
    """What vLLM and SGLang say of an answer: the two of `TopK`, and the values of its own tokens.

    All are log-probabilities in nats; `written_N` is float64.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor
    written_N: Tensor


class ServedHead(NamedTuple):
    """The output head of a teacher behind a server, for the student's vocabulary."""

    weight_VD: Tensor
    bias_V: Tensor | None
    cap: float | None  # of soft-capped logits


class Missing(NamedTuple):
    """What a server was asked for in this session, and what of it did not come."""

    asked_tokens: int = 0
    tokens: int = 0  # null or NaN in the last answer, those of empty answers included
    answers: int = 0  # of which nothing came


class ServedTeacher:
    """Scores tokens through a server, which may go away and come back meanwhile.

    It is the same model throughout, or an error says that it is not: a fixed text is scored at the
    start, at the beginning and end of every step, and after every failure.

    The server's tokenizer must be the student's, whose token ids are below `vocabulary_size`.
    Prompt and answer have `longest` tokens together. The seed decides the jitter of waits, and
    `device` is where `head` lies.

    Attributes:
        missing: Values that did not come so far. They are NaN in what the methods return; more of
            them in one call than `missing_share` allows, in more than one answer, are a
            NonFiniteError.
    """

    def __init__(
        self,
        settings: ServerSettings,
        tokenizer: Any,
        *,
        vocabulary_size: int,
        longest: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.client, self.api = Client(settings, seed), api_of(settings)
        self.tokenizer, self.vocabulary_size = tokenizer, vocabulary_size
        self._device = device
        self.identity: Identity = verify_server(
            self.client, self.api, tokenizer, vocabulary_size, longest
        )
        self.missing = Missing()
        self._head: ServedHead | None = None
        self._verifying = threading.Lock()
        self._verified_at = self.client.disturbances

    def __str__(self) -> str:
        return str(self.client)

    def log_probs(
        self, samples: Sequence[Sample], *, temperature: float = 1.0
    ) -> list[tuple[float, ...]]:
        """Log-probability (nats) of every learned token, one tuple a sample, in order.

        NaN where the server gives none. Refuses a temperature other than 1: servers score prompts
        at no other.
        """
        if temperature != 1.0:
            raise ConfigError(
                f"objective.teacher_temperature must be 1 with teacher_server, got {temperature}: "
                "servers score prompts with the logits as they are"
            )
        values = self._ask(
            samples,
            lambda ids, start: self.api.score_request(ids),
            lambda answer, ids, start: self.api.read_scores(answer, ids, start),
        )
        pairs = zip(values, samples, strict=True)
        found = [learned_only(row, sample.learned) for row, sample in pairs]
        self._count([[math.isnan(value) for value in row] for row in found])
        return found

    def likely(self, samples: Sequence[Sample], k: int) -> list[LikelyTokens]:
        """The k likeliest tokens in the place of every learned token, and its own value.

        Ids are int64 [n, k], most likely first, log-probabilities float32 [n, k] over the server's
        whole vocabulary: its rows that are no token of the student have ids of at least
        `vocabulary_size`. A place that the server does not give is a row of NaN. vLLM and SGLang.
        """

        def read(answer: Any, ids: tuple[int, ...], start: int) -> list[Any]:
            found, missing = list[Any](), ""
            for part in (partial(self.api.read_top, k=k), self.api.read_scores):
                try:
                    found.append(part(answer, ids, start))
                except IncompleteAnswerError as error:
                    found.append(error.partial)
                    missing = missing or str(error)
            if missing:
                raise IncompleteAnswerError(missing, partial=found)
            return found

        rows = self._ask(samples, lambda ids, start: self.api.score_request(ids, k), read)
        found = []
        for ((ids, values), written), s in zip(rows, samples, strict=True):
            learned = [learned_only(each, s.learned) for each in (ids, values, written)]
            found.append(
                LikelyTokens(
                    torch.tensor(learned[0], dtype=torch.int64).reshape(-1, k),
                    torch.tensor(learned[1], dtype=torch.float32).reshape(-1, k),
                    torch.tensor(learned[2], dtype=torch.float64),
                )
            )
        self._count(
            [(each.log_probs_NK[:, 0].isnan() | each.written_N.isnan()).tolist() for each in found]
        )
        return found

    def states(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Hidden states [n, D] that predict every learned token, on the CPU, one a sample.

        In the dtype of the model, as `head` takes them (`Policy.states`); a row that the server
        does not give is NaN. Needs `flavor = "effopd"`.
        """
        api = self._states_api()
        pairs = zip(self._ask(samples, api.states_request, api.read_states), samples, strict=True)
        found = [each if s.learned is None else each[torch.tensor(s.learned)] for each, s in pairs]
        self._count([hidden_ND[:, 0].isnan().tolist() for hidden_ND in found])
        return found

    @property
    def head(self) -> ServedHead:
        """The head of the hidden states; fetched once. Needs `flavor = "effopd"`."""
        api = self._states_api()
        if self._head is None:
            deadline = self.client.deadline()
            weight_VD, bias_V = self.client.ask(api.head_request(), api.read_head, deadline)
            bias_V = None if bias_V is None else bias_V.to(self._device)
            self._head = ServedHead(weight_VD.to(self._device), bias_V, api.head_cap)
        return self._head

    @property
    def gives_states(self) -> bool:
        """Whether `states` and `head` can be asked for."""
        return isinstance(self.api, EffopdApi)

    @property
    def gives_distributions(self) -> bool:
        """Whether `read` can be asked for, which dense losses and scores compare with."""
        return self.gives_states or self.client.settings.top_k > 0

    @property
    def token_bytes(self) -> int:
        """Of what `read` gives for one token."""
        if self.gives_states:
            weight_VD = self.head.weight_VD
            return weight_VD.shape[1] * weight_VD.element_size()
        return likely_bytes(self.client.settings.top_k)

    def read(self, samples: Sequence[Sample]) -> list[Tensor] | list[LikelyTokens]:
        """What the server says of the distribution at every learned token, one entry a sample.

        Hidden states where it gives them, else the `teacher_server.top_k` likeliest tokens.
        """
        if self.gives_states:
            return self.states(samples)
        return self.likely(samples, self.client.settings.top_k)

    def expect(self, log_probs: Sequence[float]) -> None:
        """Refuses to be another teacher than that of an earlier session, whose probe gave these."""
        if len(log_probs) != len(self.identity.log_probs):
            raise ServerError(f"{self}: the run was trained with a teacher of another vocabulary")
        self._compare(log_probs, "when the run was started")

    def _states_api(self) -> EffopdApi:
        if not isinstance(self.api, EffopdApi):
            raise ConfigError(
                f"{self} gives no hidden states: serve the teacher by `effopd serve-teacher` and "
                "set teacher_server.flavor = 'effopd'"
            )
        return self.api

    def _ask(
        self,
        samples: Sequence[Sample],
        request: Callable[[tuple[int, ...], int], ServerRequest],
        read: Callable[[Any, tuple[int, ...], int], T],
    ) -> list[T]:
        """One answer a sample, from the same model before and after; values may be missing."""
        deadline = self.client.deadline()
        self._verify(deadline)
        sequences = [(s.prompt_ids + s.completion_ids, len(s.prompt_ids)) for s in samples]
        values = self.client.ask_all(
            [request(ids, start) for ids, start in sequences],
            [partial(_read_by, read, ids, start) for ids, start in sequences],
            deadline,
            before_retry=partial(self._verify_after_failure, deadline),
            accept_incomplete=True,
        )
        self._verify(deadline)
        return values

    def _count(self, is_missing: Sequence[Sequence[bool]]) -> None:
        """Adds to `missing`; refuses more than the settings allow."""
        tokens, gone = sum(map(len, is_missing)), sum(map(sum, is_missing))
        empty = sum(bool(row) and all(row) for row in is_missing)
        self.missing = Missing(
            self.missing.asked_tokens + tokens,
            self.missing.tokens + gone,
            self.missing.answers + empty,
        )
        concerned = sum(map(any, is_missing))
        allowed = self.client.settings.missing_share
        if gone and (gone == tokens or (concerned > 1 and gone > allowed * tokens)):
            raise NonFiniteError(
                f"{self} gave no finite value for {gone} of {tokens} tokens, in {concerned} of "
                f"{len(is_missing)} answers ({empty} empty); allowed is a share of {allowed:g} "
                "(teacher_server.missing_share): look at the server's log, serve the teacher in "
                "bfloat16 or float32, or allow more"
            )

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


def _read_by(
    read: Callable[[Any, tuple[int, ...], int], T], ids: tuple[int, ...], start: int, answer: Any
) -> T:
    return read(answer, ids, start)
