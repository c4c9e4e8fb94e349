"""What the study trains and measures, where it keeps it, and one seed's models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from effopd.analysis.interventions import Intervention
from effopd.analysis.sweeps import Case, Passes, evaluate_interventions
from effopd.comparison.plan import load_plan
from effopd.data.world import TinyWorld
from effopd.demo.cache import world_models
from effopd.errors import ConfigError, EffopdError, NonFiniteError
from effopd.evaluation.routing import Teachers
from effopd.models.updates import Update, open_update
from effopd.records import Row, checkpoint_path
from effopd.training.build import Parts, build_parts
from effopd.training.config import Config, make_config
from effopd.training.run import train
from effopd.training.signals import stop_on_signals

REWARDED = ("grpo", "dapo")
"""Methods that learn from rewards; the first one's last checkpoint is the teacher of `opd`."""

METHODS = (*REWARDED, "opd")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Sizes of a reproduction.

    All methods take the same number of updates with the same learning rate on batches of the same
    size, so that a smaller update is not one of fewer or shorter steps.

    Attributes:
        out: Directory of its runs and measurements.
        seeds: Training seeds; base model and problems are the same for all.
        steps: Updates of every run.
        save_every: Updates between checkpoints.
        lr: Learning rate of every run.
        answers: Answers in a batch.
        problems: Held-out problems of every evaluation.
        passes: Sampled answers to each of them.
        world: Settings of the tiny world.
        plan: Comparison whose runs are figures 6 and 7, in the recipes directory.
        quick: Whether the plan's quick section applies.
    """

    out: Path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 32
    save_every: int = 4
    lr: float = 3e-4
    answers: int = 256
    problems: int = 256
    passes: int = 2
    world: Mapping[str, Any] = field(default_factory=lambda: {"layers": 6})
    plan: Path = Path("recipes/compare-paper.toml")
    quick: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be distinct and at least one, got {self.seeds}")
        if self.steps < 2 * self.save_every or self.save_every < 1:
            raise ConfigError(
                f"steps must be at least two checkpoints, got steps = {self.steps} with "
                f"save_every = {self.save_every}"
            )

    @property
    def early_step(self) -> int:
        """The checkpoint nearest to a tenth of the training, as in the paper's figure 5c."""
        return max(self.save_every, round(self.steps / 10 / self.save_every) * self.save_every)

    def run(self, method: str, seed: int) -> Path:
        """Directory of a run."""
        return self.out / "runs" / method / f"seed-{seed}"

    def checkpoint(self, method: str, seed: int, step: int) -> Path:
        """Directory of a checkpoint of a run."""
        return checkpoint_path(self.run(method, seed) / "checkpoints", step)

    def measurement(self, name: str, seed: int) -> Path:
        """File of what was measured with one seed."""
        return self.out / "measurements" / name / f"seed-{seed}.json"

    @property
    def checkpoint_steps(self) -> range:
        """Steps at which every run was saved."""
        return range(self.save_every, self.steps + 1, self.save_every)


def quick_study(out: Path) -> Study:
    """A reproduction in minutes: two seeds, short runs, few problems; its verdicts mean little."""
    return Study(
        out=out, seeds=(0, 1), steps=8, save_every=2, problems=64, passes=1, world={}, quick=True
    )


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
    """Trains one run, or goes on where it was interrupted."""
    out = study.run(method, seed)
    with stop_on_signals() as stop:
        finished = train(run_settings(study, method, seed), out, stop=stop).finished
    if not finished:
        raise EffopdError(f"{out} was stopped and saved: run the same command to go on")


BOTH = ("grpo", "opd")
"""Reinforcement learning and the distillation from its result."""


@dataclass(frozen=True)
class Scene:
    """The runs of one seed.

    Attributes:
        study: Sizes and directories.
        seed: Training seed.
    """

    study: Study
    seed: int

    @cached_property
    def base(self) -> Path:
        """Directory of the base model."""
        return base_directory(self.study)

    @cached_property
    def parts(self) -> Parts:
        """Base model as the live student, and the seed's teacher."""
        return build_parts(run_settings(self.study, "opd", self.seed), print)

    def update(self, method: str, step: int | None = None) -> Update:
        """The update of a checkpoint, the last one by default."""
        directory = self.study.checkpoint(method, self.seed, step or self.study.steps)
        return open_update(self.base, directory)

    def accuracy(self, update: Update, intervention: Intervention) -> float:
        """Mean accuracy of the changed model over passes."""
        return float(self._row(update, intervention, teachers=None)["accuracy"])

    def accuracy_and_kl(self, update: Update, intervention: Intervention) -> tuple[float, float]:
        """The same, and the mean reverse KL to the teacher in nats a token on its own answers."""
        row = self._row(update, intervention, teachers=self.parts.teachers)
        return float(row["accuracy"]), float(row["reverse_kl"])

    def _row(self, update: Update, intervention: Intervention, teachers: Teachers | None) -> Row:
        passes = Passes(
            policy=self.parts.student,
            writer=self.parts.writer(self.parts.student),
            evaluator=self.parts.evaluator(),
            teachers=teachers,
            count=self.study.passes,
        )
        (row,) = evaluate_interventions([Case(intervention=intervention, update=update)], passes)
        if row["failure"] is not None:
            raise NonFiniteError(f"{intervention}: {row['failure']}")
        return row
