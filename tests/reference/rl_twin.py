"""Plain twins of the reinforcement-learning objectives: Python floats, one loop a formula."""

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def mean(values: Numbers) -> float:
    return math.fsum(values) / len(values)


def group_advantages(rewards: Numbers, scale: str) -> list[float]:
    """One group's; the deviation is divided by R - 1."""
    if len(set(rewards)) == 1:
        return [0.0 for _ in rewards]
    centre = mean(rewards)
    variance = math.fsum((r - centre) ** 2 for r in rewards) / (len(rewards) - 1)
    divisor = math.sqrt(variance) + 1e-4 if scale == "std" else 1.0
    return [(r - centre) / divisor for r in rewards]


def overlong_penalty(length: int, longest: int, buffer: int) -> float:
    """Three pieces as printed."""
    if buffer == 0 or length <= longest - buffer:
        return 0.0
    if length <= longest:
        return ((longest - buffer) - length) / buffer
    return -1.0


def gae(
    rewards: Numbers, values: Numbers, lengths: Sequence[int], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """From the last token of every sequence back to its first."""
    advantages, end = [0.0] * len(values), 0
    for length in lengths:
        start, end = end, end + length
        following_value = following_advantage = 0.0
        for t in reversed(range(start, end)):
            difference = rewards[t] + gamma * following_value - values[t]
            following_advantage = difference + gamma * lam * following_advantage
            following_value = values[t]
            advantages[t] = following_advantage
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def whiten(values: Numbers) -> list[float]:
    centre = mean(values)
    deviation = math.sqrt(mean([(v - centre) ** 2 for v in values]))
    return [(v - centre) / (deviation + 1e-8) for v in values]


def explained_variance(returns: Numbers, values: Numbers) -> float:
    def variance(numbers: Numbers) -> float:
        centre = mean(numbers)
        return mean([(x - centre) ** 2 for x in numbers])

    return 1 - variance([r - v for r, v in zip(returns, values, strict=True)]) / variance(returns)


def aggregate(sequences: Sequence[Numbers], aggregation: str, longest: int) -> float:
    """Loss of a mini-batch from its responses' token losses."""
    if aggregation == "sequence":
        return mean([mean(losses) if losses else 0.0 for losses in sequences])
    total = math.fsum(loss for losses in sequences for loss in losses)
    if aggregation == "token":
        return total / sum(len(losses) for losses in sequences)
    return total / (len(sequences) * longest)


def clipped_surrogate(
    log_prob: float, old: float, advantage: float, low: float, high: float
) -> tuple[float, float, bool]:
    """Loss of a token, its derivative by the log-probability, and whether it was clipped."""
    ratio = math.exp(log_prob - old)
    if advantage > 0 and ratio > 1 + high:
        return -(1 + high) * advantage, 0.0, True
    if advantage < 0 and ratio < 1 - low:
        return -(1 - low) * advantage, 0.0, True
    return -ratio * advantage, -ratio * advantage, False


def k3(log_prob: float, reference: float) -> tuple[float, float]:
    """Estimate and its derivative by the log-probability."""
    d = reference - log_prob
    return math.exp(d) - d - 1, 1 - math.exp(d)


def clipped_value_loss(value: float, old: float, target: float, clip: float) -> float:
    near = min(max(value, old - clip), old + clip)
    return max((value - target) ** 2, (near - target) ** 2) / 2
