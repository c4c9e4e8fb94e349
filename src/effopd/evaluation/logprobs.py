"""Log-probabilities and divergences of completions under one or two policies, without gradients."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from effopd.models.policy import Policy, Sample, micro_batches
from effopd.objectives import check_finite, token_divergences, token_log_probs
from effopd.objectives.common_vocabulary import Classes, Places, common_divergence
from effopd.objectives.projection import Head
from effopd.objectives.top_k import TopK, top_k_divergence

Known = TypeVar("Known", Head, TopK)

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
            head = policy.head(policy.states(batch).hidden_ND)
            found += log_probs_of(head, batch, temperature)
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
    # A teacher that is the student in another state must not put it there for both.
    during = nullcontext() if teacher.model is student.model else teacher.during()
    with during, torch.no_grad(), evaluation_mode(student), evaluation_mode(teacher):
        for batch in _batches(samples, batch_sequences, batch_tokens):
            ours, theirs = (each.head(each.states(batch).hidden_ND) for each in (student, teacher))
            found += reverse_kl_of(ours, theirs, batch, teacher_temperature)
    return found


@torch.no_grad()
def log_probs_of(
    head: Head, samples: Sequence[Sample], temperature: float = 1.0
) -> list[tuple[float, ...]]:
    """`completion_log_probs` of one micro-batch whose states [N, D] are at hand."""
    targets = [token for sample in samples for token in sample.learned_ids]
    targets_N = torch.tensor(targets, dtype=torch.long, device=head.hidden_ND.device)
    scored = token_log_probs(
        head.hidden_ND,
        head.weight_VD,
        targets_N,
        bias=head.bias_V,
        cap=head.cap,
        temperature=temperature,
    )
    return _per_sample("log-probabilities", scored.log_probs_N, samples)


@torch.no_grad()
def reverse_kl_of(
    student: Head, teacher: Head, samples: Sequence[Sample], teacher_temperature: float = 1.0
) -> list[tuple[float, ...]]:
    """`completion_reverse_kl` of one micro-batch whose states [N, D] are at hand."""
    teacher = on_device(teacher, student.hidden_ND.device)
    divergences_N = token_divergences(
        student.hidden_ND,
        student.weight_VD,
        teacher.hidden_ND,
        teacher.weight_VD,
        student_bias=student.bias_V,
        teacher_bias=teacher.bias_V,
        student_cap=student.cap,
        teacher_cap=teacher.cap,
        teacher_temperature=teacher_temperature,
    )
    return _per_sample("divergence", divergences_N, samples)


@torch.no_grad()
def served_reverse_kl(
    student: Head, target: Head | TopK, samples: Sequence[Sample], teacher_temperature: float = 1.0
) -> list[tuple[float, ...]]:
    """`reverse_kl_of` for what a server said; NaN where that is missing.

    Of k likely tokens it is the divergence of the coarsened distributions, a lower bound.
    """
    if isinstance(target, TopK):
        coarse = top_k_divergence(
            student.hidden_ND,
            student.weight_VD,
            on_device(target, student.hidden_ND.device),
            bias=student.bias_V,
            cap=student.cap,
        )
        known_N, values_N = coarse.known_N, coarse.per_token_N
        values = _per_sample("divergence", values_N, samples)
    else:
        known_N = known_rows(target)
        values = reverse_kl_of(student, without_missing(target), samples, teacher_temperature)
    return with_missing(values, known_N)


@torch.no_grad()
def common_reverse_kl(
    student: Head,
    teacher: Head,
    compared: tuple[Places, Classes],
    samples: Sequence[Sample],
    teacher_temperature: float = 1.0,
) -> list[tuple[float, ...]]:
    """`reverse_kl_of` across tokenizers, see `common_divergence`; NaN where nothing is compared."""
    found = common_divergence(
        student.hidden_ND,
        student.weight_VD,
        on_device(teacher, student.hidden_ND.device),
        *compared,
        bias=student.bias_V,
        cap=student.cap,
        teacher_temperature=teacher_temperature,
    )
    return with_missing(_per_sample("divergence", found.per_token_N, samples), found.known_N)


def known_rows(head: Head) -> Tensor:
    """Which hidden states [N] a server gave: it sends rows of NaN for the others."""
    return ~head.hidden_ND[:, 0].isnan()


def without_missing(head: Head) -> Head:
    """Zeros in the place of hidden states that a server did not give."""
    hidden_ND = head.hidden_ND
    return head._replace(hidden_ND=hidden_ND.masked_fill(~known_rows(head)[:, None], 0.0))


def where_known(
    teacher: Head, compared: tuple[Places, Classes]
) -> tuple[Head, tuple[Places, Classes]]:
    """Leaves out the places of which a server gave no hidden state, or none behind their path."""
    places, classes = compared
    gone_M = (~known_rows(teacher)).cpu().cumsum(0)
    gone_M = torch.cat([gone_M.new_zeros(1), gone_M])
    stop_N = (places.teacher_N + places.path_N + 1).clamp(max=len(teacher.hidden_ND))
    is_known_N = gone_M[stop_N] == gone_M[places.teacher_N]
    known = places._replace(
        student_N=places.student_N[is_known_N],
        teacher_N=places.teacher_N[is_known_N],
        written_N=places.written_N[is_known_N],
        path_N=places.path_N[is_known_N],
    )
    return without_missing(teacher), (known, classes)


def with_missing(values: Sequence[tuple[float, ...]], known_N: Tensor) -> list[tuple[float, ...]]:
    """NaN in the place of values that are not known."""
    known = iter(known_N.tolist())
    return [tuple(value if next(known) else math.nan for value in row) for row in values]


def on_device(target: Known, device: torch.device) -> Known:
    """What is known of the teacher where the student's states are."""
    parts: Any = (part.to(device) if isinstance(part, Tensor) else part for part in target)
    return type(target)(*parts)


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


def _per_sample(name: str, values_N: Tensor, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
    check_finite(values_N, **{name: values_N})
    lengths = [len(sample.learned_ids) for sample in samples]
    return [tuple(part.tolist()) for part in values_N.split(lengths)]
