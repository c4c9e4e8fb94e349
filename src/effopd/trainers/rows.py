"""Rows of the records a training step leaves, see docs/records.md."""

import math
from collections.abc import Sequence
from typing import Any

from effopd.core.scales import Trial
from effopd.errors import NonFiniteError
from effopd.evaluation.evaluator import Evaluation
from effopd.rollouts.rollout import Rollout, mean_length, total_tokens, truncated_share
from effopd.trainers.learning import Contribution

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
    )
)


def rollout_statistics(rollouts: Sequence[Rollout]) -> Row:
    """Entropy (None if the engine's log-probabilities are not finite), length and truncation."""
    surprise_nats = -sum(sum(r.completion.log_probs) for r in rollouts)
    entropy = surprise_nats / total_tokens(rollouts)  # unbiased for the policy's entropy
    return {
        "entropy": entropy if math.isfinite(entropy) else None,
        "mean_length": mean_length(rollouts),
        "truncated_share": truncated_share(rollouts),
    }


def update_statistics(parts: Sequence[Contribution], tokens: int, grad_norm: float) -> Row:
    """Loss, gradient norm and importance weights of an update.

    Args:
        parts: Its micro-batches.
        tokens: Completion tokens of the step.
        grad_norm: Before clipping.

    Returns:
        Fields of a metrics row.

    Raises:
        NonFiniteError: Loss or gradient norm is NaN or infinite.
    """
    loss = sum(part.loss.item() for part in parts)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise NonFiniteError(f"loss {loss} and gradient norm {grad_norm} must be finite")
    known = [part.reverse_kl_sum for part in parts if part.reverse_kl_sum is not None]
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "reverse_kl": sum(known) / tokens if known else None,
        "importance_mean": sum(part.weight_sum for part in parts) / tokens,
        "importance_capped_share": sum(part.capped for part in parts) / tokens,
    }


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
