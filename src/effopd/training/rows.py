"""Rows of the records a training step leaves, see docs/records.md."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effopd.errors import NonFiniteError
from effopd.evaluation.evaluator import Evaluation
from effopd.evaluation.statistics import mean
from effopd.methods import Batch, Contribution, Portion
from effopd.objectives import non_finite_cause
from effopd.rollouts.rollout import mean_length, total_tokens, truncated_share
from effopd.search.scales import Trial

Row = dict[str, Any]

EMPTY_METRICS: Row = dict.fromkeys(
    (
        "step",
        "loss",
        "reverse_kl",
        "entropy",
        "grad_norm",
        "lr",
        "mean_length",
        "truncated_share",
        "importance_mean",
        "importance_capped_share",
        "reward",
        "verdicts",
        "refills",
        "horizon",
        "clipped_share",
        "reference_kl",
        "value_loss",
        "explained_variance",
        "accepted_scale",
    )
)


@dataclass(frozen=True, kw_only=True)
class Update:
    """Numbers of one optimizer update.

    Attributes:
        loss: Of its mini-batch.
        grad_norm: Before clipping.
        means: Token means of what its micro-batches summed, by name.
    """

    loss: float
    grad_norm: float
    means: Mapping[str, float]


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
    }


def finite_update(parts: Sequence[Contribution], portion: Portion, grad_norm: float) -> Update:
    """Sums up the micro-batches of one mini-batch."""
    losses = [part.loss.item() for part in parts]
    loss = sum(losses)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        broken = [p for p, own in zip(parts, losses, strict=True) if not math.isfinite(own)]
        cause = f". {non_finite_cause(broken[0].inputs)}" if broken else ""
        raise NonFiniteError(f"loss {loss} and gradient norm {grad_norm} must be finite{cause}")
    names = dict.fromkeys(name for part in parts for name in part.sums)
    means = {
        name: sum(float(part.sums.get(name, 0.0)) for part in parts) / portion.tokens
        for name in names
    }
    return Update(loss=loss, grad_norm=grad_norm, means=means)


def update_statistics(updates: Sequence[Update]) -> Row:
    """Means over the updates of a step, as fields of a metrics row."""
    names = dict.fromkeys(name for update in updates for name in update.means)
    return {
        "loss": mean([update.loss for update in updates]),
        "grad_norm": mean([update.grad_norm for update in updates]),
        **{name: mean([update.means[name] for update in updates]) for name in names},
    }


def relative_progress(row: Row, history: Sequence[Row]) -> float | None:
    """`1 - KL / KL_first`: 0 at the start, 1 at the teacher; None where it was not measured.

    Of the weights the step started from, for the step's answers are theirs.
    """
    known = [past["reverse_kl"] for past in history if past["reverse_kl"] is not None]
    now = row.get("reverse_kl")
    first = known[0] if known else now
    return None if now is None or not first or first <= 0 else 1.0 - now / first


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


def rollout_rows(evaluation: Evaluation, count: int, tokenizer: Any) -> list[Row]:
    """The first `count` rollouts of an evaluation as `rollouts.jsonl` rows."""
    return [
        {
            "problem_id": rollout.problem.id,
            "prompt": rollout.problem.prompt,
            "completion": rollout.completion.text,
            "reward": evaluation.rewards[i] if evaluation.rewards else None,
            "finish_reason": rollout.completion.finish_reason,
            "tokens": [tokenizer.decode([token]) for token in rollout.completion.token_ids],
            "kl_nats": list(evaluation.kl_nats[i]) if evaluation.kl_nats else [],
        }
        for i, rollout in enumerate(evaluation.rollouts[:count])
    ]
