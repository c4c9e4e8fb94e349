"""The tiny world in TRL: the search reaches the teacher in fewer steps than training alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from effopd.demo.cache import world_models
from effopd.demo.world import TinyWorld, make_tokenizer
from effopd.evaluation.metrics import mean
from effopd.rollouts.engine import Sampling
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.prompts import PromptTemplate
from effopd.rollouts.rollout import Writer
from effopd.trainers.trl import EffOPDCallback

STEPS = 64
PROBLEMS = 256


class Measured(TrainerCallback):
    """Accuracy on held-out problems after every second update."""

    def __init__(self, world: TinyWorld, model: Any) -> None:
        self.world, self.problems = world, world.load().test[:PROBLEMS]
        tokenizer = make_tokenizer(world)
        self.writer = Writer(
            engine=HFEngine(model, tokenizer),
            tokenizer=tokenizer,
            template=PromptTemplate(),
            sampling=Sampling(max_new_tokens=world.answer_tokens),
        )
        self.steps: dict[int, float] = {}

    def accuracy(self) -> float:
        with torch.random.fork_rng():
            rollouts = self.writer.answer(self.problems, range(PROBLEMS))
        return mean(self.world.verifier.rewards([rollout.answer for rollout in rollouts]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 2 == 0:
            self.steps[state.global_step] = self.accuracy()

    def reaches(self, accuracy: float) -> int:
        """The first step measured at or above the accuracy."""
        return next((step for step, found in self.steps.items() if found >= accuracy), 2 * STEPS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_search_halves_the_steps_to_the_teacher(tmp_path: Path) -> None:
    world = TinyWorld()
    models = world_models(world, print)
    target = 0.9 * Measured(world, loaded(models.teacher)).accuracy()
    reached = {}
    for searches in (False, True):
        trainer = trainer_of(world, tmp_path / str(searches))
        measured = Measured(world, trainer.model)
        if searches:
            trainer.add_callback(EffOPDCallback(trainer))
        trainer.add_callback(measured)
        trainer.train()
        print(measured.steps)
        reached[searches] = measured.reaches(target)
    assert reached[True] <= reached[False] / 2, reached


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory)


def trainer_of(world: TinyWorld, output: Path) -> Any:
    """TRL's own distillation, of the base from the teacher, at the learning rate 1e-4."""
    models = world_models(world, print)
    messages = [[{"role": "user", "content": problem.prompt}] for problem in world.load().train]
    return DistillationTrainer(
        model=loaded(models.base),
        teacher_model=loaded(models.teacher),
        args=DistillationConfig(
            output_dir=str(output),
            max_steps=STEPS,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            beta=1.0,
            per_device_train_batch_size=128,
            max_completion_length=world.answer_tokens,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": messages}),
        processing_class=make_tokenizer(world),
    )
