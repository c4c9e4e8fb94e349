"""The search as a callback of TRL's trainers."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from trl import DistillationTrainer, GRPOTrainer

from effopd.errors import ConfigError
from effopd.integrations.trl.compatibility import check_sharded, check_trainer, check_versions
from effopd.integrations.trl.validators import (
    Reward,
    TeacherKL,
    TrainerRolloutSource,
    TrainerValidator,
    unnoticed,
)
from effopd.methods.registry import EFFOPD_SEARCH
from effopd.models.lora import factor_pairs
from effopd.search.extrapolator import Extrapolator
from effopd.search.factors import Factors
from effopd.search.scales import Trial
from effopd.search.schedule import PowersOfTwo
from effopd.search.selection import select_parameters
from effopd.search.settings import Search
from effopd.search.validation import Validator
from effopd.training.search_checkpoint import (
    SearchLog,
    read_search,
    restore_search,
    save_search,
    search_file,
)

FOLLOWING = replace(EFFOPD_SEARCH, schedule=PowersOfTwo())
"""The default for a DistillationTrainer: both ways from the tip, with a learning rate that follows.

Measured in docs/trl.md. After powers of two instead of every update, since a search here writes
answers of its own.
"""
FOLDER = "effopd"
"""Beside a checkpoint the search's state, in the output directory the record of its trials."""
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
        self._source: TrainerRolloutSource | None = None
        if validate is None:
            rows = trainer.train_dataset if dataset is None else dataset
            if isinstance(rows, IterableDataset):
                raise ConfigError(
                    "validation prompts are drawn by index, and the training set is a stream: pass "
                    "dataset= with a few hundred rows"
                )
            self._source = TrainerRolloutSource(
                trainer=trainer,
                dataset=rows,
                prompts=prompts,
                resample=resample,
                seed=trainer.args.seed if seed is None else seed,
            )
        self._device = device
        self._resume_from = None if resume_from is None else Path(resume_from)
        self._start_anew = start_anew
        self._extrapolator: Extrapolator | None = None
        self._log: SearchLog | None = None
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
        validate = self._validate
        if self._source is not None:
            rewarded = isinstance(trainer, GRPOTrainer)
            validate = TrainerValidator(
                source=self._source,
                measure=Reward(trainer=trainer) if rewarded else TeacherKL.of(trainer),
                scores_with_teacher=not rewarded,
            )
        self._extrapolator = Extrapolator(
            model,
            validate,
            search=self.search,
            device=self._device,
            factors=Factors(pairs) if pairs else None,
            on_trial=self._record,
        )
        # FSDP2 shards the anchor with the parameters; all other processes hold the same.
        if any(isinstance(parameter, DTensor) for parameter in parameters.values()):
            accelerator = trainer.accelerator
            self._shards = accelerator.process_index, accelerator.num_processes
        if state.global_step:
            directory = self._resume_from or self._checkpoint(state.global_step)
            path = search_file(directory / FOLDER, *self._shards)
            if path.is_file() or not self._start_anew:
                restore_search(self._extrapolator, read_search(path), path)
        if self._log is not None:
            self._log.close()
        if trainer.accelerator.is_main_process:
            record = Path(trainer.args.output_dir) / FOLDER / "search.jsonl"
            self._log = SearchLog(record, state.global_step)

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
        path = search_file(self._checkpoint(state.global_step) / FOLDER, *self._shards)
        if self._shards[1] > 1 or self.trainer.accelerator.is_main_process:
            save_search(path, self.extrapolator)
        self.trainer.accelerator.wait_for_everyone()

    def _checkpoint(self, step: int) -> Path:
        return Path(self.trainer._get_output_dir(trial=None)) / f"checkpoint-{step}"

    def _record(self, index: int, trial: Trial) -> None:
        if self._log is not None:
            self._log.write(self.trainer.state.global_step, index, trial)
