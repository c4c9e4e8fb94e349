"""The part of `vllm.LLM` that is used, with a tiny model inside, and a log of what was called."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine


@dataclass(frozen=True)
class Logprob:
    """As in vLLM."""

    logprob: float


class FakeLLM:
    """An `LLM` whose weights are its own, awake or asleep."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = copy.deepcopy(model), tokenizer
        self.calls: list[Any] = []
        self.asleep: set[str] = set()
        self.drops_weights = False
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self._load_weights_))
        self._worker = SimpleNamespace(model_runner=runner)

    def generate(
        self, prompts: Sequence[Any], parameters: Sequence[dict[str, Any]], *, use_tqdm: bool
    ) -> list[Any]:
        assert not self.asleep
        self.calls.append(("generate", len(prompts)))
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        if any("prompt_logprobs" in asked for asked in parameters):
            return [SimpleNamespace(prompt_logprobs=self._places(row)) for row in ids]
        return self._written(ids, parameters) if ids else []

    def collective_rpc(self, method: Any, args: tuple[Any, ...]) -> list[Any]:
        assert "weights" not in self.asleep
        self.calls.append(("rpc", method.__name__))
        return [method(self._worker, *args)]

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))
        self.asleep = {"weights", "kv_cache"}

    def wake_up(self, tags: Sequence[str]) -> None:
        self.calls.append(("wake", *tags))
        self.asleep -= set(tags)

    def _load_weights_(self, weights: Any) -> None:
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                if not self.drops_weights:
                    own[name].copy_(tensor)

    def _written(self, ids: list[list[int]], parameters: Sequence[dict[str, Any]]) -> list[Any]:
        """One batch: the requests of a call differ in prompts and seeds alone."""
        first = parameters[0]
        assert all(asked | {"seed": 0} == first | {"seed": 0} for asked in parameters)
        sampling = Sampling(
            max_new_tokens=first["max_tokens"],
            stop=tuple(first["stop"]),
            **{key: first[key] for key in ("temperature", "top_p", "top_k")},
        )
        self.model.generation_config.eos_token_id = first["stop_token_ids"]
        requests = [
            Request(prompt_ids=tuple(row), seed=asked["seed"])
            for row, asked in zip(ids, parameters, strict=True)
        ]
        found = []
        for written in HFEngine(self.model, self.tokenizer).generate(requests, sampling):
            pairs = zip(written.token_ids, written.log_probs, strict=True)
            one = SimpleNamespace(
                token_ids=list(written.token_ids),
                logprobs=[{token: Logprob(value)} for token, value in pairs],
                finish_reason=written.finish_reason,
            )
            found.append(SimpleNamespace(outputs=[one], prompt_logprobs=None))
        return found

    @torch.no_grad()
    def _places(self, ids: list[int]) -> list[Any]:
        log_probs_TV = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, :-1], -1)
        pairs = zip(ids[1:], log_probs_TV, strict=True)
        return [None, *({t: Logprob(row[t].item()), -1: Logprob(0.0)} for t, row in pairs)]
