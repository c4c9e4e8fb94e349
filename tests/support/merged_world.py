"""A student of the tiny world whose tokenizer cuts answers otherwise: `3 ;` is one token.

Prompts are cut alike; of an answer, each result and the semicolon behind it are one token where the
world's own tokenizer has two.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from effopd.data.problem import Problem, Task
from effopd.data.world import (
    SPECIAL,
    TinyWorld,
    demonstrations,
    finished_tokenizer,
    make_model,
    make_tokenizer,
)
from effopd.demo.pretrain import BATCH, PEAK_LR, WARMUP_STEPS, supervised_update_
from effopd.evaluation.statistics import mean
from effopd.rollouts.engine import Sampling
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.prompts import PromptTemplate
from effopd.rollouts.rollout import Writer

CHECK_EVERY = 40
CHECK_PROBLEMS = 256


def merged_tokenizer(world: TinyWorld) -> Any:
    """The world's tokens, and behind them one for each number with a semicolon."""
    own = make_tokenizer(world)
    names = [own.convert_ids_to_tokens(i) for i in range(len(own))]
    names += [f"{number} ;" for number in range(world.modulus)]
    vocabulary = {name: i for i, name in enumerate(names)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    # Every space separates but that between a digit and a semicolon.
    between = Regex(r"(?<!\d)\s+|\s+(?!;)")
    inner.pre_tokenizer = pre_tokenizers.Split(between, behavior="removed")
    return finished_tokenizer(inner)


def merged_model(world: TinyWorld) -> Any:
    """An untrained model of the world with rows for the merged tokens."""
    own = make_model(world)
    config = copy.deepcopy(own.config)
    config.vocab_size += world.modulus
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world.seed)
        return type(own)(config)


def merged_demonstrations(
    world: TinyWorld, count: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """The world's demonstrations in merged tokens, with their labels."""
    ids_BT, labels_BT = demonstrations(world, count, generator)
    tokens = len(make_tokenizer(world))
    semicolon, number = make_tokenizer(world).convert_tokens_to_ids(";"), len(SPECIAL)
    # A number before a semicolon becomes the merged token; the semicolon goes.
    before = torch.roll(ids_BT == semicolon, -1, dims=1)
    before[:, -1] = False
    ids_BT = torch.where(before, ids_BT - number + tokens, ids_BT)
    labels_BT = torch.where(labels_BT >= 0, ids_BT, labels_BT)
    kept = ids_BT != semicolon
    width = int(kept.sum(dim=1).max())
    merged = torch.zeros(count, width, dtype=torch.long), torch.full((count, width), -100)
    for row in range(count):
        length = int(kept[row].sum())
        merged[0][row, :length] = ids_BT[row, kept[row]]
        merged[1][row, :length] = labels_BT[row, kept[row]]
    return merged


def merged_writer(world: TinyWorld, model: Any, *, temperature: float = 1.0) -> Writer:
    """A writer for a model in merged tokens."""
    tokenizer = merged_tokenizer(world)
    return Writer(
        engine=HFEngine(model, tokenizer, batch_size=CHECK_PROBLEMS),
        tokenizer=tokenizer,
        template=PromptTemplate(chat=True),
        sampling=Sampling(temperature=temperature, max_new_tokens=world.answer_tokens),
    )


def merged_accuracy(
    world: TinyWorld, model: Any, problems: list[Problem], *, temperature: float
) -> float:
    """Share of right answers, sampled with fixed seeds (greedy at temperature 0)."""
    writer = merged_writer(world, model, temperature=temperature)
    rollouts = writer.answer(problems, range(len(problems)))
    return mean(world.verifier.rewards([rollout.answer for rollout in rollouts]))


def pretrain_merged(world: TinyWorld, task: Task, report: Callable[[str], None] = print) -> Any:
    """The world's base model in merged tokens: arithmetic first, then the habit of mistakes."""
    model = merged_model(world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0)
    generator = torch.Generator().manual_seed(world.seed)
    clean = replace(world, wrong_step=0.0, direct_answer=0.0)
    checks = list(task.test[:CHECK_PROBLEMS])

    def learn(taught: TinyWorld, lr: float) -> None:
        supervised_update_(model, optimizer, *merged_demonstrations(taught, BATCH, generator), lr)

    for step in range(1, world.base_steps + 1):
        learn(clean, PEAK_LR * min(1.0, step / WARMUP_STEPS))
        if step % CHECK_EVERY == 0:
            right = merged_accuracy(world, model, checks, temperature=0.0)
            report(f"merged base: step {step}, greedy accuracy {right:.2f}")
            if right >= world.base_greedy:
                break
    for step in range(world.noise_steps):
        learn(world, PEAK_LR * (1 - step / world.noise_steps))
    return model.eval()
