"""Teachers: whoever scores what the student wrote."""

from collections.abc import Sequence
from typing import Protocol

from effopd.errors import ParameterMismatchError
from effopd.evaluation.scoring import completion_log_probs
from effopd.models.loading import tokenizers_agree
from effopd.models.policy import Policy, Sample
from effopd.objectives import aligned_vocabulary_size


class Teacher(Protocol):
    """Scores completions token by token."""

    def log_probs(self, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        """Log-probability (nats) of every completion token, one tuple a sample.

        Raises:
            NonFiniteError: The teacher gives NaN or infinity.
        """
        ...


class LocalTeacher:
    """A frozen model on this machine, in its own precision and on its own device.

    Args:
        policy: The teacher's model; its parameters stop requiring gradients.
        batch_sequences: Sequences per forward pass.
    """

    def __init__(self, policy: Policy, *, batch_sequences: int = 64) -> None:
        self.policy = policy
        self._batch_sequences = batch_sequences
        policy.model.requires_grad_(False).eval()

    def log_probs(self, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        """See `Teacher.log_probs`."""
        return completion_log_probs(self.policy, samples, batch_sequences=self._batch_sequences)


def align_vocabularies(student: Policy, *others: Policy) -> None:
    """Trims padding-only head rows so that all policies have the same vocabulary.

    Raises:
        ParameterMismatchError: Sizes differ for any other reason; both are named.
    """
    size = student.vocabulary_size
    for other in others:
        size = aligned_vocabulary_size(
            size,
            other.vocabulary_size,
            len(student.tokenizer),
            tokenizers_agree(student.tokenizer, other.tokenizer),
        )
    for policy in (student, *others):
        policy.vocabulary_size = size
    if not all(tokenizers_agree(student.tokenizer, other.tokenizer) for other in others):
        raise ParameterMismatchError(
            "student and teacher have vocabularies of one size but different tokens: a token-wise "
            "comparison would be meaningless. Use models that share a tokenizer."
        )
