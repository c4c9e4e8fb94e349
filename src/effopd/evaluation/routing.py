"""Every answer scored by the teacher that its problem names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effopd.data.problem import Problem
from effopd.errors import ConfigError
from effopd.evaluation.logprobs import BATCH_TOKENS, completion_log_probs, completion_reverse_kl
from effopd.evaluation.served_teacher import ServedTeacher
from effopd.models.policy import Policy, Sample
from effopd.rollouts.rollout import Rollout

TokenValues = list[tuple[float, ...]]

Teacher = Policy | ServedTeacher


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """Teachers by name, at least one; "" is the name of problems that name no teacher."""

    policies: Mapping[str, Teacher]

    def __post_init__(self) -> None:
        if not self.policies:
            raise ConfigError("no teacher was given, expected at least one")

    @classmethod
    def single(cls, policy: Teacher) -> "Teachers":
        """One teacher for all problems that name none."""
        return cls(policies={"": policy})

    def name_for(self, problem: Problem) -> str:
        """Under which name the problem's teacher is registered; refuses one that is not there."""
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

    def split(self, rollouts: Sequence[Rollout]) -> list[tuple[str, Teacher, list[int]]]:
        """Which teacher scores which rollouts: name, teacher, ascending indices; none empty."""
        indices: dict[str, list[int]] = {name: [] for name in self.policies}
        for i, rollout in enumerate(rollouts):
            indices[self.name_for(rollout.problem)].append(i)
        return [(name, self.policies[name], found) for name, found in indices.items() if found]

    def split_local(self, rollouts: Sequence[Rollout]) -> list[tuple[str, Policy, list[int]]]:
        """`split` for those who need whole vocabularies; refuses a teacher behind a server."""
        return [(name, _local(teacher), found) for name, teacher, found in self.split(rollouts)]

    @property
    def served(self) -> dict[str, ServedTeacher]:
        """Those behind servers."""
        return {n: t for n, t in self.policies.items() if isinstance(t, ServedTeacher)}

    def identities(self) -> dict[str, Tensor]:
        """How teachers behind servers score their fixed texts, to be kept with a checkpoint."""
        return {
            f"served_teacher.{name}": torch.tensor(teacher.identity.log_probs, dtype=torch.float64)
            for name, teacher in self.served.items()
        }

    def expect(self, identities: Mapping[str, Tensor]) -> None:
        """Checks teachers behind servers against the `identities` of a checkpoint, if there."""
        for name, teacher in self.served.items():
            if (kept := identities.get(f"served_teacher.{name}")) is not None:
                teacher.expect(kept.tolist())


def routed_log_probs(
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    *,
    temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
) -> TokenValues:
    """`completion_log_probs` of each rollout under its own teacher, in the rollouts' order."""

    def score(teacher: Teacher, samples: Sequence[Sample]) -> TokenValues:
        if isinstance(teacher, ServedTeacher):
            return teacher.log_probs(samples, temperature=temperature)
        return completion_log_probs(
            teacher, samples, temperature=temperature, batch_tokens=batch_tokens
        )

    return _routed(teachers, rollouts, score)


def routed_reverse_kl(
    student: Policy,
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    *,
    teacher_temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
) -> TokenValues:
    """`completion_reverse_kl` of each rollout to its own teacher, in the rollouts' order."""
    limits: Any = {"teacher_temperature": teacher_temperature, "batch_tokens": batch_tokens}
    return _routed(
        teachers,
        rollouts,
        lambda teacher, samples: completion_reverse_kl(student, _local(teacher), samples, **limits),
    )


def _routed(
    teachers: Teachers,
    rollouts: Sequence[Rollout],
    score: Callable[[Teacher, Sequence[Sample]], TokenValues],
) -> TokenValues:
    """One call of `score` a teacher, put back in order."""
    found: dict[int, tuple[float, ...]] = {}
    for _, teacher, indices in teachers.split(rollouts):
        values = score(teacher, [rollouts[i].sample for i in indices])
        found.update(zip(indices, values, strict=True))
    return [found[i] for i in range(len(rollouts))]


def _local(teacher: Teacher) -> Policy:
    if isinstance(teacher, ServedTeacher):
        raise ConfigError(
            f"{teacher} gives log-probabilities of given tokens only, and the whole vocabulary is "
            "needed: use objective.type = 'sampled_token' or 'exopd', validation.type = 'accuracy' "
            "and evaluation.divergence = false, or a local teacher"
        )
    return teacher
