"""Log-probabilities and divergences of completions under one or two policies, without gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from effopd.models.policy import Policy, Sample
from effopd.objectives import token_divergences, token_log_probs


def completion_log_probs(
    policy: Policy, samples: Sequence[Sample], *, batch_sequences: int = 64
) -> list[tuple[float, ...]]:
    """Log-probability (nats) of every completion token, one tuple a sample.

    The objective raises a NonFiniteError where the policy gives NaN or infinity.
    """
    found: list[tuple[float, ...]] = []
    for batch in _batches(samples, batch_sequences):
        with torch.no_grad(), evaluation_mode(policy):
            states = policy.states(batch)
            scored = token_log_probs(
                states.hidden_ND, policy.head_weight_VD, states.targets_N, bias=policy.head_bias_V
            )
        found += _per_sample(scored.log_probs_N, states.lengths)
    return found


def completion_reverse_kl(
    student: Policy, teacher: Policy, samples: Sequence[Sample], *, batch_sequences: int = 64
) -> list[tuple[float, ...]]:
    """`KL(student || teacher)` in nats over the whole vocabulary at every completion token.

    Exact at each position of the given text (no sampling of the token): equation 7 of arXiv
    2605.11739 with its sum over tokens left to the caller.
    The objective raises a NonFiniteError where a policy gives NaN or infinity.
    """
    found: list[tuple[float, ...]] = []
    for batch in _batches(samples, batch_sequences):
        with torch.no_grad(), evaluation_mode(student), evaluation_mode(teacher):
            ours, theirs = student.states(batch), teacher.states(batch)
            divergences_N = token_divergences(
                ours.hidden_ND,
                student.head_weight_VD,
                theirs.hidden_ND.to(ours.hidden_ND.device),
                teacher.head_weight_VD,
                student_bias=student.head_bias_V,
                teacher_bias=teacher.head_bias_V,
            )
        found += _per_sample(divergences_N, ours.lengths)
    return found


@contextmanager
def evaluation_mode(policy: Policy) -> Iterator[None]:
    """Dropout off inside; the previous mode afterwards."""
    training = policy.model.training
    policy.model.eval()
    try:
        yield
    finally:
        policy.model.train(training)


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def _per_sample(values_N: Tensor, lengths: Sequence[int]) -> list[tuple[float, ...]]:
    return [tuple(part.tolist()) for part in values_N.split(list(lengths))]
