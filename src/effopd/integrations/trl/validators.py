"""Scores of a trainer's student: minus the divergence from its teacher, or its reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list, gather_object
from trl.chat_template_utils import parse_response
from trl.data_utils import is_conversational

from effopd.errors import NonFiniteError
from effopd.evaluation.logprobs import completion_reverse_kl
from effopd.evaluation.metrics import mean
from effopd.integrations.trl.answers import TrainerAnswers, WrittenAnswers
from effopd.integrations.trl.policies import gathered, policy_of
from effopd.integrations.trl.unnoticed import unnoticed
from effopd.models.policy import Policy
from effopd.search.validation import Draw, Score


class Measure(Protocol):
    """One number an answer, higher is better; a collective where there are several processes."""

    def __call__(self, written: WrittenAnswers) -> list[float]:
        """Values of this process's answers, in their order."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainerValidator:
    """Scores the live student, the same on every process.

    Attributes:
        answers: Writes the student's answers.
        measure: Values them.
        scores_with_teacher: Whether the measure has the teacher score every token.
    """

    answers: TrainerAnswers
    measure: Measure
    scores_with_teacher: bool

    def __call__(self, draw: Draw) -> Score:
        """The score; not finite when the student's weights or logits are not."""
        with unnoticed(self.answers.trainer):
            written = self.answers.write(draw)
            values = self.measure(written)
            if not written.finite:
                values = [float("nan")] * len(values)
            lengths = [len(sample.completion_ids) for sample in written.samples]
            cut = [self.answers.is_truncated(sample) for sample in written.samples]
            rows = gather_object(list(zip(values, lengths, cut, strict=True)))
            agreed = [self._score(rows)]
            broadcast_object_list(agreed, from_process=0)
        return agreed[0]

    def _score(self, rows: Sequence[tuple[float, int, bool]]) -> Score:
        values, lengths, cut = zip(*rows, strict=True)
        tokens = sum(lengths)
        return Score(
            value=mean(values),
            per_prompt=tuple(values),
            tokens=tokens,
            teacher_tokens=tokens if self.scores_with_teacher else 0,
            mean_length=mean(lengths),
            truncated_share=mean(cut),
        )


@dataclass(frozen=True, kw_only=True)
class TeacherKL:
    """Minus the reverse KL to the teacher, mean over the tokens of each answer, in nats.

    Over the whole vocabulary, at temperature 1, whatever divergence the trainer minimizes. Hidden
    states have the precision of the trainer's loss, the heads' products are accumulated in fp32.

    Attributes:
        trainer: A DistillationTrainer.
        student: Its student.
        teacher: Its teacher.
    """

    trainer: Any
    student: Policy
    teacher: Policy

    @classmethod
    def of(cls, trainer: Any) -> "TeacherKL":
        """Of the models a trainer has prepared; a Policy refuses heads it cannot apply."""
        models = (trainer.model_wrapped, trainer.teacher_model)
        student, teacher = (policy_of(trainer, model) for model in models)
        return cls(trainer=trainer, student=student, teacher=teacher)

    def __call__(self, written: WrittenAnswers) -> list[float]:
        """One value an answer; NaN where a model gives NaN or infinity."""
        try:
            with gathered(self.student.model), gathered(self.teacher.model):
                divergences = completion_reverse_kl(
                    self.student,
                    self.teacher,
                    written.samples,
                    batch_sequences=self.trainer.args.per_device_train_batch_size,
                )
        except NonFiniteError:
            return [float("nan")] * len(written.samples)
        return [-mean(tokens) for tokens in divergences]


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The weighted sum of a GRPOTrainer's reward functions.

    Attributes:
        trainer: The trainer.
    """

    trainer: Any

    def __call__(self, written: WrittenAnswers) -> list[float]:
        """One value an answer; NaN where every reward function abstains."""
        trainer = self.trainer
        prompts = [row["prompt"] for row in written.rows]
        completion_ids = [list(sample.completion_ids) for sample in written.samples]
        found_BF = trainer._calculate_rewards(
            list(written.rows), prompts, _completions(trainer, written), completion_ids
        )
        start = trainer.accelerator.process_index * len(prompts)
        own_BF = found_BF[start : start + len(prompts)]  # the trainer gathers all processes'
        values_B = (own_BF * trainer.reward_weights.to(own_BF.device)).nansum(dim=1)
        values_B[own_BF.isnan().all(dim=1)] = torch.nan
        values: list[float] = values_B.tolist()
        return values


def _completions(trainer: Any, written: WrittenAnswers) -> list[Any]:
    """Completions as reward functions get them: texts, or messages of the assistant."""
    tokenizer = trainer._tokenizer
    texts = trainer.processing_class.batch_decode(
        [list(s.completion_ids) for s in written.samples], skip_special_tokens=True
    )
    if not is_conversational({"prompt": written.rows[0]["prompt"]}):
        return list(texts)
    if getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None):
        return [
            [parse_response(tokenizer, list(s.completion_ids), prefix=list(s.prompt_ids), tools=[])]
            for s in written.samples
        ]
    return [[{"role": "assistant", "content": text}] for text in texts]
