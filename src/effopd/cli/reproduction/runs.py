"""The runs a reproduction looks at: reinforcement learning, and distillation from its result."""

from pathlib import Path
from typing import Any

from effopd.cli.reproduction.study import REWARDED, Study
from effopd.comparison.plan import load_plan
from effopd.data.world import TinyWorld
from effopd.demo.cache import world_models
from effopd.errors import EffopdError
from effopd.training.config import Config, make_config
from effopd.training.loop import Observer
from effopd.training.run import train

RESPONSES = 8
"""Answers to one prompt in reinforcement learning; distillation writes one."""


def base_directory(study: Study) -> Path:
    """The base model that all runs start from; trained unless it is cached."""
    return world_models(TinyWorld(**study.world), print).base


def worlds(study: Study) -> list[TinyWorld]:
    """The worlds of the study and of its comparison, each once."""
    cells = load_plan(study.plan, quick=study.quick).cells()
    tasks = [make_config(cell.settings).task for cell in cells]
    found = [TinyWorld(**study.world), *(task for task in tasks if isinstance(task, TinyWorld))]
    return list(dict.fromkeys(found))


def run_settings(study: Study, method: str, seed: int) -> Config:
    """Settings of one run.

    Distillation takes the objective of the paper's code, the sampled token's log-ratio, and its
    teacher is the run of reinforcement learning with the same seed.
    """
    rewarded = method in REWARDED
    settings: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "device": "cpu",
        "task": {"type": "tiny_world", **study.world},
        "optimizer": {"lr": study.lr},
        "train": {
            "steps": study.steps,
            "prompts_per_step": study.answers // RESPONSES if rewarded else study.answers,
            "responses_per_prompt": RESPONSES if rewarded else 1,
            "rollout_batch": study.answers,
        },
        "evaluation": {
            "every": study.save_every,
            "first": [],
            "problems": study.problems,
            "recorded": 0,
            "teacher": not rewarded,
        },
        "checkpoint": {"every": study.save_every, "keep": study.steps},
    }
    if not rewarded:
        teacher = study.checkpoint(REWARDED[0], seed, study.steps)
        settings["teacher"] = {"path": str(teacher)}
        settings["objective"] = {"type": "sampled_token"}
    return make_config(settings)


def train_run(study: Study, method: str, seed: int) -> None:
    """Trains one run, or goes on where it was interrupted.

    Raises:
        EffopdError: It was asked to stop; it is saved.
    """
    out = study.run(method, seed)
    if not train(run_settings(study, method, seed), out, Observer()):
        raise EffopdError(f"{out} was stopped and saved: run the same command to go on")
