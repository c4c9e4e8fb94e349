"""Rollouts with `transformers.generate`: the reference engine, right on any device.

Sampling is done by one logits processor with one uniform number per request and position, so a
completion depends on its own seed only, two policies given the same seeds are compared with common
random numbers, and no global generator is touched.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from effopd.errors import NonFiniteError
from effopd.models.policy import micro_batches
from effopd.models.tokenizers import end_token_ids, unused_ids
from effopd.rollouts.engine import Completion, Request, Sampling, without_end


class HFEngine:
    """Generates with the live student model itself, so weights are always in sync.

    At most `batch_size` requests are decoded together, and `batch_tokens` of prompts and answers
    with padding, every answer counted at the length cap. The policy has `vocabulary_size` head
    rows, of which those without a token are never drawn. `during` is entered while writing, see
    `Policy`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 128,
        batch_tokens: int | None = None,
        during: Callable[[], AbstractContextManager[object]] = nullcontext,
        vocabulary_size: int | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._ends = end_token_ids(tokenizer, model)
        self._batch_size, self._batch_tokens = batch_size, batch_tokens or sys.maxsize
        self._during = during
        rows = model.get_output_embeddings().weight.shape[0]
        self._vocabulary_size = rows if vocabulary_size is None else vocabulary_size
        unused = unused_ids(tokenizer, self._vocabulary_size)
        self._unused_U = torch.tensor(unused, dtype=torch.long)

    def sync_weights(self) -> None:
        """Nothing to do: the live model generates."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in order; see `Engine.generate`."""
        lengths = [len(request.prompt_ids) + sampling.max_new_tokens for request in requests]
        batches = micro_batches(lengths, tokens=self._batch_tokens, sequences=self._batch_size)
        with self._during():
            return [
                completion
                for indices in batches
                for completion in self._batch([requests[i] for i in indices], sampling)
            ]

    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        device = self._model.get_input_embeddings().weight.device
        # Prompts stand on the right, padding on the left.
        width = max(len(r.prompt_ids) for r in requests)
        ids_BT = torch.full((len(requests), width), self._tokenizer.pad_token_id)
        attention_BT = torch.zeros_like(ids_BT)
        for row, request in enumerate(requests):
            ids_BT[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            attention_BT[row, width - len(request.prompt_ids) :] = 1
        caps_B = [r.sampling(sampling).max_new_tokens for r in requests]
        sampling = replace(sampling, max_new_tokens=max(caps_B))
        sampler = SeededSampler(
            [request.seed for request in requests],
            sampling,
            device,
            vocabulary_size=self._vocabulary_size,
            unused_U=self._unused_U,
        )
        finish = FinishRecorder(ids_BT.shape, sampling.stop, self._tokenizer, self._ends, device)
        with _plain_generation(self._model, self._tokenizer.pad_token_id):
            self._model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=attention_BT.to(device),
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_new_tokens, do_sample=False
                ),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([finish]),
            )
        # Rows are cut where they ended; the rest was padding.
        tokens_BT = torch.stack(sampler.tokens, dim=1).tolist()
        log_probs_BT = torch.stack(sampler.log_probs, dim=1).tolist()
        ended_B = finish.lengths_B.tolist()
        lengths_B = [min(pair) for pair in zip(ended_B, caps_B, strict=True)]
        stopped_B = [end <= cap for end, cap in zip(ended_B, caps_B, strict=True)]
        kept = [tuple(row[:n]) for row, n in zip(tokens_BT, lengths_B, strict=True)]
        texts = self._tokenizer.batch_decode(
            [without_end(tokens, self._ends) for tokens in kept], skip_special_tokens=True
        )
        return [
            Completion(
                token_ids=tokens,
                log_probs=tuple(row[: len(tokens)]),
                finish_reason="stop" if stopped else "length",
                text=text,
            )
            for tokens, row, stopped, text in zip(kept, log_probs_BT, stopped_B, texts, strict=True)
        ]


class SeededSampler(LogitsProcessor):
    """Chooses each next token by inverting the distribution function at a seeded uniform number.

    Leaves a single finite score per row, so greedy decoding picks the chosen token. Row i uses the
    same numbers in any batch; the leading `vocabulary_size` logits belong to the vocabulary. The
    rows `unused_U` are left out of the draw, as by top-k: log-probabilities are before that.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        sampling: Sampling,
        device: torch.device,
        *,
        vocabulary_size: int | None = None,
        unused_U: Int[Tensor, " U"] | None = None,
    ) -> None:
        self._sampling = sampling
        self._vocabulary_size = vocabulary_size
        masks = unused_U is not None and unused_U.numel()
        self._unused_U = unused_U.to(device) if unused_U is not None and masks else None
        self._uniforms_BT = torch.stack([_uniforms(s, sampling.max_new_tokens) for s in seeds])
        self._uniforms_BT = self._uniforms_BT.to(device)
        self.tokens: list[Int[Tensor, " B"]] = []
        self.log_probs: list[Float[Tensor, " B"]] = []

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Masks everything but the chosen token."""
        known = scores[:, : self._vocabulary_size]
        if not torch.isfinite(known).all():
            raise NonFiniteError("the student's logits are not finite: its weights may hold NaN")
        logits_BV = known / (self._sampling.temperature or 1.0)
        log_probs_BV = torch.log_softmax(logits_BV, dim=-1)
        if self._unused_U is not None:
            logits_BV = logits_BV.index_fill(1, self._unused_U, -torch.inf)
        if self._sampling.temperature == 0:
            tokens_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        else:
            if self._sampling.top_k:
                logits_BV = TopKLogitsWarper(self._sampling.top_k)(input_ids, logits_BV)
            if self._sampling.top_p < 1:
                logits_BV = TopPLogitsWarper(self._sampling.top_p)(input_ids, logits_BV)
            mass_BV = torch.softmax(logits_BV, dim=-1).double().cumsum(dim=-1)
            aim_B = self._uniforms_BT[:, len(self.tokens)] * mass_BV[:, -1]
            tokens_B1 = torch.searchsorted(mass_BV, aim_B[:, None], right=True)
        self.tokens.append(tokens_B1[:, 0])
        self.log_probs.append(log_probs_BV.gather(1, tokens_B1)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens_B1, 0.0)


class FinishRecorder(StoppingCriteria):
    """Stops rows at an end token or a stop string and records how long they are.

    Stop strings are looked for in the decoded text, so any tokenizer will do.
    """

    def __init__(
        self,
        prompt_shape: Sequence[int],
        stop: Sequence[str],
        tokenizer: Any,
        ends: Sequence[int],
        device: torch.device,
    ) -> None:
        rows, self._prompt_length = prompt_shape
        self._tokenizer = tokenizer
        self._stop, self._ends_E = tuple(stop), torch.tensor(ends, device=device)
        # Tokens that can hold a stop string ending now: a token is at least one byte of text,
        # special tokens apart. The spare ones keep its start away from the start of the window,
        # where decoders drop spaces.
        self._window = max((len(text.encode()) for text in stop), default=0) + 8
        self.lengths_B = torch.full((rows,), torch.iinfo(torch.long).max, device=device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Bool[Tensor, " B"]:
        """Which rows are finished."""
        length = input_ids.shape[1] - self._prompt_length
        ends_B = torch.isin(input_ids[:, -1], self._ends_E)
        if self._stop:
            written_BT = input_ids[:, self._prompt_length :][:, -self._window :]
            texts = self._tokenizer.batch_decode(written_BT)
            found = [any(stop in text for stop in self._stop) for text in texts]
            ends_B = ends_B | torch.tensor(found, device=ends_B.device)
        first_end_B = ends_B & (self.lengths_B > length)
        self.lengths_B[first_end_B] = length
        return self.lengths_B <= length


@contextmanager
def _plain_generation(model: Any, pad_token_id: int) -> Iterator[None]:
    """Evaluation mode, and none of the model's own generation defaults, which would leak in."""
    defaults, training = model.generation_config, model.training
    model.generation_config = GenerationConfig(pad_token_id=pad_token_id)
    model.eval()
    try:
        yield
    finally:
        model.generation_config = defaults
        model.train(training)


def _uniforms(seed: int, count: int) -> Float[Tensor, " T"]:
    """`count` numbers in [0, 1) that depend on the seed alone; a prefix of any longer draw."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)
