"""What the study trains and measures, where it keeps it, and one seed's models."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from effopd.analysis.interventions import Intervention
from effopd.analysis.sweeps import Case, Passes, evaluate_interventions
from effopd.comparison.plan import PlannedCell, load_plan
from effopd.data.world import TinyWorld
from effopd.demo.cache import world_models
from effopd.errors import ConfigError, EffopdError, NonFiniteError
from effopd.evaluation.routing import Teachers
from effopd.models.loading import ModelSettings
from effopd.models.updates import Update, open_update
from effopd.records import Row, checkpoint_path, checkpoint_step, list_checkpoints, load_run
from effopd.reports.series import evaluations
from effopd.training.build import Parts, build_parts
from effopd.training.config import Config, make_config
from effopd.training.run import train
from effopd.training.signals import stop_on_signals

REWARDED = ("grpo", "dapo", "ppo")
"""Methods that learn from rewards."""

TEACHER_OF = {"opd": "grpo", "opd_dapo": "dapo", "opd_ppo": "ppo"}
"""Distillations, and the run whose last checkpoint each learns from."""

BOTH = ("grpo", "opd")
"""Reinforcement learning and the distillation from its result: what most figures compare."""

ALGORITHMS = ("dapo", "ppo", "opd_dapo", "opd_ppo")
"""What figure 9 takes in addition."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Sizes of a reproduction.

    Reinforcement learning has the shape of the paper's batches, few prompts with 16 answers each,
    and goes on until its batch reward has not risen for some steps; every distillation learns from
    the last checkpoint of its own teacher's run, for a fixed number of steps.

    Attributes:
        out: Directory of its runs and measurements.
        seeds: Training seeds; each starts from one of the bases, in turn.
        bases: Settings of the tiny world, one for each base model.
        algorithm_seeds: Seeds that DAPO and PPO are trained with too; the first ones.
        sizes: Hidden widths that figure 8 compares in addition; hours each.
        rl_steps: Updates of reinforcement learning, at most.
        patience: Steps without a better reward, each the mean of five, that end it; the paper's 5.
        rl_prompts: Prompts of its batches.
        responses: Answers to each of them.
        steps: Updates of a distillation.
        answers: Answers in a batch of a distillation, each to a prompt of its own.
        save_every: Updates between checkpoints.
        moments: Places in the course of a run, equally far apart, that paths are compared at.
        lr: Learning rate of every run.
        problems: Held-out problems of every evaluation.
        passes: Sampled answers to each of them.
        plan: Comparison whose runs are figures 6 and 7, in the recipes directory.
        quick: Whether the plan's quick section applies.
        half_width: Layers on either side of the middle of a window.
        windows: Windows that are evaluated, equally far apart; None for one around each layer.
        top_shares: Shares of the rank that are kept of its leading end, but for the whole.
        bottom_shares: And of its other end.
    """

    out: Path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    bases: tuple[Mapping[str, Any], ...] = (
        {"layers": 6},
        {"layers": 6, "seed": 1, "base_greedy": 0.6},
    )
    algorithm_seeds: int = 3
    sizes: tuple[int, ...] = ()
    rl_steps: int = 120
    patience: int = 5
    rl_prompts: int = 8
    responses: int = 16
    steps: int = 40
    answers: int = 256
    save_every: int = 4
    moments: int = 10
    lr: float = 3e-4
    problems: int = 256
    passes: int = 2
    plan: Path = Path("recipes/compare-paper.toml")
    quick: bool = False
    half_width: int = 1
    windows: int | None = None
    top_shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5)
    bottom_shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be distinct and at least one, got {self.seeds}")
        if not self.bases:
            raise ConfigError("bases must name at least one base model")
        for name in ("steps", "rl_steps"):
            if getattr(self, name) < 2 * self.save_every or self.save_every < 1:
                raise ConfigError(
                    f"{name} must be at least two checkpoints, got {name} = {getattr(self, name)} "
                    f"with save_every = {self.save_every}"
                )

    def base_of(self, seed: int) -> int:
        """Which of the bases a seed starts from."""
        return self.seeds.index(seed) % len(self.bases)

    def world(self, seed: int) -> TinyWorld:
        """The world of a seed's base."""
        return TinyWorld(**self.bases[self.base_of(seed)])

    def base(self, seed: int) -> Path:
        """The base model that a seed's runs start from; trained unless it is cached."""
        return world_models(self.world(seed), print, teacher=False).base

    def sections(self, seed: int) -> dict[str, Any]:
        """What a seed's runs train on and start from, as sections of a recipe."""
        return {"task": {"type": "tiny_world", **self.bases[self.base_of(seed)]}}

    def methods(self, seed: int) -> tuple[str, ...]:
        """What is trained with a seed, teachers first."""
        chosen = {*BOTH, *(ALGORITHMS if seed in self.seeds[: self.algorithm_seeds] else ())}
        return tuple(name for name in (*REWARDED, *TEACHER_OF) if name in chosen)

    def of_size(self, hidden: int) -> "Study":
        """The same study with another width, without figure 9, in a directory of its own."""
        return replace(
            self,
            out=self.out / f"hidden-{hidden}",
            bases=tuple({**base, "hidden": hidden} for base in self.bases),
            algorithm_seeds=0,
            sizes=(),
        )

    def run(self, method: str, seed: int) -> Path:
        """Directory of a run."""
        return self.out / "runs" / method / f"seed-{seed}"

    def checkpoint(self, method: str, seed: int, step: int) -> Path:
        """Directory of a checkpoint of a run."""
        return checkpoint_path(self.run(method, seed) / "checkpoints", step)

    def saved_steps(self, method: str, seed: int) -> list[int]:
        """Steps at which a run was saved, ascending; the last one is where it ended.

        A run that was interrupted has one more, which is left out: nothing was evaluated there.
        """
        found = list_checkpoints(self.run(method, seed) / "checkpoints")
        saved = sorted(checkpoint_step(directory) for directory in found)
        return [step for step in saved if step % self.save_every == 0 or step == saved[-1]]

    def moment_steps(self, method: str, seed: int) -> list[int]:
        """The checkpoints nearest to equal parts of a run: as many for short runs as for long ones.

        A run of fewer checkpoints than moments has some of them twice.
        """
        saved = self.saved_steps(method, seed)
        wanted = [saved[-1] * (i + 1) / self.moments for i in range(self.moments)]
        return [min(saved, key=lambda step: abs(step - place)) for place in wanted]

    def cells(self) -> list[PlannedCell]:
        """Runs of figures 6 and 7."""
        return load_plan(self.comparison(), quick=self.quick).cells()

    def comparison(self) -> Row:
        """Content of the plan, with the seeds of the study alone."""

        def narrowed(section: Row) -> Row:
            return {
                key: [seed for seed in value if seed in self.seeds]
                if key == "seeds"
                else narrowed(value)
                if isinstance(value, dict)
                else value
                for key, value in section.items()
            }

        return narrowed(tomllib.loads(self.plan.read_text("utf-8")))

    def measurement(self, name: str, seed: int) -> Path:
        """File of what was measured with one seed."""
        return self.out / "measurements" / name / f"seed-{seed}.json"


def quick_study(out: Path) -> Study:
    """A reproduction in minutes: two seeds, short runs, few problems; its verdicts mean little."""
    return Study(
        out=out,
        seeds=(0, 1),
        bases=({},),
        algorithm_seeds=2,
        rl_steps=8,
        steps=8,
        save_every=2,
        moments=4,
        problems=64,
        passes=1,
        quick=True,
    )


def long_study(out: Path) -> Study:
    """Two hours on two cores: a smaller rate and more updates, which figure 5c asks for."""
    return Study(out=out, lr=1e-4, rl_steps=480, steps=96, save_every=8)


ANSWER_S, EVALUATED_S, WORLD_S = 0.011, 0.0024, 220.0
"""Seconds of one core: a training answer, an evaluated one, the base of a world; at 0.61 M
parameters, from 451 s of 160 steps of 128 answers and 64 of 256 on an AMD EPYC."""
INTERVENTIONS, REST_S = 99, 90.0
"""Evaluations of changed models with one seed, and seconds of what needs none."""


def minutes(study: Study, workers: int = 2) -> float:
    """About how long a reproduction takes from nothing, every run as long as it may be."""
    seconds = WORLD_S * len(worlds(study))
    evaluation = EVALUATED_S * study.problems
    for seed in study.seeds:
        for method in study.methods(seed):
            steps, answers = study.steps, study.answers
            if method in REWARDED:
                steps, answers = study.rl_steps, study.rl_prompts * study.responses
            seconds += steps * (answers * ANSWER_S + evaluation / study.save_every)
        seconds += INTERVENTIONS * study.passes * evaluation + REST_S
    for cell in study.cells():
        train = make_config(cell.settings).train
        expected = EXPECTED_STEPS.get(cell.method, train.steps)
        seconds += min(expected, train.steps) * train.prompts_per_step * train.epochs * ANSWER_S
    return seconds / workers / 60


EXPECTED_STEPS = {"effopd": 4, "exopd": 20, "alphaopd": 20}
"""Where runs that end near their teacher's accuracy end, by docs/search.md."""


def worlds(study: Study) -> list[tuple[TinyWorld, bool]]:
    """The worlds of the study and of its comparison, and whether their teacher is needed."""
    tasks = [make_config(cell.settings).task for cell in study.cells()]
    compared = dict.fromkeys(task for task in tasks if isinstance(task, TinyWorld))
    own = dict.fromkeys(study.world(seed) for seed in study.seeds)
    return [*((task, True) for task in compared), *((w, False) for w in own if w not in compared)]


def run_settings(study: Study, method: str, seed: int) -> Config:
    """Settings of one run.

    Distillation takes the objective of the paper's code, the sampled token's log-ratio, and its
    teacher is the run of reinforcement learning with the same seed, from the same base.
    """
    rewarded = method in REWARDED
    train: dict[str, Any] = {
        "steps": study.steps,
        "prompts_per_step": study.answers,
        "rollout_batch": study.answers,
    }
    if rewarded:
        train = {
            "steps": study.rl_steps,
            "prompts_per_step": study.rl_prompts,
            "responses_per_prompt": study.responses,
            "rollout_batch": study.rl_prompts * study.responses,
            "stop": {"reward_patience": study.patience, "reward_window": 5},
        }
    settings: dict[str, Any] = {
        "method": method if rewarded else "opd",
        "seed": seed,
        "device": "cpu",
        **study.sections(seed),
        "optimizer": {"lr": study.lr},
        "train": train,
        "evaluation": {
            "every": study.save_every,
            "first": [],
            "problems": study.problems,
            "recorded": 0,
            "teacher": not rewarded,
            "divergence": False,
        },
        "checkpoint": {"every": study.save_every, "keep": max(study.steps, study.rl_steps)},
    }
    if not rewarded:
        source = TEACHER_OF[method]
        last = study.saved_steps(source, seed)
        if not last:
            raise EffopdError(f"{study.run(source, seed)} has no checkpoint to distil: train it")
        settings["teacher"] = {"path": str(study.checkpoint(source, seed, last[-1]))}
        settings["objective"] = {"type": "sampled_token"}
    return make_config(settings)


def train_run(study: Study, method: str, seed: int) -> None:
    """Trains one run, or goes on where it was interrupted."""
    out = study.run(method, seed)
    with stop_on_signals() as stop:
        finished = train(run_settings(study, method, seed), out, stop=stop).finished
    if not finished:
        raise EffopdError(f"{out} was stopped and saved: run the same command to go on")


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
        return self.study.base(self.seed)

    @cached_property
    def parts(self) -> Parts:
        """Base model as the live student, and the seed's teacher."""
        return build_parts(run_settings(self.study, "opd", self.seed), print)

    def update(self, method: str, step: int | None = None) -> Update:
        """The update of a checkpoint, the last one by default."""
        last = step or self.study.saved_steps(method, self.seed)[-1]
        return open_update(self.base, self.study.checkpoint(method, self.seed, last))

    def settings_of(self, method: str) -> ModelSettings:
        """The last model of a run."""
        last = self.study.saved_steps(method, self.seed)[-1]
        return ModelSettings(path=str(self.study.checkpoint(method, self.seed, last)))

    def early(self, method: str) -> Update:
        """The update of the checkpoint nearest to a tenth of the run."""
        saved = self.study.saved_steps(method, self.seed)
        return self.update(method, min(saved, key=lambda step: abs(step - saved[-1] / 10)))

    def accuracies(self, method: str) -> dict[int, float]:
        """Step -> accuracy of every checkpoint, as the run evaluated it."""
        run = load_run(self.study.run(method, self.seed))
        found = {p.step: p.accuracy for p in evaluations(run) if p.accuracy is not None}
        return {step: found[step] for step in self.study.saved_steps(method, self.seed)}

    def step_as_good(self, method: str, as_good_as: str) -> int:
        """The first checkpoint with the final accuracy of another run; the last one if none has."""
        asked = [*self.accuracies(as_good_as).values()][-1]
        found = self.accuracies(method)
        return next((step for step, value in found.items() if value >= asked), max(found))

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
