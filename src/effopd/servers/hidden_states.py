"""The protocol of `effopd serve-teacher`: paths, and tensors as safetensors (docs/servers.md)."""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from effopd.errors import ConfigError, ServerError
from effopd.servers.client import IncompleteAnswerError, ServerRequest, TransientServerError
from effopd.servers.dialects import (
    Api,
    Generation,
    TokenIds,
    TopRows,
    check_count,
    field,
    log_probs_of,
)  # fmt: skip

PROTOCOL = 1
HEALTH, TEACHER, HEAD = "/health", "/v1/teacher", "/v1/head"
STATES, LOG_PROBS = "/v1/states", "/v1/log_probs"
FINGERPRINT = "fingerprint"
_NO_TOP_K = "flavor = 'effopd' gives hidden states, not likely tokens: ask for `states`"
_HEADER_BYTES = 2**16
_WRITES_NOTHING = (
    "flavor = 'effopd' scores answers and writes none: let vLLM or SGLang, or the live model "
    "(rollouts.engine = 'hf'), write them, and leave out what the teacher would write "
    "(evaluation.teacher = false)"
)


def write_tensors(tensors: Mapping[str, Tensor], fingerprint: str) -> bytes:
    """Tensors in their own dtypes, and the fingerprint of the model that they are from."""
    moved = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(moved, metadata={FINGERPRINT: fingerprint})


def read_tensors(content: Any) -> tuple[dict[str, Tensor], str]:
    """What `write_tensors` wrote; TransientServerError for anything else."""
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, str(header["__metadata__"][FINGERPRINT])
    except (SafetensorError, TypeError, KeyError, ValueError):
        raise TransientServerError("an answer that is no safetensors with a fingerprint") from None


class EffopdApi(Api):
    """`effopd serve-teacher`: log-probabilities and last hidden states, and no text.

    Every answer names the model that it is from: another one than `meet` was told is an error.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._fingerprint, self._rows, self._width = "", 0, 0
        self._dtype = torch.float32
        self.head_cap: float | None = None

    def read_description(self, answer: Any) -> dict[str, Any]:
        """What the server says of its model."""
        kinds = {"fingerprint": str, "rows": int, "width": int, "dtype": str, "protocol": int}
        for name, kind in kinds.items():
            if type(field(answer, name)) is not kind:
                raise TransientServerError(f"an answer whose {name} is no {kind.__name__}")
        cap = field(answer, "head_cap")
        if not (cap is None or (type(cap) is float and 0 < cap < math.inf)):
            raise TransientServerError("an answer whose head_cap is neither null nor positive")
        return dict(answer)

    def meet(self, description: dict[str, Any], vocabulary_size: int) -> None:
        """Takes the described model for the one that is meant from now on."""
        if description["protocol"] != PROTOCOL:
            raise ServerError(
                f"the server speaks version {description['protocol']} of the protocol, expected "
                f"is {PROTOCOL}: run one version of effopd on both sides"
            )
        dtype = getattr(torch, description["dtype"], None)
        if not isinstance(dtype, torch.dtype) or description["rows"] < vocabulary_size:
            raise ServerError(
                f"the server's head has {description['rows']} rows of {description['dtype']}, the "
                f"student's vocabulary {vocabulary_size} tokens: serve a model of the student's "
                "family"
            )
        self._fingerprint, self._dtype = description["fingerprint"], dtype
        self._rows, self._width = vocabulary_size, description["width"]
        self.head_cap = description["head_cap"]

    def score_request(self, token_ids: TokenIds, top_k: int = 0) -> ServerRequest:
        """See `Api`; over the first `vocabulary_size` rows of the head."""
        if top_k:
            raise ConfigError(_NO_TOP_K)
        payload = {"token_ids": list(token_ids), "start": 1, "vocabulary_size": self._rows}
        return ServerRequest(path=LOG_PROBS, payload=payload)

    def read_scores(self, answer: Any, token_ids: TokenIds, start: int) -> tuple[float, ...]:
        """See `Api`."""
        values = None if answer is None else field(answer, "log_probs")
        if not values:
            return log_probs_of([None] * (len(token_ids) - start))
        self._check(field(answer, FINGERPRINT))
        check_count(values, len(token_ids) - 1)
        return log_probs_of(values[start - 1 :])

    def states_request(self, token_ids: TokenIds, start: int) -> ServerRequest:
        """Asks for the hidden states that predict `token_ids[start:]`."""
        most = (len(token_ids) - start) * self._width * self._dtype.itemsize + _HEADER_BYTES
        payload = {"token_ids": list(token_ids), "start": start}
        return ServerRequest(path=STATES, payload=payload, is_binary=True, most_bytes=most)

    def read_states(self, answer: Any, token_ids: TokenIds, start: int) -> Tensor:
        """Hidden states [n, D] as the head takes them; a row that is not finite is all NaN."""
        shape = (len(token_ids) - start, self._width)
        if answer is None:
            empty = torch.full(shape, math.nan, dtype=self._dtype)
            raise IncompleteAnswerError("an answer without hidden states", partial=empty)
        hidden_ND = self._tensors(answer).get("states")
        if hidden_ND is None or (hidden_ND.shape, hidden_ND.dtype) != (shape, self._dtype):
            found = None if hidden_ND is None else tuple(hidden_ND.shape)
            raise TransientServerError(f"hidden states of shape {found}, expected is {shape}")
        is_finite_N = hidden_ND.isfinite().all(dim=1)
        if not is_finite_N.all():
            hidden_ND[~is_finite_N] = math.nan
            message = f"the hidden state of token {int(is_finite_N.int().argmin())} is not finite"
            raise IncompleteAnswerError(message, partial=hidden_ND)
        return hidden_ND

    def head_request(self) -> ServerRequest:
        """Asks for the output head."""
        most = self._rows * (self._width + 1) * self._dtype.itemsize + _HEADER_BYTES
        path = f"{HEAD}?vocabulary_size={self._rows}"
        return ServerRequest(path=path, is_binary=True, most_bytes=most)

    def read_head(self, answer: Any) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] of the vocabulary's rows, and bias [V] if there is one."""
        tensors = self._tensors(answer)
        weight_VD, bias_V = tensors.get("weight"), tensors.get("bias")
        right = weight_VD is not None and weight_VD.shape == (self._rows, self._width)
        if weight_VD is None or not right or not (bias_V is None or len(bias_V) == self._rows):
            raise TransientServerError("a head of another shape than the model's")
        if not all(bool(t.isfinite().all()) for t in tensors.values()):
            raise IncompleteAnswerError("the head holds a NaN or an infinity", partial=None)
        return weight_VD, bias_V

    def _tensors(self, answer: Any) -> dict[str, Tensor]:
        tensors, fingerprint = read_tensors(answer)
        self._check(fingerprint)
        return tensors

    def _check(self, fingerprint: Any) -> None:
        if fingerprint != self._fingerprint:
            raise ServerError(
                f"the teacher at the server is not one model: its fingerprint is "
                f"{fingerprint!r:.40}, at the start of this session it was {self._fingerprint!r}. "
                "Serve the first model again, then resume."
            )

    def _generate_request(
        self, prompt_ids: TokenIds, seed: int, max_tokens: int, drawn: dict[str, Any]
    ) -> ServerRequest:
        raise ConfigError(_WRITES_NOTHING)

    def read_generation(self, answer: Any) -> Generation:
        """See `Api`; there is none."""
        raise ConfigError(_WRITES_NOTHING)

    def read_top(self, answer: Any, token_ids: TokenIds, start: int, k: int) -> TopRows:
        """See `Api`; hidden states hold more."""
        raise ConfigError(_NO_TOP_K)

    def reload_requests(self, directory: str) -> list[ServerRequest]:
        """See `Api`; its weights are fixed."""
        raise ConfigError(_WRITES_NOTHING)
