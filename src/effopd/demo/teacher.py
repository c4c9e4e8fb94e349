"""The tiny world's teacher: the base model sharpened by a minimal policy gradient.

Group advantages (reward minus the group's mean, over its standard deviation), groups whose rewards
are all equal dropped, one update per batch, token-level mean.
"""

import copy
from typing import Any

import torch

from effopd.demo.pretrain import CHECK_PROBLEMS, Report, accuracy, world_writer
from effopd.demo.world import TinyWorld
from effopd.models.policy import Policy
from effopd.objectives import sampled_token_loss, token_log_probs
from effopd.rollouts.rollout import Rollout
from effopd.rollouts.seeds import derive_seed
from effopd.tasks.problem import Task
from effopd.trainers.batch import step_problems

GROUPS = 48
GROUP_SIZE = 8
CHECK_EVERY = 5
CLIP_NORM = 1.0


def train_teacher(world: TinyWorld, task: Task, base: Any, report: Report) -> Any:
    """Sharpens a copy of the base until it samples right answers.

    Args:
        world: The world.
        task: Its problems.
        base: The base model; unchanged.
        report: Receives progress sentences.

    Returns:
        The teacher in evaluation mode.
    """
    model = copy.deepcopy(base)
    writer = world_writer(world, model)
    policy = Policy(model, writer.tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=world.teacher_lr, betas=(0.9, 0.95), weight_decay=0
    )
    checks = list(task.test[:CHECK_PROBLEMS])
    for step in range(1, world.teacher_steps + 1):
        problems = step_problems(task.train, world.seed, step, GROUPS)
        repeated = [problem for problem in problems for _ in range(GROUP_SIZE)]
        seeds = [derive_seed(world.seed, "teacher", step, i) for i in range(len(repeated))]
        rollouts = writer.answer(repeated, seeds)
        rewards = [world.verifier.reward(r.problem, r.completion.text) for r in rollouts]
        advantages = group_advantages(torch.tensor(rewards).view(GROUPS, GROUP_SIZE)).flatten()
        _update(policy, optimizer, rollouts, advantages)
        if step % CHECK_EVERY == 0:
            right = accuracy(world, model, checks, temperature=1.0)
            report(f"teacher: step {step}, sampled accuracy {right:.2f}")
            if right >= world.teacher_accuracy:
                break
    return model.eval()


def group_advantages(rewards_GR: torch.Tensor) -> torch.Tensor:
    """`(r - mean) / std` within each group of responses; 0 where all rewards are equal."""
    centred_GR = rewards_GR - rewards_GR.mean(dim=1, keepdim=True)
    return centred_GR / (rewards_GR.std(dim=1, keepdim=True) + 1e-6)


def _update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollouts: list[Rollout],
    advantages: torch.Tensor,
) -> None:
    kept = advantages.nonzero().flatten().tolist()
    if not kept:
        return
    states = policy.states([rollouts[i].sample for i in kept])
    log_probs_N = token_log_probs(
        states.hidden_ND, policy.head_weight_VD, states.targets_N
    ).log_probs_N
    advantages_N = advantages[kept].repeat_interleave(torch.tensor(states.lengths))
    weights_N = torch.ones_like(advantages_N)
    loss = sampled_token_loss(log_probs_N, advantages_N, weights_N, len(log_probs_N))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), CLIP_NORM)
    optimizer.step()
