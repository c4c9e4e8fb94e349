"""What a trainer's student writes for a draw, by the trainer's own generation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from trl import GRPOTrainer

from effopd.errors import ConfigError
from effopd.evaluation.drawn_answers import drawn_places
from effopd.models.policy import Sample
from effopd.rollouts.seeds import derive_seed
from effopd.search.validation import Draw

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class WrittenAnswers:
    """This process's share of a draw.

    Attributes:
        rows: Rows of the dataset, `prompt` among their columns.
        samples: Token ids of prompt and completion.
        finite: Whether sampling met only finite probabilities; if not, completions are empty but
            for their end.
    """

    rows: Sequence[Row]
    samples: Sequence[Sample]
    finite: bool


@dataclass(frozen=True, kw_only=True)
class TrainerAnswers:
    """Answers to the prompts of a draw: a function of the student's weights and the draw.

    All candidates of one search see the same prompts and the same random numbers. Every process
    writes an equal share.

    Attributes:
        trainer: TRL's trainer; generates with its engine and its sampling settings.
        dataset: Rows with a `prompt`; anything with a length and integer indices.
        prompts: Prompts of a draw over all processes, rounded up to equal shares.
        resample: New prompts for every search; False keeps one fixed set (re-tests are fresh).
        seed: Of prompts and sampling.
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
        """This process's rows: a pure function of seed, draw and process."""
        processes = self.trainer.accelerator.num_processes
        share = min(-(-self.prompts // processes), len(self.dataset) // processes)
        size = len(self.dataset)
        chosen = drawn_places(draw, size, share * processes, self.seed, resample=self.resample)
        return [
            self.dataset[i] for i in chosen[self.trainer.accelerator.process_index :: processes]
        ]

    def write(self, draw: Draw) -> WrittenAnswers:
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
            seed = derive_seed(self.seed, "validate", draw.step, int(draw.fresh), *where)
            prompt_ids, completion_ids, sampled = generate(trainer, prompts, seed)
            finite = finite and sampled
            pairs = zip(prompt_ids, completion_ids, strict=True)
            samples += [Sample(prompt_ids=tuple(p), completion_ids=tuple(c)) for p, c in pairs]
        return WrittenAnswers(rows=rows, samples=samples, finite=finite)

    def is_truncated(self, sample: Sample) -> bool:
        """Whether the answer was cut at the length cap."""
        trainer = self.trainer
        ends = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}
        return sample.completion_ids[-1] not in ends


def generate(
    trainer: Any, prompts: Sequence[Any], seed: int
) -> tuple[list[list[int]], list[list[int]], bool]:
    """Prompts and completions as token ids, by the trainer's engine.

    Args:
        trainer: TRL's trainer.
        prompts: Texts or conversations.
        seed: Of torch's generator, or of each request to vLLM.

    Returns:
        Prompt ids, completion ids, and whether the probabilities were finite.
    """
    prompt_ids, images, fields = trainer._tokenize_prompts(list(prompts))
    several = (1,) if isinstance(trainer, GRPOTrainer) else ()
    torch.manual_seed(seed)
    try:
        with _requests_seeded(trainer, seed):
            found = trainer._generate_single_turn(prompt_ids, images, fields, *several)
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        return prompt_ids, [trainer.eos_token_ids[:1]] * len(prompt_ids), False
    return prompt_ids, found[0] if several else found, True


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
