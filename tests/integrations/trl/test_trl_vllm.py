"""The search with vLLM in TRL: every candidate reaches the engine before it is scored.

The engine is the part of TRL's `VLLMGeneration` that trainers call, with a tiny model inside.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.fakes import TOKENIZER
from tests.support.trl import distillation, reinforcement, weights
from torch.testing import assert_close

from effopd import AtLeast, EveryN, LadderScales, PairedMargin, Search
from effopd.integrations.trl import EffOPDCallback, SampledTokenTrainer
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine

TWICE = LadderScales(scales=(2.0,))
ACCEPTS = Search(schedule=EveryN(n=1), scales=TWICE, accept=AtLeast(), guard=None)
REJECTS = Search(schedule=EveryN(n=1), scales=TWICE, accept=PairedMargin(z=1e9), guard=None)


class Engine:
    """Holds weights of its own; writes from the seed it is given, else from its own generator."""

    def __init__(self, trainer: Any, shift_nats: float = 0.0) -> None:
        self.trainer, self.model = trainer, copy.deepcopy(trainer.model)
        self.generation_kwargs: dict[str, Any] = {}
        self.logprobs: int | None = None
        self.shift_nats = shift_nats
        self.own_seed = 0
        self.seeds: list[int | None] = []
        self.stale = 0
        self.syncs = 0

    def sync_weights(self) -> None:
        self.syncs += 1
        self.model.load_state_dict(self.trainer.model.state_dict())

    def generate(
        self, prompts: Sequence[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[Any, ...]:
        live = weights(self.trainer)
        own = dict(self.model.named_parameters())
        self.stale += any(not torch.equal(own[name], tensor) for name, tensor in live.items())
        seed = self.generation_kwargs.get("seed")
        self.seeds.append(seed)
        if seed is None:
            self.own_seed += 1
        requests = [
            Request(prompt_ids=tuple(ids), seed=(self.own_seed if seed is None else seed) + i)
            for i, ids in enumerate(prompts)
        ]
        sampling = Sampling(max_new_tokens=self.trainer.max_completion_length)
        written = HFEngine(self.model, TOKENIZER).generate(requests, sampling)
        log_probs = [[[v - self.shift_nats] for v in one.log_probs] for one in written]
        return prompts, [list(one.token_ids) for one in written], log_probs, None


def with_engine(trainer: Any, **engine: Any) -> Engine:
    """Puts the engine where a trainer with `use_vllm=True` has it."""
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, "server", -1
    trainer.vllm_generation = Engine(trainer, **engine)
    found: Engine = trainer.vllm_generation
    return found


def run(trainer: Any, search: Search | None) -> Engine:
    engine = with_engine(trainer)
    if search is not None:
        trainer.add_callback(EffOPDCallback(trainer, search=search, prompts=8))
    trainer.train()
    return engine


def test_every_candidate_and_the_winner_reach_the_engine(tmp_path: Path) -> None:
    engine = run(distillation(tmp_path, max_steps=3), ACCEPTS)
    assert engine.stale == 0
    assert engine.syncs == 3 + 3 * 2  # each batch, each point of each search
    seeded = [seed is not None for seed in engine.seeds]
    assert seeded == [False, True, True] * 3
    assert len({seed for seed in engine.seeds if seed is not None}) == 3  # one a draw
    assert engine.generation_kwargs == {}


def test_rejected_searches_leave_the_engine_as_it_was(tmp_path: Path) -> None:
    plain = distillation(tmp_path / "plain", max_steps=3)
    run(plain, None)
    searched = distillation(tmp_path / "searched", max_steps=3)
    engine = run(searched, REJECTS)
    assert engine.stale == 0
    for name, tensor in weights(plain).items():
        assert torch.equal(weights(searched)[name], tensor)


def test_rewards_are_of_what_the_engine_wrote(tmp_path: Path) -> None:
    trainer = reinforcement(tmp_path, max_steps=2)
    engine = with_engine(trainer)
    trainer.add_callback(EffOPDCallback(trainer, search=ACCEPTS, prompts=8))
    trainer.train()
    assert engine.stale == 0
    assert sum(seed is not None for seed in engine.seeds) == 4


def test_importance_weights_correct_for_the_engine(tmp_path: Path) -> None:
    """An engine that reports half of each probability doubles every gradient, up to the cap."""

    def gradient(shift_nats: float) -> torch.Tensor:
        trainer = distillation(tmp_path, kind=SampledTokenTrainer)
        engine = with_engine(trainer, shift_nats=shift_nats)
        rows = [trainer.train_dataset[i] for i in range(4)]
        trainer.model.train()
        batch = trainer._generate_and_score_completions(rows)
        assert batch["engine_log_probs"].shape == batch["completion_ids"].shape
        assert engine.stale == 0
        loss, _, _ = trainer._compute_loss(trainer.model, batch, batch["num_items_in_batch"])
        loss.backward()
        return trainer.model.lm_head.weight.grad

    plain = gradient(0.0)
    assert plain.norm() > 0
    assert_close(gradient(torch.tensor(2.0).log().item()), 2 * plain, rtol=1e-4, atol=1e-6)
    assert_close(gradient(10.0), 5 * plain, rtol=1e-4, atol=1e-6)
