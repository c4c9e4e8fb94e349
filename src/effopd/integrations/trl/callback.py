"""The search as a callback of TRL's trainers."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from trl import DistillationTrainer, GRPOTrainer

from effopd.errors import CheckpointError, ConfigError
from effopd.integrations.trl import sidecar
from effopd.integrations.trl.answers import TrainerAnswers
from effopd.integrations.trl.compatibility import check_sharded, check_trainer, check_versions
from effopd.integrations.trl.unnoticed import unnoticed
from effopd.integrations.trl.validators import Reward, TeacherKL, TrainerValidator
from effopd.models.lora import factor_pairs
from effopd.records import JsonlWriter, truncate_jsonl
from effopd.search.extrapolator import Extrapolator
from effopd.search.factors import Factors
from effopd.search.scales import Trial
from effopd.search.schedule import PowersOfTwo
from effopd.search.selection import select_parameters
from effopd.search.settings import Search
from effopd.search.validation import Validator
from effopd.training.methods import EFFOPD_SEARCH
from effopd.training.rows import trial_row
from effopd.training.search_file import restore_search, search_state

FOLLOWING = replace(EFFOPD_SEARCH, schedule=PowersOfTwo())
"""The default for a DistillationTrainer: both ways from the tip, with a learning rate that follows.

Measured in docs/trl.md. After powers of two instead of every update, since a search here writes
answers of its own.
"""
RATE_FACTOR = "effopd/rate_factor"
"""Key in TRL's logs of what the learning rate is multiplied by, where it follows."""


class EffOPDCallback(TrainerCallback):
    """Looks ahead after updates of a DistillationTrainer or a GRPOTrainer.

        trainer = DistillationTrainer(...)
        trainer.add_callback(EffOPDCallback(trainer))
        trainer.train()

    Candidates are scored by what the student writes on prompts of the training set, with the
    trainer's own engine: minus the divergence from the teacher, or the reward. Searching leaves no
    trace in generators, metrics, token counts and control flags; a run that rejects everything, at
    a learning rate that does not follow, equals one without the callback bit for bit. Every trial
    is a row of `effopd/search.jsonl` in the trainer's output directory, and every checkpoint has
    the search's state in `effopd/`.

    Args:
        trainer: The trainer, before training.
        search: Settings. None is `FOLLOWING` for a DistillationTrainer that is scored by its
            teacher, and `Search()`, which leaves the learning rate alone, for any other score.
        validate: A score of your own, called as `validate(draw)` with the student's weights in
            place; the same on every process. None scores as above.
        dataset: Where validation prompts come from: rows with a `prompt`, and the columns that the
            reward functions need. None is the training set.
        prompts: Prompts of a draw over all processes.
        resample: New prompts for every search; False keeps one fixed set.
        seed: Of the draws; None is the trainer's.
        device: Where the anchor lives; None keeps it next to the parameters.
        resume_from: Checkpoint to take the search's state from; None is `checkpoint-N` in the
            output directory, N being the step that the trainer resumes at.
        start_anew: When resuming without a saved state, search from the present weights on.
        allow_untested_versions: Run with versions that were not tested.

    Raises:
        ConfigError: Untested versions, or a trainer that cannot be searched exactly.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        search: Search | None = None,
        validate: Validator | None = None,
        dataset: Any = None,
        prompts: int = 50,
        resample: bool = True,
        seed: int | None = None,
        device: str | None = "cpu",
        resume_from: Path | str | None = None,
        start_anew: bool = False,
        allow_untested_versions: bool = False,
    ) -> None:
        if not allow_untested_versions:
            check_versions()
        taught = isinstance(trainer, DistillationTrainer) and validate is None
        self.search = search or (FOLLOWING if taught else Search())
        check_trainer(trainer, self.search, own_validator=validate is not None)
        self.trainer = trainer
        self._validate = validate
        self._answers = None if validate else _answers(trainer, dataset, prompts, resample, seed)
        self._device = device
        self._resume_from = None if resume_from is None else Path(resume_from)
        self._start_anew = start_anew
        self._extrapolator: Extrapolator | None = None
        self._writer: JsonlWriter | None = None
        self._shards = (0, 1)
        self._rates: list[float] = []

    @property
    def extrapolator(self) -> Extrapolator:
        """The search; there is one once training has begun.

        Raises:
            ConfigError: Training has not begun.
        """
        if self._extrapolator is None:
            raise ConfigError("the search begins with the training: call trainer.train() first")
        return self._extrapolator

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the anchor, from the weights or from the checkpoint that is resumed."""
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        parameters = select_parameters(model, self.search.parameters)
        check_sharded(trainer, parameters)
        pairs = factor_pairs(model)
        self._extrapolator = Extrapolator(
            model,
            self._scorer(),
            search=self.search,
            optimizer=_optimizer(trainer),
            device=self._device,
            factors=Factors(pairs) if pairs else None,
            on_trial=self._record,
        )
        self._shards = _shards(trainer, parameters)
        self._open(self._restore(state.global_step) if state.global_step else 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Searches if one is due after this update."""
        step = state.global_step
        with unnoticed(self.trainer) if self._validate else nullcontext():
            result = self.extrapolator.step(step)
        if result is None:
            return
        if self.trainer.use_vllm:
            self.trainer._last_loaded_step = -1  # the engine has the last candidate's weights
        if result.accepted_scale != 1.0 and isinstance(self.trainer, GRPOTrainer):
            self.trainer._buffered_inputs = None  # written by weights that are gone

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Multiplies the learning rate of this update where the search says so, and logs it."""
        groups, factor = self.trainer.optimizer.param_groups, self.extrapolator.rate_factor
        if self.search.learning_rate == "follow":
            self.trainer._metrics["train"][RATE_FACTOR].append(factor)
        self._rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * factor

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the learning rate back to its schedule."""
        for group, rate in zip(self.trainer.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the search's state beside the checkpoint that was just saved."""
        directory = self._checkpoint(state.global_step) / sidecar.FOLDER
        shard, shards = self._shards
        if shards > 1 or self.trainer.accelerator.is_main_process:
            sidecar.save(directory, search_state(self.extrapolator), shard=shard, shards=shards)
        self.trainer.accelerator.wait_for_everyone()
        if self._writer is not None:
            sidecar.finish(directory, shards=shards, recorded_bytes=self._writer.offset)

    def _scorer(self) -> Validator:
        if self._answers is None:
            assert self._validate is not None
            return self._validate
        rewarded = isinstance(self.trainer, GRPOTrainer)
        return TrainerValidator(
            answers=self._answers,
            measure=Reward(trainer=self.trainer) if rewarded else TeacherKL.of(self.trainer),
            scores_with_teacher=not rewarded,
        )

    def _restore(self, step: int) -> int | None:
        """Loads the state saved at `step`; how long the record was then, None without a state."""
        directory = (self._resume_from or self._checkpoint(step)) / sidecar.FOLDER
        if self._start_anew and not (directory / sidecar.STATE).is_file():
            return None
        shard, shards = self._shards
        state, recorded_bytes = sidecar.load(directory, shard=shard, shards=shards)
        if not restore_search(self.extrapolator, state):
            raise CheckpointError(
                f"{directory} belongs to other weights than those that training resumes with: name "
                "the checkpoint that trainer.train(resume_from_checkpoint=...) was given with "
                "resume_from="
            )
        return recorded_bytes

    def _checkpoint(self, step: int) -> Path:
        return Path(self.trainer._get_output_dir(trial=None)) / f"checkpoint-{step}"

    def _open(self, recorded_bytes: int | None) -> None:
        """Goes on with the record of trials where the resumed state was, or starts it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self.trainer.accelerator.is_main_process:
            path = Path(self.trainer.args.output_dir) / sidecar.FOLDER / "search.jsonl"
            if recorded_bytes is not None:
                truncate_jsonl(path, recorded_bytes)
            self._writer = JsonlWriter(path)

    def _record(self, index: int, trial: Trial) -> None:
        if self._writer is not None:
            self._writer.write(trial_row(self.trainer.state.global_step, index, trial))


def _answers(
    trainer: Any, dataset: Any, prompts: int, resample: bool, seed: int | None
) -> TrainerAnswers:
    from datasets import IterableDataset

    rows = trainer.train_dataset if dataset is None else dataset
    if isinstance(rows, IterableDataset):
        raise ConfigError(
            "validation prompts are drawn by index, and the training set is a stream: pass "
            "dataset= with a few hundred rows"
        )
    return TrainerAnswers(
        trainer=trainer,
        dataset=rows,
        prompts=prompts,
        resample=resample,
        seed=trainer.args.seed if seed is None else seed,
    )


def _optimizer(trainer: Any) -> Any:
    """The torch optimizer that holds the state."""
    optimizer = trainer.optimizer
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def _shards(trainer: Any, parameters: Mapping[str, Tensor]) -> tuple[int, int]:
    """Which part of the anchor this process has, and how many there are."""
    if any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        return trainer.accelerator.process_index, trainer.accelerator.num_processes
    return 0, 1
