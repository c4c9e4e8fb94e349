"""Scoring the weights that the rollout servers hold, without a trace in training or in its logs."""

from typing import Any
from uuid import uuid4

import numpy as np
import torch
import transfer_queue as tq
from verl.trainer.ppo.v1 import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from effopd.errors import ValidatorError
from effopd.evaluation.rollout_sources import validation_seed
from effopd.integrations.verl.agent_loop import SEED, TEACHER
from effopd.integrations.verl.scoring import ServedAnswer, drawn_prompts, score_answers
from effopd.integrations.verl.settings import PluginSettings, ServedKLValidation
from effopd.search.extrapolator import preserve_state
from effopd.search.validation import Draw, Score

PARTITION = "val"
"""Partition of the transfer queue that verl's own validation uses; they never run together."""
_LARGEST_SEED = 2**31


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


def log_ratios(
    prompt: int, sampled: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor
) -> tuple[float, ...]:
    """`log student - log teacher` of each sampled token, in nats."""
    scored = teacher[prompt - 1 : prompt - 1 + len(sampled), 0]
    ratios = student.double() - scored.double()
    return tuple(ratios[sampled].tolist())


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
