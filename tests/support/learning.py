"""Rollouts and batches for learners, and their gradients."""

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from tests.fakes import TOKENIZER, FakeEngine, bigram_table, tiny_model, writer
from torch import Tensor, nn

from effopd.data.problem import Problem
from effopd.methods import Batch, Contribution, Learner, Portion
from effopd.models.policy import Policy
from effopd.rollouts.rollout import Rollout, total_tokens

LONGEST = 8


def precise_policy(seed: int = 0, sharpness: float = 2.0) -> Policy:
    """A tiny policy in float64."""
    return Policy(tiny_model(seed, sharpness).double(), TOKENIZER)


def rollouts(prompts: int, responses: int, teachers: Sequence[str] = ("",)) -> list[Rollout]:
    """Answers of different lengths, written by a policy that is nobody's."""
    problems = [
        Problem(id=f"p-{i}", prompt=f"{i} + 4 =", teacher=teachers[i % len(teachers)])
        for i in range(prompts)
        for _ in range(responses)
    ]
    own = writer(FakeEngine(bigram_table(3, spread=1.0)), max_new_tokens=LONGEST)
    return own.answer(problems, range(len(problems)))


def batch(
    answers: Sequence[Rollout], rewards: Sequence[float] = (), responses: int = 1, step: int = 1
) -> Batch:
    """The batch of a step."""
    return Batch(
        step=step,
        rollouts=tuple(answers),
        rewards=tuple(rewards),
        responses=responses,
        written_tokens=total_tokens(answers),
    )


def accumulate(
    learner: Learner, answers: Sequence[Rollout], indices: Sequence[int], cuts: Sequence[int] = ()
) -> list[Contribution]:
    """Backward passes of the mini-batch `indices`, cut into micro-batches at `cuts`."""
    members = [answers[i] for i in indices]
    portion = Portion(sequences=len(members), tokens=total_tokens(members))
    bounds = [0, *cuts, len(indices)]
    parts = []
    for start, end in pairwise(bounds):
        part = learner.contribution(indices[start:end], portion)
        part.loss.backward()
        parts.append(part)
    return parts


def gradient(parameters: Iterable[nn.Parameter]) -> Tensor:
    """All gradients as one vector; parameters without one count as zeros. Cleared."""
    found = []
    for parameter in parameters:
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found.append(own.flatten().double())
        parameter.grad = None
    return torch.cat(found)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Whether two gradients agree up to the fp32 inside the models' norms."""
    assert expected.norm() > 1e-3
    assert (found - expected).norm() / expected.norm() < 3e-6


def moved(policy: Policy, seed: int, size: float) -> None:
    """Adds noise to every weight, as an update would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((size * noise).to(parameter))


def snapshot(module: Any) -> Any:
    """A copy that later updates do not touch."""
    return copy.deepcopy(module)
