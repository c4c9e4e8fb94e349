"""Warnings about runs that go wrong slowly. Pure functions of the metrics, so resumes repeat them.

Thresholds are relative to the run's own first steps. The length of answers that a horizon cuts is a
setting, not a symptom: the steps that wrote whole answers are compared among themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

EARLY_STEPS = 4
TRUNCATED_SHARE = 0.5
ENTROPY_RATIO = 0.1
KL_RATIO = 5.0
LENGTH_RATIO = 3.0


def alarms(row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is suspicious about this step."""
    found = []
    if row["truncated_share"] > TRUNCATED_SHARE:
        found.append(
            f"{row['truncated_share']:.0%} of the answers hit the length cap: raise "
            "sampling.max_new_tokens or check for repetition"
        )
    early = history[:EARLY_STEPS]
    if len(early) < EARLY_STEPS:
        return found
    entropy, kl = _mean(early, "entropy"), _mean(early, "reverse_kl")
    nearer = _below(row["reverse_kl"], kl, 1.0)  # sharpening towards a sharp teacher is the aim
    if _below(row["entropy"], entropy, ENTROPY_RATIO) and not nearer:
        found.append(f"entropy collapsed from {entropy:.3g} to {row['entropy']:.3g} nats per token")
    if _below(kl, row["reverse_kl"], 1 / KL_RATIO) and kl is not None and kl > 0:
        found.append(f"reverse KL rose from {kl:.3g} to {row['reverse_kl']:.3g} nats per token")
    return found + _length_alarms(row, history)


def _length_alarms(row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    whole = [past for past in history if past["horizon"] is None][:EARLY_STEPS]
    length = _mean(whole, "mean_length")
    if row["horizon"] is not None or len(whole) < EARLY_STEPS or not length:
        return []
    if 1 / LENGTH_RATIO <= row["mean_length"] / length <= LENGTH_RATIO:
        return []
    return [f"mean length went from {length:.1f} to {row['mean_length']:.1f} tokens"]


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values else None


def _below(value: float | None, level: float | None, ratio: float) -> bool:
    return value is not None and level is not None and value < ratio * level
