"""Small real objects: a world, a tiny model, and an engine that needs no model."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tests.reference.rollout_twin import draw, log_softmax, truncated

from effopd.data.world import TinyWorld, make_model, make_tokenizer
from effopd.errors import NonFiniteError
from effopd.models.policy import Policy
from effopd.rollouts.engine import Completion, Request, Sampling
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.prompts import PromptTemplate
from effopd.rollouts.rollout import Writer

WORLD = TinyWorld(layers=2, hidden=32, operations=2, train_problems=60, test_problems=20)
TOKENIZER = make_tokenizer(WORLD)
EOS: int = TOKENIZER.eos_token_id

Table = list[list[float]]


def ids(text: str) -> tuple[int, ...]:
    """Tokens of the tiny world's words, without a start token."""
    return tuple(TOKENIZER.convert_tokens_to_ids(text.split()))


def tiny_model(seed: int = 0, sharpness: float = 2.0) -> Any:
    """An untrained Qwen3 of two layers; `sharpness` spreads its logits."""
    model = make_model(replace(WORLD, seed=seed)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


def tiny_policy(seed: int = 0, sharpness: float = 2.0) -> Policy:
    """A tiny model with the world's tokenizer."""
    return Policy(tiny_model(seed, sharpness), TOKENIZER)


def writer(engine: Any, **sampling: Any) -> Writer:
    """Answers the world's problems with an engine."""
    return Writer(
        engine=engine,
        tokenizer=TOKENIZER,
        template=PromptTemplate(),
        sampling=Sampling(**({"max_new_tokens": 6} | sampling)),
    )


def policy_writer(policy: Policy, **sampling: Any) -> Writer:
    """Answers the world's problems with a policy."""
    return writer(HFEngine(policy.model, policy.tokenizer), **sampling)


def bigram_table(seed: int = 0, spread: float = 2.0) -> Table:
    """Random logits of the next token for each last token."""
    rng, size = random.Random(f"bigrams/{seed}"), len(TOKENIZER)
    return [[rng.gauss(0, spread) for _ in range(size)] for _ in range(size)]


def script(text: str) -> Table:
    """Logits that write `text` after any prompt, word by word (no word twice), then end."""
    words = ids(text)
    size = len(TOKENIZER)
    following = dict(zip(words, (*words[1:], EOS), strict=True))
    targets = [following.get(last, words[0]) for last in range(size)]
    return [[0.0 if token == target else -1e4 for token in range(size)] for target in targets]


class FakeEngine:
    """An `Engine` whose next token depends on the last one only, by a table of logits.

    Args:
        table: Row `last` holds the logits of what follows `last`; may be changed in place.
        tokenizer: Decodes and names the end-of-sequence token.
    """

    def __init__(self, table: Table, tokenizer: Any = TOKENIZER) -> None:
        self.table, self.tokenizer = table, tokenizer
        self.syncs = 0
        self.requests: list[Request] = []
        self._weights = [list(row) for row in table]

    def sync_weights(self) -> None:
        """Takes the table as it is now."""
        self.syncs += 1
        self._weights = [list(row) for row in self.table]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in order; see `Engine.generate`."""
        self.requests += requests
        return [self._complete(request, request.sampling(sampling)) for request in requests]

    def _complete(self, request: Request, sampling: Sampling) -> Completion:
        rng, last = random.Random(request.seed), request.prompt_ids[-1]
        tokens: list[int] = []
        log_probs: list[float] = []
        stopped = False
        while not stopped and len(tokens) < sampling.max_new_tokens:
            logits = self._weights[last]
            if not all(-1e30 < x < 1e30 for x in logits):
                raise NonFiniteError("the table holds NaN")
            last = self._next(logits, rng.random(), sampling)
            tokens.append(last)
            log_probs.append(log_softmax(logits, sampling.temperature)[last])
            text = self.tokenizer.decode(tokens)
            eos = last == self.tokenizer.eos_token_id
            stopped = eos or any(stop in text for stop in sampling.stop)
        return Completion(
            token_ids=tuple(tokens),
            log_probs=tuple(log_probs),
            finish_reason="stop" if stopped else "length",
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),
        )

    @staticmethod
    def _next(logits: Sequence[float], uniform: float, sampling: Sampling) -> int:
        if sampling.temperature == 0:
            return max(range(len(logits)), key=logits.__getitem__)
        probabilities = truncated(
            logits,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        return draw(probabilities, uniform)
