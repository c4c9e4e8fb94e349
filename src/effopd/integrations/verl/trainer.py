"""verl's synchronous trainer with a search after the update of each step where one is due."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.v1 import PPOTrainer, PPOTrainerSync, register_trainer
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.debug import marked_timer

from effopd.errors import ValidatorError
from effopd.evaluation.rollout_sources import validation_seed
from effopd.integrations.verl.agent_loop import SEED, TEACHER
from effopd.integrations.verl.scoring import (
    ServedAnswer,
    drawn_prompts,
    log_ratios,
    score_answers,
)
from effopd.integrations.verl.settings import PluginSettings, ServedKLValidation, read_settings
from effopd.integrations.verl.support import AGENT_LOOP_MANAGER, TRAINER_MODE, check_supported
from effopd.integrations.verl.worker import SearchingWorker, Step
from effopd.search.extrapolator import preserve_state
from effopd.search.line_search import SearchResult
from effopd.search.validation import Draw, Score
from effopd.training.search_checkpoint import SearchLog

PARTITION = "val"
"""Partition of the transfer queue that verl's own validation uses; they never run together."""
_LARGEST_SEED = 2**31


@register_trainer(TRAINER_MODE)
class SearchingTrainer(PPOTrainerSync):
    """Searches between the update of a step and its checkpoint.

    At that point the rollout servers are asleep. Each point of a search is sent to them by verl's
    own weight synchronisation, scored, and they are put to sleep again; then verl goes on as if the
    accepted point were what the optimizer had reached.
    """

    def __init__(self, config: DictConfig) -> None:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        self._settings = read_settings(plain.get("effopd"))
        check_supported(plain, self._settings)
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl asks for it by name in many places
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = AGENT_LOOP_MANAGER
        super().__init__(config)
        self._validation: QuietValidation | None = None
        self._log: SearchLog | None = None

    def _init_resource_pool_mgr(self) -> None:
        """Takes the searching worker for the actor."""
        super()._init_resource_pool_mgr()
        for role in self.role_worker_mapping:
            if "actor" in str(role):
                self.role_worker_mapping[role] = ray.remote(SearchingWorker)

    def _load_checkpoint(self) -> None:
        """Prepares the search at the initial weights, then resumes where there is a checkpoint."""
        self.actor_rollout_wg.prepare_search(self._settings.search)
        if self._settings.slope is not None:
            self.actor_rollout_wg.follow_slopes(self._settings.slope)
        super()._load_checkpoint()
        self._validation = QuietValidation(self, self._settings)
        record = Path(self.config.trainer.default_local_dir) / "search.jsonl"
        self._log = SearchLog(record, self.global_steps)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        """The step of verl, then the search: the checkpoint comes later, of accepted weights."""
        batch = super().step(metrics, timing_raw)
        with marked_timer("search", timing_raw, color="purple"):
            result = self._search()
        if result is not None:
            assert self._log is not None
            for index, trial in enumerate(result.trials):
                self._log.write(result.step, index, trial)
            metrics.update(search_metrics(result))
        return batch

    def _search(self) -> SearchResult | None:
        """One search of all ranks; None where none is due."""
        if self._settings.slope is not None:
            return None
        workers = self.actor_rollout_wg
        step = agreed(workers.search_start(self.global_steps))
        while isinstance(step, Draw):
            step = agreed(workers.search_tell(self._scored(step)))
        return step

    def _scored(self, draw: Draw) -> Score:
        """Sends the weights to the servers and scores them; on failure the tip comes back."""
        assert self._validation is not None
        is_scored = False
        try:
            self.checkpoint_manager.update_weights(self.global_steps)
            score = self._validation(draw)
            self.checkpoint_manager.sleep_replicas()
            is_scored = True
        finally:
            if not is_scored:
                self.actor_rollout_wg.search_abandon()
        return score


def agreed(steps: Sequence[Step]) -> Step:
    """What all ranks say."""
    said = {_decision(step) for step in steps}
    if len(said) != 1:
        raise ValidatorError(
            f"the ranks of one search decided differently: {sorted(map(str, said))}. Their weights "
            "do not belong together; resume from the last checkpoint."
        )
    return steps[0]


def _decision(step: Step) -> Any:
    """A step without what differs from rank to rank, the seconds."""
    if not isinstance(step, SearchResult):
        return step
    trials = tuple((trial.kind, trial.scale, trial.accepted) for trial in step.trials)
    return step.step, step.accepted_scale, trials


def search_metrics(result: SearchResult) -> dict[str, float]:
    """What verl's logger gets of a search, beside `timing_s/search`."""
    scores = {trial.scale: trial.score.value for trial in result.trials if trial.score}
    found = {
        "effopd/accepted_scale": result.accepted_scale,
        "effopd/trials": float(len(result.trials)),
        "effopd/tokens": float(result.tokens),
        "effopd/teacher_tokens": float(result.teacher_tokens),
    }
    if 1.0 in scores and result.accepted_scale in scores:
        found["effopd/tip_score"] = scores[1.0]
        found["effopd/accepted_score"] = scores[result.accepted_scale]
    return found


# Scoring the weights that the servers hold -------------------------------------------------------


class QuietValidation:
    """Has training prompts answered by the rollout servers and scores the answers.

    Answers go through verl's agent loops, reward function and teachers, as in training. Nothing is
    logged; the generators of this process are put back; servers sample by seeds of the draw.
    """

    def __init__(self, trainer: PPOTrainer, settings: PluginSettings) -> None:
        self._trainer = trainer
        self._settings = settings
        self._longest = int(trainer.config.actor_rollout_ref.rollout.response_length)

    def __call__(self, draw: Draw) -> Score:
        """The score of the weights that the servers hold now."""
        with preserve_state():
            names = self._submit(draw)
            return score_answers(self._collect(names), self._settings.validation)

    @property
    def _asks_teacher(self) -> bool:
        return isinstance(self._settings.validation, ServedKLValidation)

    def _submit(self, draw: Draw) -> list[str]:
        """Hands the draw's prompts to the agent loops; their names in order."""
        trainer, seed = self._trainer, self._settings.seed
        dataset = trainer.train_dataset
        rows = drawn_prompts(len(dataset), self._settings.validation, seed, draw)
        columns = collate_fn([dataset[row] for row in rows])
        names = [str(uuid4()) for _ in rows]  # no underscore: verl splits keys at them
        seeds = [validation_seed(seed, draw, i) % _LARGEST_SEED for i in range(len(rows))]
        columns |= {
            "uid": column(names),
            "__rollout_n__": column([1] * len(rows)),
            SEED: column(seeds),
            TEACHER: column([self._asks_teacher] * len(rows)),
        }
        batch = tu.get_tensordict(columns)
        tu.assign_non_tensor_data(batch, "global_steps", trainer.global_steps)
        tu.assign_non_tensor_data(batch, "validate", True)
        tag = {"is_prompt": True, "status": "pending", "global_steps": trainer.global_steps}
        tq.kv_batch_put(keys=names, partition_id=PARTITION, tags=[dict(tag) for _ in names])
        trainer.agent_loop_manager.generate_sequences(batch)
        return names

    def _collect(self, names: list[str]) -> list[ServedAnswer]:
        """Waits for the answers, reads them and removes them from the queue."""
        batch, _ = self._trainer.replay_buffer.sample(
            global_steps=self._trainer.global_steps, partition_id=PARTITION, batch_size=len(names)
        )
        last = last_outputs(batch.keys)
        missing = [name for name in names if name not in last]
        if missing:
            raise ValidatorError(
                f"{len(missing)} of {len(names)} validation prompts were not answered: the log of "
                "the agent loop workers says why"
            )
        keys = [batch.keys[last[name]] for name in names]
        lengths = [batch.tags[last[name]]["prompt_len"] for name in names]
        fields = ["rm_scores", "response_mask"]
        if self._asks_teacher:
            fields += ["rollout_log_probs", "teacher_logprobs"]
        data = tq.kv_batch_get(keys=keys, partition_id=PARTITION, select_fields=fields)
        tq.kv_clear(keys=batch.keys, partition_id=PARTITION)
        rows = zip(*(data[field].unbind() for field in fields), strict=True)
        return [self._answer(prompt, *row) for prompt, row in zip(lengths, rows, strict=True)]

    def _answer(self, prompt: int, *row: torch.Tensor) -> ServedAnswer:
        rewards, mask, *scored = row
        sampled = mask.bool()
        return ServedAnswer(
            tokens=int(sampled.sum()),
            is_truncated=len(mask) >= self._longest,
            reward=float(rewards.sum()),
            log_ratios=log_ratios(prompt, sampled, *scored) if scored else (),
        )


def last_outputs(keys: list[str]) -> dict[str, int]:
    """Prompt name -> position of the last output of its agent loop, from verl's keys."""
    found: dict[str, tuple[int, int]] = {}
    for position, key in enumerate(keys):
        name, _, index = key.rsplit("_", 2)
        found[name] = max(found.get(name, (-1, -1)), (int(index), position))
    return {name: position for name, (_, position) in found.items()}


def column(values: list[Any]) -> np.ndarray:
    """A column of Python values, which verl does not turn into a tensor."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
