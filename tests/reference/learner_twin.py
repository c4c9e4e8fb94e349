"""Plain twins of the learners: one answer and one token at a time, autograd on full logits."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from tests.reference import rl_twin
from torch import Tensor

from effopd.methods import PolicyGradient
from effopd.models.policy import Policy, Sample

Scores = list[list[float]]


def distributions(model: Any, sample: Sample, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the whole vocabulary before every token of the completion, [T, V]."""
    sequence = torch.tensor([sample.prompt_ids + sample.completion_ids])
    logits = model(sequence).logits[0, len(sample.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def log_probs(model: Any, sample: Sample, temperature: float = 1.0) -> list[Tensor]:
    """Of every token of the completion, each a number with gradient."""
    rows = distributions(model, sample, temperature)
    return [row[token] for row, token in zip(rows, sample.completion_ids, strict=True)]


@torch.no_grad()
def scores(policy: Policy, samples: Sequence[Sample], temperature: float = 1.0) -> Scores:
    """`log_probs` of many answers as numbers."""
    return [[v.item() for v in log_probs(policy.model, s, temperature)] for s in samples]


def critic_values(body: Any, head: Any, sample: Sample) -> list[Tensor]:
    """The critic's value before every token of the completion."""
    sequence = torch.tensor([sample.prompt_ids + sample.completion_ids])
    hidden = body(sequence).last_hidden_state[0, len(sample.prompt_ids) - 1 : -1]
    return [(row.to(head.weight) * head.weight[0]).sum() + head.bias[0] for row in hidden]


def shaped_rewards(
    rewards: Sequence[float], samples: Sequence[Sample], longest: int, buffer: int
) -> list[float]:
    """Rewards with the penalty of long answers."""
    lengths = [len(s.completion_ids) for s in samples]
    return [
        reward + rl_twin.overlong_penalty(length, longest, buffer)
        for reward, length in zip(rewards, lengths, strict=True)
    ]


def group_advantages(
    rewards: Sequence[float], samples: Sequence[Sample], responses: int, scale: str
) -> Scores:
    """Every token of an answer has the advantage of its answer."""
    found: list[float] = []
    for start in range(0, len(rewards), responses):
        found += rl_twin.group_advantages(rewards[start : start + responses], scale)
    return [[a] * len(s.completion_ids) for a, s in zip(found, samples, strict=True)]


def critic_advantages(
    rewards: Sequence[float], values: Scores, gamma: float, lam: float
) -> tuple[Scores, Scores]:
    """Whitened advantages and the critic's targets."""
    lengths = [len(row) for row in values]
    per_token = [[0.0] * (n - 1) + [r] for n, r in zip(lengths, rewards, strict=True)]
    advantages, returns = rl_twin.gae(flat(per_token), flat(values), lengths, gamma, lam)
    return cut(rl_twin.whiten(advantages), lengths), cut(returns, lengths)


def flat(rows: Scores) -> list[float]:
    """Numbers of all tokens, one answer after the other."""
    return [value for row in rows for value in row]


def cut(values: Sequence[float], lengths: Sequence[int]) -> Scores:
    """Numbers of all tokens, answer by answer."""
    found, start = [], 0
    for length in lengths:
        found.append(list(values[start : start + length]))
        start += length
    return found


def with_teacher(advantages: Scores, teacher: Scores, student: Scores, share: float) -> Scores:
    """Advantages with `share * (log q - log p)` added."""
    return [
        [a + share * (q - p) for a, q, p in zip(*rows, strict=True)]
        for rows in zip(advantages, teacher, student, strict=True)
    ]


def surrogate(log_prob: Tensor, old: float, advantage: float, low: float, high: float) -> Tensor:
    """The clipped surrogate of one token as printed."""
    ratio = torch.exp(log_prob - old)
    limited = min(max(ratio.item(), 1 - low), 1 + high)
    if ratio.item() * advantage <= limited * advantage:
        return -ratio * advantage
    return -limited * advantage * torch.ones_like(ratio)


def policy_loss(
    model: Any,
    samples: Sequence[Sample],
    objective: PolicyGradient,
    longest: int,
    *,
    advantages: Scores,
    written: Scores,
    old: Scores | None,
    reference: Scores | None,
) -> Tensor:
    """Loss of a mini-batch; without `old` the ratio is 1 and only its gradient counts."""
    answers = []
    for i, sample in enumerate(samples):
        losses = []
        for t, log_prob in enumerate(log_probs(model, sample)):
            before = log_prob.item() if old is None else old[i][t]
            weight = min(math.exp(before - written[i][t]), objective.importance_cap)
            limits = objective.clip_low, objective.clip_high
            loss = weight * surrogate(log_prob, before, advantages[i][t], *limits)
            if reference is not None:
                d = reference[i][t] - log_prob
                loss = loss + objective.kl_coefficient * (torch.exp(d) - d - 1)
            losses.append(loss)
        answers.append(losses)
    return aggregate(answers, objective.aggregation, longest)


def aggregate(answers: Sequence[Sequence[Tensor]], aggregation: str, longest: int) -> Tensor:
    """From the losses of tokens to that of a mini-batch."""
    sums = [sum(losses, start=torch.zeros((), dtype=torch.float64)) for losses in answers]
    if aggregation == "sequence":
        means = [total / len(losses) for total, losses in zip(sums, answers, strict=True)]
        return sum(means, start=torch.zeros(())) / len(answers)
    divisor = sum(map(len, answers)) if aggregation == "token" else len(answers) * longest
    return sum(sums, start=torch.zeros(())) / divisor


def value_loss(values: Sequence[Tensor], old: Scores, returns: Scores, clip: float) -> Tensor:
    """Token mean of the clipped value loss; `values` are those of all tokens."""
    olds, targets = flat(old), flat(returns)
    total = torch.zeros((), dtype=torch.float64)
    for value, before, target in zip(values, olds, targets, strict=True):
        near = value
        if not before - clip <= value.item() <= before + clip:
            near = torch.full_like(value, min(max(value.item(), before - clip), before + clip))
        far_error, near_error = (value - target) ** 2, (near - target) ** 2
        total = total + (far_error if far_error.item() >= near_error.item() else near_error) / 2
    return total / len(olds)


def distillation_loss(
    model: Any,
    samples: Sequence[Sample],
    advantages: Sequence[Sequence[Tensor]],
    written: Scores,
    cap: float,
) -> Tensor:
    """`-mean_n w_n A_n log p_n` with `w = min(p / p_written, cap)`; its gradient counts."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for i, sample in enumerate(samples):
        for t, log_prob in enumerate(log_probs(model, sample)):
            weight = min(math.exp(log_prob.item() - written[i][t]), cap)
            total, tokens = total - weight * advantages[i][t].item() * log_prob, tokens + 1
    return total / tokens
