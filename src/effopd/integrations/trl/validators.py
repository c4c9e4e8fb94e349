"""What a trainer's student is worth: answers by its own generation, and their score.

The score is minus the divergence from the teacher, or the reward.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from trl import GRPOTrainer
from trl.chat_template_utils import parse_response
from trl.data_utils import is_conversational

from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.logprobs import completion_reverse_kl
from effopd.evaluation.rollout_sources import sample_indices, validation_seed
from effopd.evaluation.statistics import mean
from effopd.integrations.trl.compatibility import gathered, policy_of
from effopd.models.policy import Policy, Sample
from effopd.search.extrapolator import preserve_state
from effopd.search.validation import Draw, Score, score_of

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainerRollouts:
    """This process's share of a search's answers."""

    rows: Sequence[Row]
    """Rows of the dataset, `prompt` among their columns."""
    samples: Sequence[Sample]
    finite: bool
    """Whether sampling met only finite probabilities; if not, completions have only their end."""


@dataclass(frozen=True, kw_only=True)
class TrainerRolloutSource:
    """Answers by the trainer's engine: a function of the student's weights and the search's step.

    All candidates of one search see the same prompts and the same random numbers. Every process
    writes an equal share of `prompts`, rounded up.
    """

    trainer: Any
    dataset: Any
    prompts: int
    resample: bool
    seed: int

    def __post_init__(self) -> None:
        processes = self.trainer.accelerator.num_processes
        if self.prompts < 1 or len(self.dataset) < processes:
            raise ConfigError(
                f"validation needs prompts >= 1 and at least one row for each of {processes} "
                f"processes, got prompts={self.prompts} and {len(self.dataset)} rows"
            )

    def rows(self, draw: Draw) -> list[Row]:
        """This process's rows."""
        accelerator, size = self.trainer.accelerator, len(self.dataset)
        processes = accelerator.num_processes
        count = min(-(-self.prompts // processes), size // processes) * processes
        chosen = sample_indices(draw, size, count, self.seed, resample=self.resample)
        return [self.dataset[i] for i in chosen[accelerator.process_index :: processes]]

    def rollouts(self, draw: Draw) -> TrainerRollouts:
        """One answer a row, by the student as it is now, in portions of a training batch."""
        trainer, rows = self.trainer, self.rows(draw)
        size = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
        samples: list[Sample] = []
        finite = True
        if trainer.use_vllm:
            trainer.vllm_generation.sync_weights()
            trainer._last_loaded_step = trainer.state.global_step
        for start in range(0, len(rows), size):
            prompts = [row["prompt"] for row in rows[start : start + size]]
            where = (trainer.accelerator.process_index, start)
            seed = validation_seed(self.seed, draw, *where)
            found, sampled = generate(trainer, prompts, seed)
            samples += found
            finite = finite and sampled
        return TrainerRollouts(rows=rows, samples=samples, finite=finite)

    def is_truncated(self, sample: Sample) -> bool:
        """Whether the answer was cut at the length cap."""
        trainer = self.trainer
        ends = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}
        return sample.completion_ids[-1] not in ends


def generate(trainer: Any, prompts: Sequence[Any], seed: int) -> tuple[list[Sample], bool]:
    """One answer a prompt by the trainer's engine, and whether probabilities were finite.

    The seed is that of torch's generator, or of each request to vLLM. Tools are called as in
    training; what they write is not scored.
    """
    prompt_ids, images, fields = trainer._tokenize_prompts(list(prompts))
    several = (1,) if isinstance(trainer, GRPOTrainer) else ()
    torch.manual_seed(seed)
    try:
        with _requests_seeded(trainer, seed):
            if trainer.tools:
                prompt_ids, found, masks, *_ = trainer._generate(list(prompts))
                return _samples(prompt_ids, found, masks), True
            found = trainer._generate_single_turn(prompt_ids, images, fields, *several)
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        return _samples(prompt_ids, [trainer.eos_token_ids[:1]] * len(prompt_ids)), False
    return _samples(prompt_ids, found[0] if several else found), True


def _samples(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]] | None = None,
) -> list[Sample]:
    """Answers, whose tokens with a mask of 0 were written by tools."""
    learned: list[tuple[bool, ...] | None] = [None] * len(prompt_ids)
    if masks is not None:
        learned = [tuple(map(bool, mask)) for mask in masks]
    rows = zip(prompt_ids, completion_ids, learned, strict=True)
    return [Sample(prompt_ids=tuple(p), completion_ids=tuple(c), learned=own) for p, c, own in rows]


@contextmanager
def _requests_seeded(trainer: Any, seed: int) -> Iterator[None]:
    """Requests to vLLM carry the seed, so that its own generator stays where it is."""
    if not trainer.use_vllm:
        yield
        return
    engine = trainer.vllm_generation
    before = engine.generation_kwargs
    engine.generation_kwargs = {**before, "seed": seed % 2**31}
    try:
        yield
    finally:
        engine.generation_kwargs = before


# Scores ------------------------------------------------------------------------------------------


_TOUCHED = (
    "_buffered_inputs", "_current_train_step_time", "_logs", "_metrics", "_pending_extra_logs",
    "_pending_metrics", "_step", "_total_train_tokens", "num_generations_eval",
)  # fmt: skip
"""What TRL's trainers count, log and buffer; not every trainer has all of them."""


def unnoticed(trainer: Any) -> AbstractContextManager[None]:
    """`preserve_state` for what scoring touches in a trainer.

    That is random generators, metrics, token counts, buffered completions, control flags, state of
    the run, and whether each module trains. Inside nothing is reported to a tracker.
    """
    own = vars(trainer)
    counted = {
        # Buffered inputs are replaced as a whole, never changed in place.
        name: own[name] if name == "_buffered_inputs" else copy.deepcopy(own[name])
        for name in _TOUCHED
        if name in own
    }
    state = vars(trainer.state) | {"log_history": list(trainer.state.log_history)}
    models = (trainer.model, trainer.model_wrapped, own.get("teacher_model"))
    reports, trainer.args.report_to = trainer.args.report_to, []
    return preserve_state(
        modules=[module for model in models if model is not None for module in model.modules()],
        attributes=[
            (trainer.args, {"report_to": reports}),
            (trainer.control, dict(vars(trainer.control))),
            (trainer.state, state),
            (trainer, counted),
        ],
    )


Measure = Callable[[TrainerRollouts], list[float]]
"""One number an answer of this process; a collective where there are several processes."""


@dataclass(frozen=True, kw_only=True)
class TrainerValidator:
    """Scores the live student, the same on every process."""

    source: TrainerRolloutSource
    measure: Measure
    scores_with_teacher: bool

    def __call__(self, draw: Draw) -> Score:
        """The score; not finite when the student's weights or logits are not."""
        with unnoticed(self.source.trainer):
            written = self.source.rollouts(draw)
            values = self.measure(written)
            if not written.finite:
                values = [float("nan")] * len(values)
            lengths = [len(sample.learned_ids) for sample in written.samples]
            cut = [self.source.is_truncated(sample) for sample in written.samples]
            rows = gather_object(list(zip(values, lengths, cut, strict=True)))
            tokens = sum(length for _, length, _ in rows)
            taught = tokens if self.scores_with_teacher else 0
            agreed = [score_of(*zip(*rows, strict=True), tokens=tokens, teacher_tokens=taught)]
            broadcast_object_list(agreed, from_process=0)
        return agreed[0]


@dataclass(frozen=True, kw_only=True)
class TeacherKL:
    """Minus the reverse KL to the teacher, mean over the tokens of each answer, in nats.

    Over the whole vocabulary, at temperature 1, whatever divergence the trainer minimizes. Hidden
    states have the precision of the trainer's loss, the heads' products are accumulated in fp32.
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

    def __call__(self, written: TrainerRollouts) -> list[float]:
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
    """The weighted sum of a GRPOTrainer's reward functions."""

    trainer: Any

    def __call__(self, written: TrainerRollouts) -> list[float]:
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
        return values_B.tolist()


def _completions(trainer: Any, written: TrainerRollouts) -> list[Any]:
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
