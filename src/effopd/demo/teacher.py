"""The tiny world's teacher: the base model sharpened by reinforcement learning in the one loop."""

import copy
from typing import Any

from effopd.data.problem import Task
from effopd.data.world import TinyWorld
from effopd.demo.pretrain import CHECK_PROBLEMS, Report, accuracy, world_writer
from effopd.methods import PolicyGradient, Resources
from effopd.models.policy import Policy
from effopd.training.collect import Collector, rewards_differ
from effopd.training.settings import LoopSettings, OptimizerSettings, TrainSettings
from effopd.training.update import Updater

CHECK_EVERY = 5


def train_teacher(world: TinyWorld, task: Task, base: Any, report: Report) -> Any:
    """Sharpens a copy of the base until it samples right answers.

    Group advantages over a token mean, groups whose rewards are all equal left out.
    """
    settings = LoopSettings(
        seed=world.seed,
        train=TrainSettings(
            steps=world.teacher_steps,
            prompts_per_step=48,
            responses_per_prompt=8,
            micro_batch_tokens=32_768,
        ),
        optimizer=OptimizerSettings(lr=world.teacher_lr),
    )
    model = copy.deepcopy(base)
    writer = world_writer(world, model)
    policy = Policy(model, writer.tokenizer)
    resources = Resources(student=policy, longest=writer.sampling.max_new_tokens)
    learner = PolicyGradient().learner(resources)
    collector = Collector(
        writer=writer,
        problems=task.train,
        settings=settings.train,
        seed=world.seed,
        verifier=world.verifier,
        informative=rewards_differ,
    )
    updater = Updater(policy, learner, settings)
    checks = list(task.test[:CHECK_PROBLEMS])
    for step in range(1, world.teacher_steps + 1):
        batch = collector.collect(step)
        learner.prepare(batch)
        updater.set_lr_(step)
        updater.update_(batch.rollouts, step)
        if step % CHECK_EVERY == 0:
            right = accuracy(world, model, checks, temperature=1.0)
            report(f"teacher: step {step}, sampled accuracy {right:.2f}")
            if right >= world.teacher_accuracy:
                break
    return model.eval()
