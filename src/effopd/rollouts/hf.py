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
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from effopd.errors import NonFiniteError
from effopd.models.policy import CACHE, micro_batches
from effopd.models.tokenizers import end_token_ids, unused_ids
from effopd.rollouts.engine import Completion, Request, Sampling, without_end

_BLOCK_TOKENS = 512  # of the vocabulary, whose probabilities are summed together
_FEWEST_TO_SPLIT = 8  # rows, of which half are worth leaving out


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
        # Models that see images keep the positions of their rows beside the cache.
        self._may_select = not any("rope_deltas" in vars(each) for each in model.modules())

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
        ids_RT = torch.full((len(requests), width), self._tokenizer.pad_token_id)
        attention_RT = torch.zeros_like(ids_RT)
        for row, request in enumerate(requests):
            ids_RT[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            attention_RT[row, width - len(request.prompt_ids) :] = 1
        ids_RT, attention_RT = ids_RT.to(device), attention_RT.to(device)
        caps_B = [r.sampling(sampling).max_new_tokens for r in requests]
        sampling = replace(sampling, max_new_tokens=max(caps_B))
        seeds = [request.seed for request in requests]
        known: Any = {"vocabulary_size": self._vocabulary_size, "unused_U": self._unused_U}
        sampler = SeededSampler(seeds, sampling, device, **known)
        finish = FinishRecorder(ids_RT.shape, sampling.stop, self._tokenizer, self._ends, device)
        with _plain_generation(self._model, self._tokenizer.pad_token_id):
            cache = self._shared_prompts(requests, ids_RT, attention_RT)
            # Written until half of the rows are finished, then without those.
            going_R = sampler.rows_R
            while len(going_R) and (left := sampling.max_new_tokens - sampler.position) > 0:
                written = self._model.generate(
                    input_ids=ids_RT,
                    attention_mask=attention_RT,
                    generation_config=_greedy(left),
                    logits_processor=LogitsProcessorList([sampler]),
                    stopping_criteria=StoppingCriteriaList([finish]),
                    **{CACHE: cache},
                )
                cache, ids_RT = getattr(written, CACHE), written.sequences
                new_tokens = ids_RT.shape[1] - attention_RT.shape[1]
                attention_RT = functional.pad(attention_RT, (0, new_tokens), value=1)
                going_R = torch.nonzero(finish.lengths_B[sampler.rows_R] > sampler.position)[:, 0]
                if self._may_select and _can_select(cache):
                    cache.batch_select_indices(going_R)
                    ids_RT, attention_RT = ids_RT[going_R], attention_RT[going_R]
                    sampler.rows_R = finish.rows_R = sampler.rows_R[going_R]
                else:  # such as a recurrent state: all rows go on
                    finish.may_pause = False
        # Rows are cut where they ended; the rest was padding.
        ended_B = finish.lengths_B.tolist()
        lengths_B = [min(pair) for pair in zip(ended_B, caps_B, strict=True)]
        stopped_B = [end <= cap for end, cap in zip(ended_B, caps_B, strict=True)]
        rows = zip(sampler.tokens_BT.tolist(), lengths_B, strict=True)
        kept = [tuple(row[:length]) for row, length in rows]
        texts = self._tokenizer.batch_decode(
            [without_end(tokens, self._ends) for tokens in kept], skip_special_tokens=True
        )
        log_probs = sampler.log_probs_BT.tolist()
        return [
            Completion(
                token_ids=tokens,
                log_probs=tuple(row[: len(tokens)]),
                finish_reason="stop" if stopped else "length",
                text=text,
            )
            for tokens, row, stopped, text in zip(kept, log_probs, stopped_B, texts, strict=True)
        ]

    def _shared_prompts(
        self, requests: Sequence[Request], ids_RT: Tensor, attention_RT: Tensor
    ) -> Any:
        """Keys and values of prompts that several requests have, read once; None without any."""
        first_rows = {request.prompt_ids: row for row, request in reversed([*enumerate(requests)])}
        prompts = sorted(first_rows, key=first_rows.__getitem__)
        if len(prompts) == len(requests) or min(map(len, prompts)) < 2 or not self._may_select:
            return None
        # What follows reads the last token of a prompt anew: it needs one to begin with.
        rows_U = torch.tensor([first_rows[prompt] for prompt in prompts], device=ids_RT.device)
        cache = getattr(
            self._model.generate(
                input_ids=ids_RT[rows_U, :-1],
                attention_mask=attention_RT[rows_U, :-1],
                generation_config=_greedy(1),
            ),
            CACHE,
        )
        if not _can_select(cache):
            return None
        places = {prompt: place for place, prompt in enumerate(prompts)}
        cache.batch_select_indices(
            torch.tensor([places[r.prompt_ids] for r in requests], device=ids_RT.device)
        )
        return cache


def _greedy(tokens: int) -> GenerationConfig:
    """Of the scores that the sampler leaves, with the keys and values of what was read."""
    return GenerationConfig(max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True)


def _can_select(cache: Any) -> bool:
    """Whether rows can be taken out; not out of a recurrent state."""
    return all(isinstance(layer, DynamicLayer) for layer in cache.layers)


class SeededSampler(LogitsProcessor):
    """Chooses each next token by inverting the distribution function at a seeded uniform number.

    Leaves a single finite score per row, so greedy decoding picks the chosen token. Row i uses the
    same numbers in any batch; the leading `vocabulary_size` logits belong to the vocabulary. The
    rows `unused_U` are left out of the draw, as by top-k: log-probabilities are before that. Only
    the rows `rows_R` of the batch are still written.
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
        uniforms_BT = torch.stack([_uniforms(seed, sampling.max_new_tokens) for seed in seeds])
        self._uniforms_BT = uniforms_BT.to(device)
        self.rows_R = torch.arange(len(seeds), device=device)
        self.position = 0
        self.tokens_BT = torch.zeros(uniforms_BT.shape, dtype=torch.long, device=device)
        self.log_probs_BT = torch.zeros(uniforms_BT.shape, dtype=torch.float32, device=device)

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        """Masks everything but the chosen token."""
        sampling = self._sampling
        logits_RV = scores[:, : self._vocabulary_size] / (sampling.temperature or 1.0)
        log_probs_RV = torch.log_softmax(logits_RV, dim=-1)
        if not torch.isfinite(log_probs_RV.sum(dim=-1)).all():
            raise NonFiniteError("the student's logits are not finite: its weights may hold NaN")
        filters = sampling.top_k or sampling.top_p < 1
        if self._unused_U is not None and (filters or sampling.temperature == 0):
            logits_RV = logits_RV.index_fill(1, self._unused_U, -torch.inf)
        if sampling.temperature == 0:
            tokens_R = logits_RV.argmax(dim=-1)
        else:
            if sampling.top_k:
                logits_RV = TopKLogitsWarper(sampling.top_k)(input_ids, logits_RV)
            if sampling.top_p < 1:
                logits_RV = TopPLogitsWarper(sampling.top_p)(input_ids, logits_RV)
            # Without a filter the softmax is there already.
            probabilities_RV = torch.softmax(logits_RV, dim=-1) if filters else log_probs_RV.exp()
            if self._unused_U is not None:
                probabilities_RV.index_fill_(1, self._unused_U, 0.0)
            tokens_R = inverted(probabilities_RV, self._uniforms_BT[self.rows_R, self.position])
        chosen_R1 = tokens_R[:, None]
        self.tokens_BT[self.rows_R, self.position] = tokens_R
        self.log_probs_BT[self.rows_R, self.position] = log_probs_RV.gather(1, chosen_R1)[:, 0]
        self.position += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_R1, 0.0)


def inverted(
    probabilities_RV: Float[Tensor, "R V"], uniforms_R: Float[Tensor, " R"]
) -> Int[Tensor, " R"]:
    """The token at which the distribution function exceeds a number in [0, 1), for every row.

    Sums are float64: first over blocks of the vocabulary, then inside the block that is hit, so
    that no row holds its distribution function over all tokens.
    """
    blocks_RKB = functional.pad(
        probabilities_RV, (0, -probabilities_RV.shape[1] % _BLOCK_TOKENS)
    ).unflatten(1, (-1, _BLOCK_TOKENS))
    mass_RK = blocks_RKB.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    aim_R1 = (uniforms_R * mass_RK[:, -1])[:, None]
    block_R1 = torch.searchsorted(mass_RK, aim_R1, right=True)
    below_R1 = functional.pad(mass_RK, (1, 0)).gather(1, block_R1)
    rows_R = torch.arange(len(uniforms_R), device=uniforms_R.device)
    inside_RB = blocks_RKB[rows_R, block_R1[:, 0]].double().cumsum(dim=1)
    # The two sums may differ in their last bits: what is hit has a probability above 0.
    last_R1 = inside_RB[:, -1:].nextafter(torch.zeros_like(below_R1))
    within_R1 = torch.searchsorted(inside_RB, (aim_R1 - below_R1).minimum(last_R1), right=True)
    return (block_R1 * _BLOCK_TOKENS + within_R1)[:, 0]


class FinishRecorder(StoppingCriteria):
    """Stops rows at an end token or a stop string and records how long they are.

    Stops all of them, to go on with the others alone, when half of those it began with are done.
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
        self.rows_R = torch.arange(rows, device=device)
        self.may_pause = rows >= _FEWEST_TO_SPLIT

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Bool[Tensor, " R"]:
        """Which rows are finished."""
        length = input_ids.shape[1] - self._prompt_length
        ends_R = torch.isin(input_ids[:, -1], self._ends_E)
        if self._stop:
            written_RT = input_ids[:, self._prompt_length :][:, -self._window :]
            texts = self._tokenizer.batch_decode(written_RT)
            found = [any(stop in text for stop in self._stop) for text in texts]
            ends_R = ends_R | torch.tensor(found, device=ends_R.device)
        lengths_R = self.lengths_B[self.rows_R]
        lengths_R[ends_R & (lengths_R > length)] = length
        self.lengths_B[self.rows_R] = lengths_R
        done_R = lengths_R <= length
        pauses = self.may_pause and 2 * int(done_R.sum()) >= len(done_R)
        return done_R | pauses


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
