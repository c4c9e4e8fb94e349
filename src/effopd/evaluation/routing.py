"""Every answer scored by the teacher that its problem names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from effopd.errors import ConfigError
from effopd.evaluation.scoring import (
    BATCH_SEQUENCES,
    BATCH_TOKENS,
    completion_log_probs,
    completion_reverse_kl,
)
from effopd.models.policy import Policy, Sample
from effopd.rollouts.rollout import Rollout
from effopd.tasks.problem import Problem

TokenValues = list[tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """Teachers by name.

    Attributes:
        policies: At least one. "" is the name that problems give which name no teacher.
    """

    policies: Mapping[str, Policy]

    def __post_init__(self) -> None:
        if not self.policies:
            raise ConfigError("no teacher was given, expected at least one")

    @classmethod
    def single(cls, policy: Policy) -> "Teachers":
        """One teacher for all problems that name none."""
        return cls(policies={"": policy})

    def name_for(self, problem: Problem) -> str:
        """Under which name the problem's teacher is registered.

        Raises:
            ConfigError: The problem names a teacher that is not there, or none where there are
                several.
        """
        if problem.teacher in self.policies:
            return problem.teacher
        if problem.teacher == "" and len(self.policies) == 1:
            return next(iter(self.policies))
        known = ", ".join(map(repr, self.policies))
        given = f"the teacher {problem.teacher!r}" if problem.teacher else "no teacher"
        raise ConfigError(
            f"problem {problem.id} names {given}; known are {known}. Name one of these in the "
            "problem, or add the teacher."
        )

    def split(self, rollouts: Sequence[Rollout]) -> list[tuple[str, Policy, list[int]]]:
        """Which teacher scores which rollouts.

        Returns:
            Name, teacher and ascending indices of its rollouts; in the order of `policies`,
            teachers without rollouts left out.
        """
        indices: dict[str, list[int]] = {name: [] for name in self.policies}
        for i, rollout in enumerate(rollouts):
            indices[self.name_for(rollout.problem)].append(i)
        return [(name, self.policies[name], found) for name, found in indices.items() if found]


def routed_log_probs(
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    *,
    temperature: float = 1.0,
    batch_sequences: int = BATCH_SEQUENCES,
    batch_tokens: int = BATCH_TOKENS,
) -> TokenValues:
    """`completion_log_probs` of each rollout under its own teacher, in the rollouts' order."""

    def score(teacher: Policy, samples: Sequence[Sample]) -> TokenValues:
        return completion_log_probs(
            teacher,
            samples,
            temperature=temperature,
            batch_sequences=batch_sequences,
            batch_tokens=batch_tokens,
        )

    return _routed(teachers, rollouts, score)


def routed_reverse_kl(
    student: Policy,
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    *,
    teacher_temperature: float = 1.0,
    batch_sequences: int = BATCH_SEQUENCES,
    batch_tokens: int = BATCH_TOKENS,
) -> TokenValues:
    """`completion_reverse_kl` of each rollout to its own teacher, in the rollouts' order."""

    def score(teacher: Policy, samples: Sequence[Sample]) -> TokenValues:
        return completion_reverse_kl(
            student,
            teacher,
            samples,
            teacher_temperature=teacher_temperature,
            batch_sequences=batch_sequences,
            batch_tokens=batch_tokens,
        )

    return _routed(teachers, rollouts, score)


def _routed(
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    score: Callable[[Policy, Sequence[Sample]], TokenValues],
) -> TokenValues:
    """One call of `score` a teacher, put back in order."""
    found: dict[int, tuple[float, ...]] = {}
    for _, teacher, indices in teachers.split(rollouts):
        values = score(teacher, [rollouts[i].sample for i in indices])
        found.update(zip(indices, values, strict=True))
    return [found[i] for i in range(len(rollouts))]
