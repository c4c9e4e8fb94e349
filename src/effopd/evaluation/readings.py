"""How a teacher with other tokens reads the student's answers, and what its values are worth.

Whoever scores has one value for every learned token of the student, whatever the teacher read: NaN
where the teacher has nothing to say.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from effopd.errors import ConfigError
from effopd.models.alignment import Aligner, Alignment, AlignmentSettings, SpanCounts, transfer
from effopd.models.common_vocabulary import compared_places, vocabulary_classes
from effopd.models.policy import Sample
from effopd.models.token_map import TokenMap
from effopd.objectives.common_vocabulary import Classes, Places
from effopd.rollouts.rollout import Rollout

_NEVER = -9.2
"""Value (nats) of tokens that the student's tokenizer would not have cut: 1 in 10,000."""


@dataclass(frozen=True, kw_only=True)
class MappedReading:
    """One vocabulary under a named mapping: the same tokens, as ids of the teacher.

    Attributes:
        tokens: The mapping.
        unknown: What the teacher reads in the place of a token that it does not have.
    """

    tokens: TokenMap
    unknown: int

    def sample(self, rollout: Rollout, prompt_ids: tuple[int, ...] | None) -> Sample:
        """The answer after the teacher's own prompt, or after the student's in its ids."""
        sample = rollout.sample
        prompt = self.tokens.prompt_tokens(sample.prompt_ids) if prompt_ids is None else prompt_ids
        answer = self.tokens.answer_tokens(sample.completion_ids, self.unknown)
        if sample.learned is not None:  # what an environment wrote is text as in a prompt
            read = self.tokens.prompt_tokens(
                [i for i, own in zip(sample.completion_ids, sample.learned, strict=True) if not own]
            )
            others = iter(read)
            answer = tuple(
                i if own else next(others) for i, own in zip(answer, sample.learned, strict=True)
            )
        return Sample(prompt_ids=prompt, completion_ids=answer, learned=sample.learned)

    def tokens_read(self, rollout: Rollout) -> int:
        """Tokens of the answer for the teacher."""
        return len(rollout.completion.token_ids)

    def values(self, rollout: Rollout, teacher_values: Sequence[float]) -> tuple[float, ...]:
        """The teacher's values; NaN for tokens that it does not have."""
        pairs = zip(teacher_values, rollout.sample.learned_ids, strict=True)
        return tuple(value if self.tokens.knows(i) else float("nan") for value, i in pairs)


@dataclass(frozen=True, kw_only=True)
class AlignedReading:
    """Another tokenizer: the teacher reads its own tokens of the answer after its own prompt.

    Attributes:
        aligner: Finds the spans in which both write the same bytes.
        own: From the student's tokenizer to itself, cutting again.
        settings: How much has to match alone.
        name: What messages call the teacher.
    """

    aligner: Aligner
    settings: AlignmentSettings
    name: str
    own: Aligner
    _classes: dict[tuple[Any, ...], Classes] = field(default_factory=dict, compare=False)

    def sample(self, rollout: Rollout, prompt_ids: tuple[int, ...] | None) -> Sample:
        """The teacher's own tokens of the answer; its prompt has to be one of its own."""
        if prompt_ids is None:
            raise ConfigError(f"{self.name} has another tokenizer: it needs a prompt of its own")
        return Sample(prompt_ids=prompt_ids, completion_ids=self.alignment(rollout).teacher_ids)

    def tokens_read(self, rollout: Rollout) -> int:
        """Tokens of the answer for the teacher."""
        return len(self.alignment(rollout).teacher_ids)

    def values(self, rollout: Rollout, teacher_values: Sequence[float]) -> tuple[float, ...]:
        """The teacher's values on the student's tokens, see `transfer`.

        Runs that match as a whole are compared with what the policy gave that wrote them. Tokens
        which the student's tokenizer would not cut so are worth little: a text would have the
        teacher's probability once for each way to cut it, and the student would spread over them.
        For the same reason a token that begins another one is judged with what comes behind it.
        """
        found = transfer(
            self.alignment(rollout),
            torch.tensor(rollout.completion.log_probs, dtype=torch.float64),
            torch.tensor(teacher_values, dtype=torch.float64),
        )
        ids, written = rollout.completion.token_ids, rollout.completion.log_probs
        for span in self.own.align(ids).spans:
            if not span.is_equal:
                found[span.student_start : span.student_stop].clamp_(max=_NEVER)
        for i in range(len(ids) - 2, -1, -1):
            behind = float(found[i + 1]) - written[i + 1]
            if ids[i] in self.own.beginnings and math.isfinite(behind):
                found[i] += behind
        return tuple(found.tolist())

    def compared(
        self, rollouts: Sequence[Rollout], student_VD: Tensor, teacher_WE: Tensor
    ) -> tuple[Places, Classes]:
        """Where the next tokens of both can be compared, and as what (`common_divergence`).

        Takes the rows of both heads. The classes are on the student's device, the places on the
        CPU.
        """
        rows, device = (len(student_VD), len(teacher_WE)), student_VD.device
        if (*rows, device) not in self._classes:
            found = vocabulary_classes(self.aligner, *rows)
            self._classes[*rows, device] = found.to(device)
        classes = self._classes[*rows, device]
        answers = [
            (ids := each.completion.token_ids, self.alignment(each), self.own.align(ids))
            for each in rollouts
        ]
        return compared_places(classes, answers), classes

    def alignment(self, rollout: Rollout) -> Alignment:
        """Spans of an answer; refuses one that an environment has written parts of."""
        if rollout.sample.learned is not None:
            raise ConfigError(
                f"{self.name} has another tokenizer, and answers with parts that an environment "
                "wrote are not aligned: use a teacher with the student's tokenizer"
            )
        return self.aligner.align(rollout.completion.token_ids)


Reading = MappedReading | AlignedReading


def span_counts(
    readings: Mapping[str, Reading], answers: Iterable[tuple[str, Sequence[Rollout]]]
) -> SpanCounts | None:
    """How the tokens of answers are scored, by the teachers that have other tokenizers.

    `answers` are those of each teacher by name. None where no teacher has another tokenizer; one of
    which too few tokens match is refused.
    """
    found: SpanCounts | None = None
    for name, rollouts in answers:
        reading = readings.get(name)
        if isinstance(reading, AlignedReading):
            counts = sum((reading.alignment(each).counts for each in rollouts), SpanCounts())
            reading.settings.check(counts, reading.name)
            found = counts if found is None else found + counts
    return found
