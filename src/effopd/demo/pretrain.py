"""The tiny world's base model: arithmetic first, then the habit of making mistakes.

Learning from clean chains is fast. A short second phase on noisy demonstrations then teaches the
model to be wrong as often as they are, without forgetting how to be right. With a `careful_prompt`
every second update of that phase is on clean chains after these words.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from effopd.data.problem import Problem, Task
from effopd.data.world import (
    Calculator,
    TinyWorld,
    calling,
    demonstrations,
    make_model,
    make_tokenizer,
    teacher_tokenizer,
    with_merged_tokens,
)
from effopd.errors import EffopdError
from effopd.evaluation.statistics import mean
from effopd.rollouts.engine import Sampling
from effopd.rollouts.environment import Interaction
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.prompts import PromptTemplate
from effopd.rollouts.rollout import Writer

Report = Callable[[str], None]

BATCH = 128
PEAK_LR, WIDTH_OF_PEAK_LR = 3e-3, 192  # the largest width at which it is kept
WARMUP_STEPS = 50
CHECK_EVERY = 20
CHECK_PROBLEMS = 256


def world_writer(world: TinyWorld, model: Any, *, temperature: float = 1.0) -> Writer:
    """A writer for a model of this world, in the base's tokens."""
    tokenizer = make_tokenizer(world)
    return Writer(
        engine=HFEngine(model, tokenizer, batch_size=CHECK_PROBLEMS),
        tokenizer=tokenizer,
        template=PromptTemplate(chat=True),
        sampling=Sampling(temperature=temperature, max_new_tokens=world.answer_tokens + 5),
        interaction=(
            Interaction(environment=Calculator(modulus=world.modulus)) if world.calculator else None
        ),
    )


def accuracy(world: TinyWorld, model: Any, problems: list[Problem], temperature: float) -> float:
    """Share of right answers, sampled with fixed seeds (greedy at temperature 0)."""
    rollouts = world_writer(world, model, temperature=temperature).answer(
        problems, range(len(problems))
    )
    return mean(world.verifier.rewards([rollout.answer for rollout in rollouts]))


def pretrain_base(world: TinyWorld, task: Task, report: Report, device: str = "cpu") -> Any:
    """Trains the base model."""
    model = make_model(world).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0)
    generator = torch.Generator().manual_seed(world.seed)
    clean = replace(world, wrong_step=0.0, direct_answer=0.0)
    checks = list(task.test[:CHECK_PROBLEMS])

    def good_enough(said: str) -> bool:
        right = accuracy(world, model, checks, temperature=0.0)
        report(f"base: {said}, greedy accuracy {right:.2f}")
        return right >= world.base_greedy

    if not _learns(model, optimizer, clean, generator, good_enough):
        raise EffopdError(
            f"the base model did not reach greedy accuracy {world.base_greedy} in "
            f"{world.base_steps} steps: raise base_steps or lower modulus or operations"
        )
    for step in range(world.noise_steps):
        lr = _peak_lr(world) * (1 - step / world.noise_steps)
        _update(model, optimizer, world, generator, lr)
        if world.careful_prompt:
            _update(model, optimizer, clean, generator, lr, is_careful=True)
    greedy, sampled = (accuracy(world, model, checks, temperature=t) for t in (0.0, 1.0))
    report(f"base: accuracy {sampled:.2f} sampled, {greedy:.2f} greedy")
    return model.eval()


def train_demonstrated(world: TinyWorld, task: Task, model: Any, report: Report) -> Any:
    """Teaches a model clean chains from demonstrations, with the calculator where there is one."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0)
    generator = torch.Generator().manual_seed(world.seed)
    clean = replace(world, wrong_step=0.0, direct_answer=0.0)
    checks = list(task.test[:CHECK_PROBLEMS])
    how = " with calculator" if world.calculator else ""

    def good_enough(said: str) -> bool:
        right = accuracy(world, model, checks, temperature=1.0)
        report(f"teacher: {said}, accuracy {right:.2f}{how}")
        return right >= world.teacher_accuracy

    if _learns(model, optimizer, clean, generator, good_enough):
        return model.eval()
    raise EffopdError(
        f"the teacher did not reach accuracy {world.teacher_accuracy}{how} in {world.base_steps} "
        "steps: raise base_steps"
    )


def exchange_ends_(model: Any, world: TinyWorld) -> Any:
    """Has a model that ends answers as the base does end them as the teacher does."""
    ends = [each(world).eos_token_id for each in (make_tokenizer, teacher_tokenizer)]
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[ends] = layer.weight[ends[::-1]]
    model.config.eos_token_id = model.generation_config.eos_token_id = ends[1]
    return model


def _peak_lr(world: TinyWorld) -> float:
    """Wide models take a lower rate."""
    return PEAK_LR * min(1.0, WIDTH_OF_PEAK_LR / world.hidden)


def _learns(
    model: Any,
    optimizer: torch.optim.Optimizer,
    world: TinyWorld,
    generator: torch.Generator,
    good_enough: Callable[[str], bool],
) -> bool:
    """Learns from demonstrations until it is good enough; whether it came to that."""
    for step in range(1, world.base_steps + 1):
        lr = _peak_lr(world) * min(1.0, step / WARMUP_STEPS)
        loss = _update(model, optimizer, world, generator, lr)
        if step % CHECK_EVERY == 0 and good_enough(f"step {step}, loss {loss:.3f}"):
            return True
    return False


def _update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    world: TinyWorld,
    generator: torch.Generator,
    lr: float,
    *,
    is_careful: bool = False,
) -> float:
    """One supervised step on fresh demonstrations; returns the loss."""
    ids_BT, labels_BT = demonstrations(world, BATCH, generator, is_careful=is_careful)
    if world.calculator:
        ids_BT, labels_BT = calling(ids_BT, labels_BT, make_tokenizer(world))
    if world.teacher_differs_in == "tokens":
        ids_BT, labels_BT = with_merged_tokens(ids_BT, labels_BT, make_tokenizer(world))
    ids_BT, labels_BT = ids_BT.to(model.device), labels_BT.to(model.device)
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()
