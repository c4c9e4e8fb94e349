"""Log-probabilities and divergences of completions under one or two policies, without gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from effopd.models.policy import Policy, Sample, micro_batches
from effopd.objectives import check_finite, token_divergences, token_log_probs

BATCH_SEQUENCES = 64
"""Sequences in one forward pass, at most."""
BATCH_TOKENS = 32_768
"""Padded tokens in one forward pass, unless a single sequence is longer."""


def completion_log_probs(
    policy: Policy,
    samples: Sequence[Sample],
    *,
    temperature: float = 1.0,
    batch_sequences: int = BATCH_SEQUENCES,
    batch_tokens: int = BATCH_TOKENS,
) -> list[tuple[float, ...]]:
    """Log-probability (nats) of every learned token, one tuple a sample."""
    found: list[tuple[float, ...]] = []
    with policy.during(), torch.no_grad(), evaluation_mode(policy):
        for batch in _batches(samples, batch_sequences, batch_tokens):
            states = policy.states(batch)
            scored = token_log_probs(
                states.hidden_ND,
                policy.head_weight_VD,
                states.targets_N,
                bias=policy.head_bias_V,
                temperature=temperature,
            )
            found += _per_sample("log-probabilities", scored.log_probs_N, states.lengths)
    return found


def completion_reverse_kl(
    student: Policy,
    teacher: Policy,
    samples: Sequence[Sample],
    *,
    teacher_temperature: float = 1.0,
    batch_sequences: int = BATCH_SEQUENCES,
    batch_tokens: int = BATCH_TOKENS,
) -> list[tuple[float, ...]]:
    """`KL(student || teacher)` in nats over the whole vocabulary at every learned token.

    Exact at each position of the given text (no sampling of the token): equation 7 of arXiv
    2605.11739 with its sum over tokens left to the caller.
    """
    found: list[tuple[float, ...]] = []
    with teacher.during(), torch.no_grad(), evaluation_mode(student), evaluation_mode(teacher):
        for batch in _batches(samples, batch_sequences, batch_tokens):
            ours, theirs = student.states(batch), teacher.states(batch)
            divergences_N = token_divergences(
                ours.hidden_ND,
                student.head_weight_VD,
                theirs.hidden_ND.to(ours.hidden_ND.device),
                teacher.head_weight_VD,
                student_bias=student.head_bias_V,
                teacher_bias=teacher.head_bias_V,
                teacher_temperature=teacher_temperature,
            )
            found += _per_sample("divergence", divergences_N, ours.lengths)
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


def _batches(samples: Sequence[Sample], sequences: int, tokens: int) -> Iterator[list[Sample]]:
    """Consecutive samples that go through a model together; see `micro_batches`."""
    lengths = [sample.length for sample in samples]
    for indices in micro_batches(lengths, tokens=tokens, sequences=sequences):
        yield [samples[i] for i in indices]


def _per_sample(name: str, values_N: Tensor, lengths: Sequence[int]) -> list[tuple[float, ...]]:
    check_finite(values_N, **{name: values_N})
    return [tuple(part.tolist()) for part in values_N.split(list(lengths))]
