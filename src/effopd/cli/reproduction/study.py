"""What a reproduction trains and measures, and where it keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effopd.errors import ConfigError
from effopd.models.checkpoints import checkpoint_path

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
