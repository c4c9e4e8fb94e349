"""On-policy distillation as per-token advantages, and its settings.

Axes: N tokens. The student samples a response and every sampled token is pushed up or down by how
much more the teacher likes it; log-probabilities are in nats. Shapes that disagree raise a
ParameterMismatchError, settings out of range a ConfigError; NaN and infinity in an input come out
in the loss (`check_finite`).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import ConfigError
from effopd.objectives.divergences import Divergence, check_divergence
from effopd.objectives.token_checks import check_positive, check_shapes


@dataclass(frozen=True, kw_only=True)
class SampledTokenOPD:
    """On-policy distillation on the sampled tokens, equation (9).

    Attributes:
        type: Name of this objective in a configuration.
        importance_cap: Upper bound of the importance weight, above 0.
        teacher_temperature: Divides the teacher's logits, above 0; below 1 sharpens it.
    """

    type: Literal["sampled_token"] = "sampled_token"
    importance_cap: float = 5.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive("teacher_temperature", self.teacher_temperature)
        check_positive("importance_cap", self.importance_cap)


@dataclass(frozen=True, kw_only=True)
class ExOPD:
    """On-policy distillation beyond the teacher, away from a reference model (arXiv 2602.12125).

    Attributes:
        type: Name of this objective in a configuration.
        reward_scale: lambda, how far to go from the reference (0) past the teacher (1), at least
            0. The paper finds 1.25 best and 1.5 unstable.
        importance_cap: Upper bound of the importance weight, above 0.
        teacher_temperature: Divides the teacher's logits, not the reference's, above 0; below 1
            sharpens it.
    """

    type: Literal["exopd"] = "exopd"
    reward_scale: float = 1.25
    importance_cap: float = 5.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_reward_scale(self.reward_scale)
        check_positive("importance_cap", self.importance_cap)
        check_positive("teacher_temperature", self.teacher_temperature)


@dataclass(frozen=True, kw_only=True)
class FullVocabularyKL:
    """A divergence over the whole vocabulary at every sampled context, `fused_divergence`.

    Attributes:
        type: Name of this objective in a configuration.
        divergence: `"reverse"` KL(student || teacher), `"forward"` or `"jsd"`.
        beta: Weight of the teacher in the mixture of `"jsd"`, in (0, 1); unused by the others.
        teacher_temperature: Divides the teacher's logits, above 0; below 1 sharpens it.
        reward_scale: lambda of `ExOPD`, at least 0: the target is `softmax(lambda z* + (1 - lambda)
            z_ref)` of teacher and reference logits. 1 is the teacher itself.
    """

    type: Literal["full_kl"] = "full_kl"
    divergence: Divergence = "reverse"
    beta: float = 0.5
    teacher_temperature: float = 1.0
    reward_scale: float = 1.0

    @property
    def needs_reference(self) -> bool:
        """Whether the target depends on a reference model."""
        return self.reward_scale != 1.0

    def __post_init__(self) -> None:
        _check_reward_scale(self.reward_scale)
        check_positive("teacher_temperature", self.teacher_temperature)
        check_divergence(self.divergence, self.beta)


def _check_reward_scale(reward_scale: float) -> None:
    if not 0.0 <= reward_scale < float("inf"):
        raise ConfigError(
            f"reward_scale is {reward_scale}; expected at least 0 (1 is plain OPD, 1.25 the vetted "
            "setting)."
        )


def opd_advantages(
    student_log_probs_N: Float[Tensor, "N"], teacher_log_probs_N: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """`A = log q - log p` of teacher q and student p at each sampled token, detached.

    Advantages of an ascent step, nats.

    Source: equation (9) of arXiv 2605.11739, whose sign is that of a descent step.
    """
    check_shapes(student=student_log_probs_N, teacher=teacher_log_probs_N)
    return (teacher_log_probs_N - student_log_probs_N).detach()


def exopd_advantages(
    student_log_probs_N: Float[Tensor, "N"],
    teacher_log_probs_N: Float[Tensor, "N"],
    reference_log_probs_N: Float[Tensor, "N"],
    reward_scale: float,
) -> Float[Tensor, "N"]:
    """`A = lambda (log q - log r) - (log p - log r)` with reference r, detached.

    Computed as `(log q - log p) + (lambda - 1) (log q - log r)`, so that lambda = 1 is
    `opd_advantages` bit for bit.

    Args:
        student_log_probs_N: Student's log-probability of each sampled token.
        teacher_log_probs_N: Teacher's.
        reference_log_probs_N: The reference's: the student's initial model, or the teacher's base.
        reward_scale: lambda.

    Returns:
        Advantages of an ascent step, nats.

    Source: G-OPD / ExOPD, arXiv 2602.12125.
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

    Corrects for a rollout engine whose log-probabilities differ from the trainer's.

    Args:
        train_log_probs_N: Log-probability of each sampled token under the trainer's model.
        rollout_log_probs_N: The same as reported by the engine that sampled it.
        cap: Upper bound of the weight, above 0.

    Returns:
        Weights; 1 where both agree, NaN where the engine's log-probability is not finite.

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
    """`-sum_n w_n A_n log p_n / normalizer`, differentiable in `log p` alone.

    Its value means nothing; its gradient is the descent gradient of equation (9). With the token
    count of the whole batch as normalizer, micro-batches add up to the full batch exactly.

    Args:
        log_probs_N: Student's log-probability of each sampled token, with gradient.
        advantages_N: From `opd_advantages` or `exopd_advantages`.
        weights_N: From `importance_weights`.
        normalizer: Token count of the whole batch, above 0.

    Returns:
        Scalar loss.
    """
    check_positive("normalizer", normalizer)
    check_shapes(student=log_probs_N, advantages=advantages_N, weights=weights_N)
    return -(weights_N.detach() * advantages_N.detach() * log_probs_N).sum() / normalizer
