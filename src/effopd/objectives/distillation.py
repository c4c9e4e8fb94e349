"""On-policy distillation as per-token advantages.

Axes: N tokens. The student samples a response and every sampled token is pushed up or down by how
much more the teacher likes it; log-probabilities are in nats. Shapes that disagree raise a
ParameterMismatchError, settings out of range a ConfigError; NaN and infinity in an input come out
in the loss (`check_finite`).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.objectives.token_checks import check_positive, check_shapes


def opd_advantages(
    student_log_probs_N: Float[Tensor, "N"], teacher_log_probs_N: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """`A = log q - log p` of teacher q and student p at each sampled token, nats, detached.

    Of an ascent step. Source: equation (9) of arXiv 2605.11739, whose sign is that of a descent.
    """
    check_shapes(student=student_log_probs_N, teacher=teacher_log_probs_N)
    return (teacher_log_probs_N - student_log_probs_N).detach()


def exopd_advantages(
    student_log_probs_N: Float[Tensor, "N"],
    teacher_log_probs_N: Float[Tensor, "N"],
    reference_log_probs_N: Float[Tensor, "N"],
    reward_scale: float,
) -> Float[Tensor, "N"]:
    """`A = lambda (log q - log r) - (log p - log r)` with reference r, nats, detached.

    Computed as `(log q - log p) + (lambda - 1) (log q - log r)`, so that lambda = 1 is
    `opd_advantages` bit for bit. The reference is the student's initial model or the teacher's
    base. Source: G-OPD / ExOPD, arXiv 2602.12125.
    """
    check_shapes(
        student=student_log_probs_N, teacher=teacher_log_probs_N, reference=reference_log_probs_N
    )
    imitation_N = teacher_log_probs_N - student_log_probs_N
    reward_N = teacher_log_probs_N - reference_log_probs_N
    return (imitation_N + (reward_scale - 1.0) * reward_N).detach()


def importance_weights(
    train_log_probs_N: Float[Tensor, "N"], rollout_log_probs_N: Float[Tensor, "N"], cap: float
) -> Float[Tensor, "N"]:
    """`min(p_train / p_rollout, cap)` per token, detached, in (0, cap].

    Corrects for a rollout engine whose log-probabilities of what it sampled differ from the
    trainer's: 1 where both agree, NaN where the engine's is not finite.

    Source: token-level truncated importance sampling of arXiv 2605.11739, cap 5.
    """
    check_positive("cap", cap)
    check_shapes(train=train_log_probs_N, rollout=rollout_log_probs_N)
    weights_N = (train_log_probs_N - rollout_log_probs_N).exp().clamp(max=cap)
    # The cap would hide the -inf of an engine that filtered the token.
    return torch.where(rollout_log_probs_N.isfinite(), weights_N, torch.nan).detach()


def sampled_token_loss(
    log_probs_N: Float[Tensor, "N"],
    advantages_N: Float[Tensor, "N"],
    weights_N: Float[Tensor, "N"],
    normalizer: float,
) -> Float[Tensor, ""]:
    """`-sum_n w_n A_n log p_n / normalizer`, a scalar, differentiable in `log p` alone.

    Its value means nothing; its gradient is the descent gradient of equation (9). With the token
    count of the whole batch as normalizer, micro-batches add up to the full batch exactly.
    """
    check_positive("normalizer", normalizer)
    check_shapes(student=log_probs_N, advantages=advantages_N, weights=weights_N)
    return -(weights_N.detach() * advantages_N.detach() * log_probs_N).sum() / normalizer
