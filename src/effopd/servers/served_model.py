"""A teacher that several students ask: their requests that wait together are one forward pass.

docs/servers.md has the protocol; `teacher_server` brings it to HTTP.

Legend: N tokens of one answer, D hidden width, V rows of the head.
"""

import hashlib
import json
import math
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import torch
from torch import Tensor

from effopd.errors import ConfigError, EffopdError
from effopd.models.policy import Policy, Sample, micro_batches
from effopd.objectives import token_log_probs
from effopd.servers.hidden_states import (
    FINGERPRINT,
    HEAD,
    HEALTH,
    LOG_PROBS,
    PROTOCOL,
    STATES,
    TEACHER,
    write_tensors,
)  # fmt: skip

JSON, SAFETENSORS = "application/json", "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class TeacherServerSettings:
    """Where a teacher is served, and what it takes.

    Attributes:
        name: Under which students ask for the model (`teacher_server.model`).
        host: Address to listen at; others than this machine's own need a key.
        port: Port; 0 takes a free one.
        key: What students send as bearer key; "" asks for none.
        max_tokens: Longest prompt and answer together.
        batch_tokens: Padded tokens of one forward pass, unless a single answer is longer.
        waiting: Requests that may wait; more are told to come back.
        connections: Connections at a time.
        request_s: Seconds a client may keep a connection without sending or reading.
    """

    name: str = "teacher"
    host: str = "127.0.0.1"
    port: int = 8000
    key: str = ""
    max_tokens: int = 32_768
    batch_tokens: int = 32_768
    waiting: int = 256
    connections: int = 512
    request_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("name must be what students ask for, got an empty one")
        for name, least in (("max_tokens", 2), ("batch_tokens", 1), ("waiting", 1),
                            ("connections", 1)):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port must be 0 to 65535, got {self.port}")
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError("the key must be printable ASCII (it is not shown)")
        if not self.key and not is_own_address(self.host):
            raise ConfigError(
                f"host = {self.host!r} can be reached from other machines: give a key (--key-env), "
                "or listen at 127.0.0.1"
            )


def is_own_address(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Reply(NamedTuple):
    """What is sent back."""

    status: int
    content: bytes
    kind: str = JSON
    headers: Mapping[str, str] = {}

    @classmethod
    def of(cls, status: int, content: object, **headers: str) -> "Reply":
        """JSON, with headers whose names have _ for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(content).encode(), headers=named)

    @classmethod
    def error(cls, status: int, message: str, **headers: str) -> "Reply":
        """A refusal."""
        return cls.of(status, {"error": message}, **headers)


class _RefusedError(Exception):
    """A request that is not as it should be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """Token ids to be scored from `start` on; the answer is hidden states, or log-probabilities."""

    sample: Sample
    rows: int  # of the head, for log-probabilities; 0 for hidden states
    found: "Future[Tensor]"


class ServedModel:
    """What a teacher's server answers, whatever brings the requests; `close` ends its thread.

    Answers depend on the others of their forward pass by rounding alone.
    """

    def __init__(self, policy: Policy, settings: TeacherServerSettings) -> None:
        self.policy, self.settings = policy, settings
        longest = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
        self.context = min(settings.max_tokens, longest or settings.max_tokens)
        self.fingerprint = fingerprint_of(policy)
        self._head_cap: float | None = getattr(policy, "head_cap", None)
        self.batches: list[int] = []  # requests of each forward pass
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.waiting, self._lock = 0, threading.Lock()  # requests whose answers are not computed
        self._thread = threading.Thread(target=self._work, name="teacher")
        self._thread.start()

    def close(self) -> None:
        """Answers what waits, then ends."""
        self._jobs.put(None)
        self._thread.join()

    def answer(self, path: str, asked: Any) -> Reply:
        """The reply to one request; `asked` is its JSON value, None for a GET."""
        try:
            return self._answer(path, asked)
        except _RefusedError as error:
            return Reply.error(400, str(error))
        except EffopdError as error:
            return Reply.error(500, str(error))

    def describe(self) -> dict[str, Any]:
        """What a client compares: which model, which vocabulary, how hidden states are made."""
        head = self.policy.head_weight_VD
        return {
            "protocol": PROTOCOL,
            "model": self.settings.name,
            FINGERPRINT: self.fingerprint,
            "vocabulary": vocabulary_digest(self.policy.tokenizer),
            "rows": head.shape[0],
            "width": head.shape[1],
            "dtype": str(head.dtype).removeprefix("torch."),
            "logit_factor": self.policy.logit_factor,  # is in the hidden states already
            "head_cap": self._head_cap,
            "end_ids": list(self.policy.end_ids),
            "context": self.context,
        }

    def _answer(self, path: str, asked: Any) -> Reply:
        route, query = urlsplit(path).path, parse_qs(urlsplit(path).query)
        if asked is None:
            if route == HEALTH:
                return Reply.of(200, {"status": "ok", "waiting": self.waiting})
            if route == "/v1/models":
                return Reply.of(200, {"object": "list", "data": [{"id": self.settings.name}]})
            if route == TEACHER:
                return Reply.of(200, self.describe())
            if route == HEAD:
                return self._head(query.get("vocabulary_size", [""])[0])
            return Reply.error(404, f"no {route}")
        if not isinstance(asked, dict):
            raise _RefusedError("the body must be a JSON object")
        if route == "/tokenize":
            return self._tokenize(asked)
        if route not in {STATES, LOG_PROBS}:
            return Reply.error(404, f"no {route}")
        job = self._job(asked, is_scored=route == LOG_PROBS)
        with self._lock:
            if self.waiting >= self.settings.waiting:
                return Reply.error(503, "too many requests wait", Retry_After="1")
            self.waiting += 1
        self._jobs.put(job)
        try:
            found = job.found.result()
        finally:
            with self._lock:
                self.waiting -= 1
        if route == STATES:
            content = write_tensors({"states": found}, self.fingerprint)
            return Reply(200, content, SAFETENSORS)
        values = [value if math.isfinite(value) else None for value in found.tolist()]
        return Reply.of(200, {"log_probs": values, FINGERPRINT: self.fingerprint})

    def _tokenize(self, asked: dict[str, Any]) -> Reply:
        text, special = asked.get("prompt"), asked.get("add_special_tokens", True)
        if not isinstance(text, str) or type(special) is not bool:
            raise _RefusedError("prompt must be a text, add_special_tokens true or false")
        ids = self.policy.tokenizer(text, add_special_tokens=special)["input_ids"]
        return Reply.of(200, {"tokens": ids, "count": len(ids), "max_model_len": self.context})

    def _head(self, asked: str) -> Reply:
        weight_VD, bias_V = self.policy.head_weight_VD, self.policy.head_bias_V
        rows = int(asked) if asked.isdecimal() and len(asked) < 10 else len(weight_VD)
        if not 0 < rows <= len(weight_VD):
            raise _RefusedError(f"vocabulary_size must be 1 to {len(weight_VD)}, got {rows}")
        tensors = {"weight": weight_VD[:rows]}
        if bias_V is not None:
            tensors["bias"] = bias_V[:rows]
        return Reply(200, write_tensors(tensors, self.fingerprint), SAFETENSORS)

    def _job(self, asked: dict[str, Any], *, is_scored: bool) -> _Job:
        """What is asked for, checked."""
        rows = len(self.policy.head_weight_VD)
        used = asked.get("vocabulary_size", rows)
        if type(used) is not int or not 0 < used <= rows:
            raise _RefusedError(f"vocabulary_size must be 1 to {rows}, got {used!r:.40}")
        ids, start = asked.get("token_ids"), asked.get("start")
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < used for i in ids):
            raise _RefusedError(f"token_ids must be a list of numbers from 0 to {used - 1}")
        if not 2 <= len(ids) <= self.context:
            raise _RefusedError(f"token_ids must be 2 to {self.context} tokens, got {len(ids)}")
        if type(start) is not int or not 1 <= start < len(ids):
            raise _RefusedError(f"start must be 1 to {len(ids) - 1}, got {start!r:.40}")
        sample = Sample(prompt_ids=tuple(ids[:start]), completion_ids=tuple(ids[start:]))
        return _Job(sample=sample, rows=used if is_scored else 0, found=Future())

    # The thread that holds the model --------------------------------------------------------------

    def _work(self) -> None:
        """Takes all that waits, as far as it fits into one forward pass, until `close`."""
        waiting: list[_Job] = []
        closing = False
        while waiting or not closing:
            while not closing:
                try:
                    job = self._jobs.get(block=not waiting)
                except queue.Empty:
                    break
                closing = job is None
                if job is not None:
                    waiting.append(job)
            if not waiting:
                continue
            lengths = [job.sample.length for job in waiting]
            taken = len(next(micro_batches(lengths, tokens=self.settings.batch_tokens)))
            batch, waiting = waiting[:taken], waiting[taken:]
            self.batches.append(taken)
            try:
                found = self._compute(batch)
            except Exception as error:  # every request of the batch hears of it
                refusal = EffopdError(f"the model failed: {error}")
                for job in batch:
                    job.found.set_exception(refusal)
                continue
            for job, tensor in zip(batch, found, strict=True):
                job.found.set_result(tensor)

    @torch.no_grad()
    def _compute(self, batch: list[_Job]) -> list[Tensor]:
        """Hidden states [N, D] or log-probabilities [N] of each job, on the CPU."""
        packed = self.policy.states([job.sample for job in batch])
        hidden = packed.hidden_ND.split(packed.lengths)
        targets, bias_V = packed.targets_N.split(packed.lengths), self.policy.head_bias_V
        found = []
        for job, hidden_ND, targets_N in zip(batch, hidden, targets, strict=True):
            if not job.rows:
                found.append(hidden_ND.cpu())
                continue
            weight_VD = self.policy.head_weight_VD[: job.rows]
            bias = None if bias_V is None else bias_V[: job.rows]
            scored = token_log_probs(hidden_ND, weight_VD, targets_N, bias=bias, cap=self._head_cap)
            found.append(scored.log_probs_N.cpu())
        return found


def fingerprint_of(policy: Policy) -> str:
    """SHA-256 of all weights by name, shape and dtype, of the vocabulary and the logits' factor."""
    digest = hashlib.sha256(f"{vocabulary_digest(policy.tokenizer)} {policy.logit_factor}".encode())
    for name, tensor in sorted(policy.model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of the tokens by their ids."""
    tokens = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
