"""A small student and teacher at their last hidden states, and their fused and naive losses."""

from dataclasses import dataclass
from typing import Any

import torch
from tests.reference import objectives_twin as twin
from torch import Tensor

from effopd.objectives import FusedDivergence, fused_divergence

DOUBLE = torch.float64


@dataclass
class Models:
    """Hidden states and heads of a student (width 5) and a wider teacher (width 7)."""

    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor

    @property
    def trained(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.student_hidden, self.student_weight, self.student_bias

    def fused(self, **settings: Any) -> FusedDivergence:
        return fused_divergence(
            self.student_hidden,
            self.student_weight,
            self.teacher_hidden,
            self.teacher_weight,
            student_bias=self.student_bias,
            teacher_bias=self.teacher_bias,
            **settings,
        )

    def naive(
        self,
        kind: str,
        beta: float = 0.5,
        temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        student_cap: float | None = None,
        teacher_cap: float | None = None,
    ) -> Tensor:
        student = twin.log_distributions(*self.trained, temperature, student_cap)
        teacher = twin.log_distributions(
            self.teacher_hidden,
            self.teacher_weight,
            self.teacher_bias,
            temperature * teacher_temperature,
            teacher_cap,
        )
        return twin.divergences(kind, student, teacher, beta)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.trained))


def models(tokens: int = 7, vocabulary: int = 11, dtype: torch.dtype = DOUBLE) -> Models:
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=DOUBLE).to(dtype)

    trained = normal(tokens, 5), normal(vocabulary, 5), normal(vocabulary)
    fixed = normal(tokens, 7), normal(vocabulary, 7), normal(vocabulary)
    return Models(*(tensor.requires_grad_() for tensor in trained), *fixed)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    """Whether all elements agree within the tolerance, absolute or relative."""
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)
