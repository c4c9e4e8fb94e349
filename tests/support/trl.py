"""TRL's trainers on tiny untrained models: a run takes seconds."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tests.fakes import TOKENIZER, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.distributed import DistributedConfig
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

PROMPTS = [f"{i % 7} + {j % 7} - {(i + j) % 7} =" for i in range(6) for j in range(6)]
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
"""What logs hold that no two runs share."""


def prompts(count: int = len(PROMPTS)) -> Dataset:
    """Conversations of one message."""
    messages = [[{"role": "user", "content": text}] for text in PROMPTS[:count]]
    return Dataset.from_dict({"prompt": messages})


def arguments(output: Path, **changes: Any) -> dict[str, Any]:
    """Settings that both kinds of trainers take."""
    return {
        "output_dir": str(output),
        "max_steps": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "activation_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    } | changes


def distillation(
    output: Path, *, kind: type[DistillationTrainer] = DistillationTrainer, **changes: Any
) -> Any:
    """Full-vocabulary distillation from another untrained model; `peft_config` and tools apart."""
    own = {
        key: changes.pop(key) for key in ("peft_config", "eval_dataset", "tools") if key in changes
    }
    return kind(
        model=tiny_model(0),
        teacher_model=tiny_model(1),
        args=DistillationConfig(**arguments(output, beta=1.0, **changes)),
        train_dataset=prompts(),
        processing_class=TOKENIZER,
        **own,
    )


def whole_models(folder: Path, *, write: bool) -> list[Path]:
    """Directories of student and teacher."""
    paths = [folder / "student", folder / "teacher"]
    if write:
        for seed, path in enumerate(paths):
            tiny_model(seed).save_pretrained(path)
            TOKENIZER.save_pretrained(path)
    return paths


def sharded_distillation(output: Path, models: Sequence[Path], ranks: int, **changes: Any) -> Any:
    """Distillation whose student and teacher Transformers has sharded with FSDP2."""
    config = DistributedConfig(fsdp_size=ranks)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path, distributed_config=config) for path in models
    )
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(**arguments(output, beta=1.0, **changes)),
        train_dataset=prompts(),
        processing_class=TOKENIZER,
    )


def digits(completions: Sequence[Any], **_: Any) -> list[float]:
    """Share of a completion's words that are numbers."""
    texts = [completion[0]["content"].split() for completion in completions]
    return [sum(word.isdigit() for word in words) / 6 for words in texts]


def reinforcement(output: Path, **changes: Any) -> Any:
    """GRPO on the number of digits."""
    return GRPOTrainer(
        model=tiny_model(0),
        reward_funcs=digits,
        args=GRPOConfig(**arguments(output, num_generations=4, **changes)),
        train_dataset=prompts(),
        processing_class=TOKENIZER,
    )


TRAINERS: dict[str, Callable[..., Any]] = {
    "distillation": distillation,
    "grpo": reinforcement,
}


def weights(trainer: Any) -> dict[str, Tensor]:
    """Copies of the student's parameters."""
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def logs(trainer: Any) -> list[dict[str, Any]]:
    """What the trainer logged, less its times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in trainer.state.log_history]


def generators() -> tuple[Any, ...]:
    """Where Python's, NumPy's and torch's generators are."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, keys.tolist(), rest, torch.get_rng_state().tolist()


class Killed(TrainerCallback):
    """Ends a run at the beginning of an update, as a lost machine would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt
