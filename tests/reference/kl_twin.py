"""Reverse KL of two policies on a given text: one sequence at a time, float64, no chunks."""

import copy
from typing import Any

import torch
from torch import Tensor

from effopd.models.policy import Sample


@torch.no_grad()
def log_probs_TV(model: Any, sample: Sample, vocabulary: int, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of every token at every position of the completion."""
    precise = copy.deepcopy(model).double().eval()
    sequence = torch.tensor([sample.prompt_ids + sample.completion_ids])
    logits = precise(sequence).logits[0, len(sample.prompt_ids) - 1 : -1, :vocabulary]
    return (logits / temperature).log_softmax(-1)


def reverse_kl(
    student: Any, teacher: Any, sample: Sample, vocabulary: int, teacher_temperature: float = 1.0
) -> list[float]:
    """`sum_v p(v) (log p(v) - log q(v))` with p the student's distribution, per token."""
    p = log_probs_TV(student, sample, vocabulary)
    q = log_probs_TV(teacher, sample, vocabulary, teacher_temperature)
    return (p.exp() * (p - q)).sum(-1).tolist()
