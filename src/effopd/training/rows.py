"""Rows of the records a training step leaves (docs/records.md), and warnings read from them.

Warnings are pure functions of the metrics, so resumed runs repeat them. Thresholds are relative to
the run's own first steps. A horizon cuts answers on purpose, so lengths are compared among the
steps that wrote whole answers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from effopd.data.problem import Task
from effopd.errors import see
from effopd.evaluation.evaluator import EvaluationResult
from effopd.methods import Batch
from effopd.rollouts.rollout import (
    environment_statistics,
    mean_length,
    total_tokens,
    truncated_share,
)
from effopd.search.scales import Trial

Row = dict[str, Any]

EMPTY_METRICS: Row = dict.fromkeys(
    (
        "step", "loss", "reverse_kl", "entropy", "grad_norm", "lr", "mean_length",
        "truncated_share", "importance_mean", "importance_capped_share", "reward", "verdicts",
        "refills", "horizon", "clipped_share", "reference_kl", "value_loss", "explained_variance",
        "accepted_scale",
    )
)  # fmt: skip

EARLY_STEPS = 4
TRUNCATED_SHARE = 0.5
ENTROPY_RATIO = 0.1
KL_RATIO = 5.0
LENGTH_RATIO = 3.0
SAME_NATS = 1e-6
"""A divergence that is 0 within the rounding of fp32 log-probabilities."""
OVERLAP_RATIO = 0.5
OVERLAP_STEPS = 3
TEACHES_NOTHING, OVERLAP_COLLAPSES = "the teacher teaches nothing", "overlap collapses"
ADVICE = {
    "hit the length cap": see("truncated-answers"),
    "mean length went": see("truncated-answers"),
    TEACHES_NOTHING: see("flat-accuracy"),
    "entropy collapsed": see("divergence-up"),
    "reverse KL rose": see("divergence-up"),
    OVERLAP_COLLAPSES: see("divergence-up"),
    "foresight is lost": see("divergence-up"),
}
"""Words of an alarm -> where to read on; said with it, and not recorded."""


def batch_statistics(batch: Batch) -> Row:
    """Entropy (None if the engine's log-probabilities are not finite), length and rewards.

    Answers cut by a horizon on purpose do not count as truncated.
    """
    rollouts = batch.rollouts
    surprise_nats = -sum(sum(r.completion.log_probs) for r in rollouts)
    entropy = surprise_nats / total_tokens(rollouts)  # unbiased for the policy's entropy
    return {
        "entropy": entropy if math.isfinite(entropy) else None,
        "mean_length": mean_length(rollouts),
        "truncated_share": truncated_share(rollouts) if batch.horizon is None else 0.0,
        "reward": batch.reward,
        "verdicts": batch.verdicts,
        "refills": batch.refills,
        "horizon": batch.horizon,
        **environment_statistics(rollouts),
    }


def relative_progress(row: Row, history: Sequence[Row]) -> float | None:
    """`1 - KL / KL_first`: 0 at the start, 1 at the teacher; None where it was not measured.

    It is that of the weights the step started from, which wrote the step's answers.
    """
    known = [past["reverse_kl"] for past in history if past["reverse_kl"] is not None]
    now = row.get("reverse_kl")
    first = known[0] if known else now
    return None if now is None or not first or first <= 0 else 1.0 - now / first


def divergence_of(row: Mapping[str, Any]) -> float | None:
    """The divergence from the target in a metrics row; None where the method has none."""
    known: float | None = row.get("reverse_kl")
    return row.get("divergence") if known is None else known


def absorption(row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Row:
    """`absorption_rate`, `(d_t - d_{t+1}) / d_t` from the step before to this one.

    What the step before, its search included, took away of the divergence; negative where it grew.
    No field for a method without a divergence, None where the step before has none above 0.

    Source: absorption rate of arXiv 2604.13016, by steps.
    """
    now = divergence_of(row)
    if now is None:
        return {}
    before = divergence_of(history[-1]) if history else None
    return {"absorption_rate": (before - now) / before if before and before > 0 else None}


def trial_row(step: int, index: int, trial: Trial) -> Row:
    """One row of `search.jsonl`."""
    score = trial.score
    return {
        "step": step,
        "trial": index,
        "kind": trial.kind,
        "scale": trial.scale,
        "score": score.value if score else None,
        "score_se": score.standard_error if score else None,
        "accepted": trial.accepted,
        "reason": trial.reason,
        "truncation": score.truncation if score else None,
        "tokens": score.tokens if score else 0,
        "seconds": trial.seconds,
    }


def rollout_rows(evaluation: EvaluationResult, count: int, tokenizer: Any) -> list[Row]:
    """The first `count` rollouts of an evaluation as `rollouts.jsonl` rows."""
    return [
        {
            "problem_id": rollout.problem.id,
            "prompt": rollout.problem.prompt,
            "completion": rollout.completion.text,
            "reward": evaluation.rewards[i] if evaluation.rewards else None,
            **rollout.completion.record(tokenizer),
            "kl_nats": (
                _known(rollout.completion.per_token(evaluation.kl_nats[i]))
                if evaluation.kl_nats
                else []
            ),
        }
        for i, rollout in enumerate(evaluation.rollouts[:count])
    ]


def _known(values: Sequence[float | None]) -> list[float | None]:
    """None in the place of NaN, which a record cannot hold."""
    return [None if value is None or math.isnan(value) else value for value in values]


def alarms(row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is suspicious about this step."""
    found = []
    if row["truncated_share"] > TRUNCATED_SHARE:
        found.append(
            f"{row['truncated_share']:.0%} of the answers hit the length cap: raise "
            "sampling.max_new_tokens or check for repetition"
        )
    found += _once(history, [*_taught(row, history), *_shared(row, history)])
    early = history[:EARLY_STEPS]
    if len(early) < EARLY_STEPS:
        return found
    entropy, kl = _mean(early, "entropy"), _mean(early, "reverse_kl")
    nearer = _below(row["reverse_kl"], kl, 1.0)  # sharpening towards a sharp teacher is the aim
    if _below(row["entropy"], entropy, ENTROPY_RATIO) and not nearer:
        found.append(f"entropy collapsed from {entropy:.3g} to {row['entropy']:.3g} nats per token")
    if _below(kl, row["reverse_kl"], 1 / KL_RATIO) and kl is not None and kl > 0:
        found.append(f"reverse KL rose from {kl:.3g} to {row['reverse_kl']:.3g} nats per token")
    whole = [past for past in history if past["horizon"] is None][:EARLY_STEPS]
    length = _mean(whole, "mean_length")
    ratio = row["mean_length"] / length if length and row["horizon"] is None else 1.0
    if len(whole) == EARLY_STEPS and not 1 / LENGTH_RATIO <= ratio <= LENGTH_RATIO:
        found.append(f"mean length went from {length:.1f} to {row['mean_length']:.1f} tokens")
    return found


def with_advice(alarm: str) -> str:
    """An alarm as it is said: with the section that says what to do."""
    return alarm + next((where for words, where in ADVICE.items() if words in alarm), "")


def _taught(row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the divergence is 0 within rounding, from the start or from now on."""
    divergence = divergence_of(row)
    if divergence is None or abs(divergence) > SAME_NATS:
        return []
    if any(divergence_of(past) is not None for past in history):
        remedy = "the student has come to it: end the run, or take a stronger teacher"
    else:
        remedy = (
            "it answers as the untrained student does: check that teacher.path is another model, "
            "or give it a prompt of its own with teacher_prompt"
        )
    return [f"{TEACHES_NOTHING}, the divergence is {divergence:.1g} nats per token: {remedy}"]


def _shared(row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the overlap of the last steps is below half that of the first ones."""
    known = [past["overlap"] for past in history if past.get("overlap") is not None]
    if row.get("overlap") is None or len(known) < EARLY_STEPS + OVERLAP_STEPS - 1:
        return []
    level, last = sum(known[:EARLY_STEPS]) / EARLY_STEPS, [*known, row["overlap"]][-OVERLAP_STEPS:]
    if max(last) >= OVERLAP_RATIO * level:
        return []
    return [
        f"{OVERLAP_COLLAPSES}, student and teacher share {row['overlap']:.0%} of their likeliest "
        f"tokens where they shared {level:.0%}: go back to an earlier checkpoint with a lower "
        "optimizer.lr, or shorten answers with train.horizon"
    ]


def _once(history: Sequence[Mapping[str, Any]], found: Sequence[str]) -> list[str]:
    """Those whose first words no earlier step has said."""
    said = {text.split(",")[0] for past in history for text in past.get("alarms") or ()}
    return [text for text in found if text.split(",")[0] not in said]


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values else None


def _below(value: float | None, level: float | None, ratio: float) -> bool:
    return value is not None and level is not None and value < ratio * level


def counts_record(task: Task) -> dict[str, Any]:
    """The counts of a task as `run.json` has them; nothing where nothing was counted."""
    found = [
        {k: v for k, v in asdict(c).items() if v or k not in {"answered", "example"}}
        for c in task.counts
    ]
    return {"problems": found} if found else {}
